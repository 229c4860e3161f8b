"""The documents say what docs/results says, and the script that puts it there does what it says."""

import json
import pathlib
import tarfile

import pytest
from tiny_files import loaded

from gfn_jax.studies import figures, report
from gfn_jax.studies.found import Facts, Found
from gfn_jax.studies.section import section
from gfn_jax.studies.study import SEED
from gfn_jax.studies.tables import studies

ROOT = pathlib.Path(__file__).parents[2]
PACKED = sorted((ROOT / "docs" / "results").rglob("jobs.tar.xz"))


@pytest.fixture(scope="module")
def fill():
    return loaded(ROOT / "docs" / "fill.py")


@pytest.fixture
def results(tmp_path):
    (tmp_path / "table4.md").write_text("**Lesson.**\n\n| a |\n| --- |\n")
    (tmp_path / "table4.csv").write_text(
        "row,metric,value,mean,shown_value,shown\n"
        "base; 0-shot,accuracy_5,3.14159,3.14159,3.1,3.1\n"
        'GFlowNet,accuracy_5,50.02,55.24,50.0,"55.2 [50.0, 60.1]"\n'
        'GFlowNet,accuracy_5,60.11,55.24,60.1,"55.2 [50.0, 60.1]"\n'
        "PPO,accuracy_5,,,,not run\n"
    )
    return tmp_path


def test_the_documents_say_what_the_results_say(fill):
    if not fill.RESULTS.is_dir():
        pytest.skip("docs/results is not there: python -m gfn_jax.reproduce --out=docs/results")
    for path in fill.documents():
        text = path.read_text(encoding="utf-8")
        assert fill.filled(text, fill.RESULTS) == text, f"{path.name}: python docs/fill.py"


def test_tables_and_numbers_are_filled_in(fill, results):
    text = (
        "Before.\n<!-- results: table4 -->\nold\n<!-- end -->\n"
        "In <!-- value: table4; GFlowNet; accuracy_5 -->9<!-- end --> % and "
        "<!-- interval: table4; GFlowNet; accuracy_5 --><!-- end -->, of "
        "<!-- seeds: table4; GFlowNet; accuracy_5 --><!-- end -->; base "
        "<!-- value: table4; base; 0-shot; accuracy_5 --><!-- end -->.\n"
    )
    new = fill.filled(text, results)
    shown = "Before.\n\n**Lesson.**\n\n| a |\n| --- |\n\nIn 55.2 % and 55.2 [50.0, 60.1], of 50.0, 60.1; base 3.1.\n"
    assert fill.re.sub("<!--.*?-->", "", new) == shown
    assert fill.filled(new, results) == new


def test_the_report_with_more_seeds_goes_first(fill, results):
    (results / "five-seeds").mkdir()
    (results / "five-seeds" / "table4.md").write_text("More.\n")
    shown = fill.re.sub("<!--.*?-->", "", fill.filled("<!-- results: table4 --><!-- end -->", results))
    assert shown == "\nMore.\n"


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ("results: table5", "no table5.md"),
        ("value: table5; GFlowNet; accuracy_5", "no table5.csv"),
        ("value: table4; GFlowNet; accuracy_6", "metric 'accuracy_6'"),
        ("value: table4; PPO; accuracy_5", "no number of row 'PPO'"),
        ("value: table4", "row ''"),
    ],
)
def test_what_is_not_there_is_refused(fill, results, asked, named):
    with pytest.raises(ValueError, match=named):
        fill.filled(f"<!-- {asked} --><!-- end -->", results)


def test_the_check_fails_and_rewriting_mends(fill, results, tmp_path, monkeypatch, capsys):
    document = tmp_path / "README.md"
    document.write_text("<!-- value: table4; GFlowNet; accuracy_5 -->9<!-- end -->")
    monkeypatch.setattr(fill, "ROOT", tmp_path)
    monkeypatch.setattr(fill, "RESULTS", results)
    assert fill.main(["--check"]) == 1
    assert "README.md" in capsys.readouterr().err
    assert fill.main([]) == 0
    assert document.read_text() == "<!-- value: table4; GFlowNet; accuracy_5 -->55.2<!-- end -->"
    assert fill.main(["--check"]) == 0


@pytest.mark.parametrize("archive", PACKED, ids=lambda path: path.parent.name)
def test_tables_are_made_of_what_is_packed_beside_them(archive, tmp_path, monkeypatch):
    """Every cell and interval of them, by the studies as they are now."""
    monkeypatch.setattr(figures, "draw", lambda *given: None)
    with tarfile.open(archive) as files:
        files.extractall(tmp_path, filter="data")
    results = {}
    for record in tmp_path.rglob("job.json"):
        left = [
            json.loads((record.parent / name).read_text()) for name in ("results.json", "questions.json", "job.json")
        ]
        results[str(record.parent.relative_to(tmp_path))] = Found(record.parent, *left)
    seeds = tuple(sorted({int(found[1]) for found in map(SEED.search, results) if found}))
    there, facts = studies("tiny", seeds), Facts("", "tiny", seeds, "", "", {})
    tables = sorted(archive.parent.glob("*.csv"))
    assert tables
    for table in tables:
        made = report._csv(section(there[table.stem], results, facts), results)
        assert made == table.read_text(encoding="utf-8"), (
            f"{table.name}: python -m gfn_jax.reproduce --out={table.parent}"
        )
