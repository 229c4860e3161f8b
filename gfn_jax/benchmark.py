"""How fast a step is, part by part, beside what its matrix products alone would take.

    python -m gfn_jax.benchmark --config=configs/benchmark.py:a
    python -m gfn_jax.benchmark --config=configs/benchmark.py:b --config.model.width=768 --output=b.json

`make benchmark` runs both presets on one thread, which the limit below assumes.

Any shape, with random weights: nothing is downloaded. Each part is compiled, warmed up and timed; the medians, their
spread, rates and peak memory are printed and written as JSON. Where Y is more than the stop, the packed reward is timed
beside a pass per prefix; a continuation's prefixes take one pass in any case. "Limit" is the counted operations of a
part's matrix products (gfn_jax/models/flops.py) over the rate at which this machine multiplies large float matrices.

--config.KEY=VALUE changes one value of the config. What is wrong with the command or its config ends in one line
`error: ...` and exit code 2; --debug shows tracebacks, and so does GFN_JAX_DEBUG=1.
"""

import sys

from gfn_jax.commands import benchmark


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return benchmark.main(argv or sys.argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
