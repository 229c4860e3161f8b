"""Five steps of many runs in one process, or in each of several: `python five_steps.py FOLDER MESH NAME...`.

Leaves FOLDER/NAME.npz: the loss of every step, and every array that was trained. Programs of several runs (EM, STaR)
are completed; theirs are the arrays of all their adapters.
"""

import json
import pathlib
import sys

import jax
import numpy as np
from safetensors.numpy import load_file

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 5
MESHES = {
    "data": (),  # what a user gets who says nothing
    "fsdp": ("--config.mesh.data=1", "--config.mesh.fsdp=8"),
    "all": ("--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2"),
}
SIZES = {"data": (8, 1, 1), "fsdp": (1, 8, 1), "all": (2, 2, 2)}
# Adam divides by the root of what gradients were: without this, noise decides where they vanish.
STEADY = ("--config.optimizer.eps=1e-3",)
SHORT = (f"--config.steps={STEPS}", *STEADY)
BRIEF = ("--config.report=validation", "--config.certificate.queries=0", "--config.evaluation.every=5")
NUMBERS = ("rng.py:smoke", *SHORT)
ANSWERS = ("arith.py:smoke", *SHORT)
CASES = {
    "rng": NUMBERS,
    # At temperature 1 the first step would find nothing to learn, and its rounding errors would be all there is.
    "continuation": ("continuation.py:smoke", *SHORT, "--config.sampling.reward_temperature_start=0.9"),
    "infilling": ("infill.py:smoke", *SHORT),
    "subjectivity": ("subj.py:smoke", *SHORT, "--config.em.rounds=0"),
    "arithmetic": ANSWERS,
    "sft": (*ANSWERS, "--config.algorithm=sft", "--config.arithmetic.seed_demonstrations=4"),
    **{
        name: (*NUMBERS, f"--config.algorithm={name}")
        for name in ("weighted_sft", "ctl", "dpo", "reinforce", "rloo", "grpo", "ppo")
    },
    "finetune": ("finetune.py:smoke", *SHORT),
    "finetune_full": ("finetune.py:smoke", *SHORT, "--config.mode=full"),
    "pretrain": ("pretrain.py:smoke", *STEADY, f"--config.phases.first.steps={STEPS}"),
    "em": ("subj.py:smoke", *SHORT, "--config.em.rounds=1", f"--config.em.steps={STEPS}", *BRIEF),
    "star": (
        *ANSWERS,
        "--config.algorithm=star",
        "--config.arithmetic.reward_shots=3",
        "--config.star.rounds=2",
        "--config.star.samples=8",
        "--config.star.growth=1.0",
        *BRIEF,
    ),
}


def learnt(name: str, mesh: str, workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """What five steps of a case have led to, on every process."""
    from gfn_jax.commands.train import parse
    from gfn_jax.evaluation.rows import gather
    from gfn_jax.runs.build import Single, build

    file, *words = CASES[name]
    mesh_words = () if name == "pretrain" or jax.device_count() == 1 else MESHES[mesh]
    config = parse(["launch", f"--config={ROOT / 'configs' / file}", *words, *mesh_words]).config
    program = build(config, workdir)
    sizes = (1, 1, 1) if jax.device_count() == 1 else SIZES[mesh]
    assert tuple(jax.sharding.get_abstract_mesh().shape.values()) == sizes
    if isinstance(program, Single):
        run, losses = program.run, []
        state = run.state
        for _ in range(STEPS):
            state, metrics = run.step_fn(state, run.constants)
            losses.append(float(metrics["loss"]))
        found = {"loss": np.array(losses)}
        for path, array in jax.tree_util.tree_leaves_with_path(gather(state.trainable)):
            found[jax.tree_util.keystr(path, simple=True, separator="/")] = np.asarray(array)
        return found
    program.complete()
    found = {}
    for path in sorted(workdir.rglob("metrics.jsonl")):
        records = map(json.loads, path.read_text().splitlines())
        losses = [record["loss"] for record in records if record["kind"] == "train"]
        found[f"{path.parent.relative_to(workdir)}: loss"] = np.array(losses)
    for path in sorted(workdir.rglob("adapter_model.safetensors")):
        found |= {f"{path.parent.relative_to(workdir)}: {key}": array for key, array in load_file(path).items()}
    return found


def main() -> None:
    from gfn_jax.commands import cluster

    cluster.join_if_any()
    folder, mesh, *names = sys.argv[1:]
    for name in names:
        workdir = pathlib.Path(folder) / name
        found = learnt(name, mesh, workdir)
        if jax.process_index() == 0:
            np.savez(workdir.with_suffix(".npz"), **found)
            print(name, flush=True)


if __name__ == "__main__":
    main()
