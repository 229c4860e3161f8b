"""How fast a step is, part by part, beside what this machine could do: a roofline.

    python -m gfn_jax.benchmark --config=configs/benchmark.py:a
    python -m gfn_jax.benchmark --config=configs/benchmark.py:b --config.model.width=768 --output=FOLDER
    python -m gfn_jax.benchmark --config=configs/benchmark.py:tiny --scaling --growth --trace=FOLDER
    python -m gfn_jax.benchmark --config=configs/benchmark.py:gptj --output=FOLDER     # an accelerator of 80 GB

`make benchmark` runs the presets a and b, and growth, on one thread: the parts' and the rates' alike.

Any shape, with random weights: nothing is downloaded. Rollout, reward, the replay buffer, the update and the whole step
are compiled, warmed up and timed; medians, spread, rates and peak memory are printed. Where Y is more than the stop,
the packed reward is timed beside a pass per prefix; a continuation's prefixes take one pass in any case. "Limit" is the
longer of two times: the counted operations of a part's matrix products (gfn_jax/models/flops.py) over the rate at which
this machine multiplies large matrices, and the bytes that it must read and write (weights once a pass, caches, moments)
over the rate at which it copies. "matrix" and "copy" are the shares of these rates that a part reaches. MFU is of the
maker's peak where the chip is known, else of the measured rate.

--scaling repeats the step on 1, 2, 4, ... devices with as many times the queries; --growth times the parts at 1, 2 and
4 times the samples, queries, prompt and horizon and at 1, 10 and 100 times the buffer's capacity, and fits powers;
--trace writes a profile of three steps. --output is a folder for benchmark.json, roofline.png and the other pictures.

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
