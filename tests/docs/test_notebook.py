"""docs/random_number.ipynb: committed with what it printed and drew, and what it says still comes out."""

import base64
import json
import os
import re

import pytest
from documents import ROOT

NOTEBOOK = ROOT / "docs" / "random_number.ipynb"
PICTURE = ROOT / "docs" / "pictures" / "random_number.png"


def cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def outputs(notebook: dict) -> list[dict]:
    return [output for cell in cells(notebook) for output in cell["outputs"]]


@pytest.fixture(scope="module")
def committed() -> dict:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def test_it_is_committed_as_it_was_run(committed):
    assert [cell["execution_count"] for cell in cells(committed)] == [*range(1, len(cells(committed)) + 1)]
    assert {output["output_type"] for output in outputs(committed)} == {"stream", "display_data"}
    assert {output.get("name", "stdout") for output in outputs(committed)} == {"stdout"}, "warnings are noise"
    assert NOTEBOOK.stat().st_size < 150_000


def test_the_picture_is_the_notebooks(committed):
    drawn = [output["data"]["image/png"] for output in outputs(committed) if "data" in output]
    assert PICTURE.read_bytes() == base64.b64decode("".join(drawn[0]))


@pytest.fixture
def client(tmp_path, monkeypatch):
    """Runs the notebook's cells one after the other, beside an empty folder; a cell that fails raises."""
    nbclient, nbformat, _ = (
        pytest.importorskip(name, reason=f"{name} is not installed: make docs installs it")
        for name in ("nbclient", "nbformat", "ipykernel")
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    return nbclient.NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}})


def test_every_cell_runs(client):
    """With a twentieth of the steps."""
    notebook = client.nb
    begin = '"certificate.queries": 0, "optimizer.warmup_steps": 5, "replay.discovery_steps": 5'
    for cell in cells(notebook):
        source = cell["source"].replace('"certificate.queries": 0', begin)
        cell["source"] = re.sub(r"steps=(\d+)", lambda found: f"steps={int(found[1]) // 20}", source)
    client.execute()
    assert {output.get("name", "stdout") for output in outputs(notebook)} == {"stdout"}
    assert sum("image/png" in output.get("data", ()) for output in outputs(notebook)) == 2


@pytest.mark.slow
def test_it_says_the_same(client):
    """Two trainings, some minutes. The GFlowNet covers every number and PPO does not."""
    notebook, nbformat = client.nb, pytest.importorskip("nbformat")
    last = "print(json.dumps({name: run['policy'] for name, run in (('ppo', ppo), ('gflownet', gflownet))}))"
    notebook.cells.append(nbformat.v4.new_code_cell(last))
    client.execute()
    assert {output.get("name", "stdout") for output in outputs(notebook)} == {"stdout"}
    found = json.loads(notebook.cells[-1]["outputs"][0]["text"])
    assert found["gflownet"]["covered"] == 101
    assert found["gflownet"]["kl_to_target"] < 1e-2 < 1 < found["ppo"]["kl_to_target"]
    assert found["ppo"]["covered"] < 101
