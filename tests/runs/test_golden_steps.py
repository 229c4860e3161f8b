"""The metrics of the first step of three configs are what they were: a refactoring changes none of them.

After a deliberate change of what a step draws or computes: `python tests/runs/test_golden_steps.py` renews the file.
"""

import json
import pathlib
import tempfile

import jax
import pytest

from gfn_jax.commands.train import parse
from gfn_jax.runs.build import build

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "steps.json"
SMALL = ("--config.sampling.queries=2", "--config.sampling.samples=4", "--config.replay.samples=2")
# Every part of a step: a tool and seeds; a posterior with an answer and EM's kind of task; next tokens, all weights.
CASES = {
    "arith": (
        "arith.py:prompted",
        *SMALL,
        "--config.sampling.micro_batches=2",
        "--config.arithmetic.seed_demonstrations=4",
    ),
    "subj": ("subj.py", *SMALL, "--config.subjectivity.labels=4", "--config.subjectivity.seed_samples=2"),
    "pretrain": ("pretrain.py:numbers", "--config.batch=4", "--config.phases.first.documents=50"),
}


def first_step(name: str, workdir: pathlib.Path) -> dict[str, float]:
    """The metrics of a config's first step."""
    file, *overrides = CASES[name]
    run = build(parse(["launch", f"--config={ROOT / 'configs' / file}", *overrides]).config, workdir).run
    _, metrics = run.step_fn(run.state, run.constants)
    return {key: float(value) for key, value in sorted(jax.device_get(metrics).items())}


@pytest.mark.parametrize("name", CASES)
def test_the_first_step_is_what_it_was(name, tmp_path):
    golden = json.loads(GOLDEN.read_text())
    assert golden.keys() == CASES.keys()
    # Machines and compilers round differently; another draw, or another equation, is farther off.
    assert first_step(name, tmp_path) == pytest.approx(golden[name], rel=1e-3, abs=1e-6)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        found = {name: first_step(name, pathlib.Path(folder) / name) for name in CASES}
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
