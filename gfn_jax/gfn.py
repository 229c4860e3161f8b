"""GFlowNet fine-tuning of language models: `gfn COMMAND`.

gfn train arith                 # the model that the project ships, on a laptop, in minutes
gfn evaluate runs/arith-tiny    # again, on any split, with any adapter
gfn sample runs/arith-tiny      # what the policy writes
"""

import sys

from gfn_jax.commands import gfn


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return gfn.main(argv or sys.argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
