import importlib.util
import pathlib

import pytest

FILE = pathlib.Path(__file__).resolve().parents[2] / "benchmarks" / "rerun.py"
specification = importlib.util.spec_from_file_location("rerun", FILE)
rerun = importlib.util.module_from_spec(specification)
specification.loader.exec_module(rerun)

LINES = [
    "row,metric,seed,value",
    "PPO,accuracy,0,10.0",
    "PPO,accuracy,1,20.0",
    "PPO,kl,0,0.5",
    "PPO,kl,1,",
    "base,kl,,7",
]


def a_table(folder: pathlib.Path, lines: list[str]) -> pathlib.Path:
    folder.mkdir(exist_ok=True)
    (folder / "table4.csv").write_text("\n".join(lines) + "\n")
    return folder / "table4.csv"


@pytest.fixture
def shipped(tmp_path):
    return rerun.numbers(a_table(tmp_path / "shipped", LINES))


def test_numbers_of_the_same_seeds_are_compared_and_the_largest_change_comes_first(tmp_path, shipped):
    again = rerun.numbers(a_table(tmp_path / "again", [LINES[0], "PPO,accuracy,0,9.0", "PPO,kl,0,0.25", "base,kl,,7"]))
    found = rerun.compare(shipped, again)
    assert found.same == 1
    assert [(key.metric, before, after) for key, before, after in found.moved] == [
        ("kl", 0.5, 0.25),
        ("accuracy", 10.0, 9.0),
    ]


def test_a_table_of_other_rows_is_refused(tmp_path, shipped):
    again = rerun.numbers(a_table(tmp_path / "again", [LINES[0], "PPO,accuracy,0,10.0", "base,kl,,7"]))
    with pytest.raises(ValueError, match="kl"):
        rerun.compare(shipped, again)


def test_tables_without_a_common_seed_are_refused(tmp_path, shipped):
    again = rerun.numbers(a_table(tmp_path / "again", [LINES[0], "PPO,accuracy,4,10.0"]))
    with pytest.raises(ValueError, match="no seed in common"):
        rerun.compare(shipped, again)
