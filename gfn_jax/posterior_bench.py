r"""PosteriorBench: methods on targets that are known exactly, because all that they give a probability is listed.

    python -m gfn_jax.posterior_bench --out=runs/bench                                  # everything, in minutes
    python -m gfn_jax.posterior_bench --methods=importance,gflownet --targets=countdown --budget=small --seeds=3 \
        --out=runs/bench

A table a target is printed as soon as it is done: both KL divergences and the total variation of a method's weighted
rows, beside those of as many exact samples (the first rows); where the rows are a policy's own, those of its exact
probabilities; the share of modes that were found; the tokens that were written and read, and the seconds without
compilation, both with training. results.json and results.md hold the same, and a figure shows KL against tokens where
matplotlib is installed. Targets and methods are listed in gfn_jax/bench/targets.py and methods.py.

What is wrong with the command ends in one line `error: ...` and exit code 2; --debug shows tracebacks, and so does
GFN_JAX_DEBUG=1.
"""

import sys

from gfn_jax.commands import posterior_bench


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return posterior_bench.main(argv or sys.argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
