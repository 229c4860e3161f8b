"""The command that trains: `python -m gfn_jax.launch --config=configs/arith.py[:preset]`.

    --config.KEY=VALUE  changes one value of the config; None unsets it where it is optional
    --workdir=DIR       where the run writes, runs/CONFIG-PRESET by default; run again, it goes on from there
    --distributed       joins the other processes of a cluster; not needed where the environment names them
                        (SLURM, Open MPI, a TPU slice on Kubernetes, JAX_COORDINATOR_ADDRESS)
    --sampler=N         draws rows for the learner of the same run: one of its --config.asynchronous.samplers, from 0,
                        where --config.asynchronous.local is False
    --dry_run           says what the run would take in memory and arithmetic, on any --config.mesh, and ends there
    --debug             shows tracebacks; so does GFN_JAX_DEBUG=1

What is wrong with the command, its config or its data ends in one line `error: ...` and exit code 2; what
goes wrong later, in one line and exit code 1. Ctrl-C and SIGTERM save; the exit code is 128 + the signal. Where another
process of the job has died or failed, this one ends too, with a line that names it and exit code 75.
"""

import sys

from gfn_jax.commands import train


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return train.main(argv or sys.argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
