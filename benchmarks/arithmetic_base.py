"""What a base for arithmetic knows before any training: its votes, and its posterior's, by number of operands.

    python benchmarks/arithmetic_base.py --questions=60 --seeds=0,1,2 --output=arithmetic_base.json

`shots_K`: the vote over samples of the base with K demonstrations in its prompt, as in configs/arith.py.
`posterior_mode`: the same vote over exact samples of p(Z | X, Y), by rejection; `best_of_n`: of ten rows of the base
the one that the reward likes best. `right` (percent), `distinct` and `chain_entropy` (nats) are of single samples. The
file has everything, a page beside it the accuracies. It is what `gfn_jax.studies.baselines` measures for table 4, on
other questions and seeds.
"""

import copy
import json
import os
import pathlib
import platform
import sys
import time
from collections.abc import Mapping

import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from gfn_jax.commands import cli

CONFIG = config_flags.DEFINE_config_file("config", "configs/arith.py", "FILE:preset")
SPLIT = flags.DEFINE_enum("split", "test", ["validation", "test"], "Whose questions.")
flags.DEFINE_integer("questions", 60, "Of each number of operands.")
flags.DEFINE_list("seeds", ["0", "1", "2"], "Of all that is sampled.")
OUTPUT = flags.DEFINE_string("output", None, "Where to write the JSON, and the page beside it.")


def measured(seed: int, questions: int) -> dict[str, dict[str, float]]:
    """Method -> metric -> value, by one seed of all that is sampled."""
    from gfn_jax.runs.config import read_policy_run
    from gfn_jax.studies.baselines import opened, posterior, prompting

    config = copy.deepcopy(CONFIG.value)  # fields without a value stay references
    config.report = SPLIT.value
    config.evaluation.update(seed=seed, questions=questions, test_questions=questions)
    world = opened(read_policy_run(config), pathlib.Path())
    methods = {**prompting(world).findings.methods, **posterior(world).findings.methods}
    return {name: dict(values) for name, values in methods.items()}


def main(_: list[str]) -> None:
    """Measures every seed, writes what there is after each, and prints the table of their means."""
    logging.set_verbosity(logging.WARNING)
    cli.check_counts(flags.FLAGS, "questions")
    questions, runs = flags.FLAGS.questions, {}
    for seed in cli.whole_numbers(flags.FLAGS, "seeds"):
        runs[seed] = measured(seed, questions)
        print(f"seed {seed}: done", flush=True)
        if OUTPUT.value:
            facts = {
                "command": " ".join(["python", *sys.argv]),
                "date": time.strftime("%Y-%m-%d"),
                "machine": f"{platform.machine()}, {os.cpu_count()} vCPUs, no accelerator",
                "config": flags.FLAGS["config"].config_filename,
                "split": SPLIT.value,
                "questions": questions,
                "seeds": runs,
            }
            pathlib.Path(OUTPUT.value).write_text(json.dumps(facts, indent=1) + "\n")
    shown = page(runs)
    print(shown)
    if OUTPUT.value:
        text = f"```\n{shown}\n```\n\n{facts['date']}, {facts['machine']}:\n\n    {facts['command']}\n"
        pathlib.Path(OUTPUT.value).with_suffix(".md").write_text(text)


def page(runs: Mapping[int, Mapping[str, Mapping[str, float]]]) -> str:
    """The means over seeds of the accuracies, in percent, and of how varied samples are; the file has all."""
    from gfn_jax.evaluation.report import table

    found = [*runs.values()]
    columns = [f"{name}_{operands}" for name in ("accuracy", "right", "distinct") for operands in (3, 4, 5)]

    def mean(name: str, metric: str) -> float | str:
        values = [one[name][metric] for one in found if metric in one[name]]
        return float(np.mean(values)) if values else "-"

    rows = [(name, *(mean(name, metric) for metric in columns)) for name in found[0]]
    return table((f"mean of {len(found)} seeds", *columns), rows)


if __name__ == "__main__":
    cli.configure_jax()  # before jax is imported
    app.run(main)
