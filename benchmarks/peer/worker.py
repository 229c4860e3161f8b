"""A process that computes one side of the problem when it is told to: JSON lines in, JSON lines out.

python -m peer.worker jax|peer|released|write CONFIG FOLDER DEVICE
"""

import json
import os
import pathlib
import platform
import resource
import sys
import time

import numpy as np


def serve(side, folder: pathlib.Path, answers) -> None:
    """Answers until the input ends."""
    clocks = {"cpu": time.process_time, "wall": time.perf_counter}
    for line in sys.stdin:
        asked = json.loads(line)
        match asked["do"]:
            case "step":
                answer = side.step(clocks[asked["clock"]])
            case "differences":
                answer = side.differences(dict(np.load(folder / "reference.npz")))
            case "facts":
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                answer = {
                    "peak_mib": {"process": peak, "device": side.peak_device_mib()},
                    "versions": side.versions() | {"python": platform.python_version()},
                }
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    """Makes the side, says so with an empty line of JSON, and serves."""
    name, config, folder, device = sys.argv[1:]
    if device == "cpu" and hasattr(os, "sched_setaffinity"):  # XLA makes a thread a core, whatever it is told
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    path = pathlib.Path(folder)
    if name == "write":
        from peer.ours import write

        write(config, path)
        return
    if name == "jax":
        from gfn_jax.commands.cli import configure_jax

        configure_jax(keep=False)  # as commands compile
        from peer.ours import Ours

        side = Ours(config)
    else:
        import torch

        from peer.problem import Problem
        from peer.theirs import SIDES

        if device == "cpu":
            torch.set_num_threads(1)
        side = SIDES[name](Problem.load(path), path, device)
    answers.write("{}\n")
    answers.flush()
    serve(side, path, answers)


if __name__ == "__main__":
    main()
