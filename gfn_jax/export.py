r"""The command that exports: the adapter of a run as a PEFT folder, or merged into its base, with a model card.

    python -m gfn_jax.export --workdir=runs/arith-tiny --out=arith-adapter
    python -m gfn_jax.export --workdir=runs/arith-tiny --out=arith-model --merged
    python -m gfn_jax.export --workdir=runs/arith-tiny --out=arith-adapter --push_to_hub=OWNER/NAME

The newest checkpoint is taken, which is the one that `results.json` was measured with; --step=best takes the one that
validated best, --step=N any other that is still there. The card has the results of its own step or none. --push_to_hub
uploads what was written, as whoever `hf auth login` or HF_TOKEN says; a repository that is not there is made.

What is wrong with the command or its files ends in one line `error: ...` and exit code 2; --debug shows
tracebacks, and so does GFN_JAX_DEBUG=1.
"""

import sys

from gfn_jax.commands import export


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return export.main(argv or sys.argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
