r"""The command that measures: how far a policy is from the posterior that it was trained towards.

    python -m gfn_jax.certify --workdir=runs/arith-tiny
    python -m gfn_jax.certify --workdir=runs/arith-tiny --adapter=runs/other/adapter --twist=flow --particles=64
    python -m gfn_jax.certify --workdir=runs/arith-tiny --adapter=none  # the base itself

The run says what the target is: task, queries, reward, the temperature at its end. What is measured is the adapter of
its checkpoint, or another (--adapter: a PEFT folder or hub id, the workdir of another run, or none). The certificate
has bounds on log Z from either side, hence intervals for KL(q | pi) and KL(pi | q), and what else there is to know of
a sampler; with a --twist, sequential Monte Carlo's estimates of log Z beside it.

Exact samples, which the upper bounds need, come from rejection sampling: raise --proposals where none was accepted.
--out writes everything as JSON. What is wrong with the command or its files ends in one line `error: ...`, exit code 2.
"""

import sys

from gfn_jax.commands import certify


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return certify.main(argv or sys.argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
