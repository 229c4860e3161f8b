r"""The command that samples: completions of prompts by a base and an adapter, with log q and log R.

    python -m gfn_jax.sample --model=tiny-arithmetic --adapter=runs/arith-tiny --calculator \
        --characters="0123456789+-=, " --prompt="Question: 6 - 0 - 4 = ? Answer:" --samples=4

log q is the policy's log-probability of the whole completion, its stop included, under the constraint; log R that of
completion and answer (or stop) under the base alone. Both are in nats and at temperature 1, whatever --temperature.
Every batch is printed as soon as it is drawn; notes and errors go to standard error.

With --workdir=RUN everything is as in that run, but for the flags that are given: its base and adapter, prompts (the
first --queries of a --split, unless there is a --prompt), tool, tokens, lengths and reward.

With the workdir of a run as adapter, prompts begin and the calculator reckons as in that run (see --bos,
--max_abs_value). A large base goes onto several devices with --fsdp or --tensor, or into 8 or 4 bits with --quantize.

What is wrong with the command or its files ends in one line `error: ...` and exit code 2; --debug shows
tracebacks, and so does GFN_JAX_DEBUG=1.
"""

import sys

from gfn_jax.commands import sample


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return sample.main(argv or sys.argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
