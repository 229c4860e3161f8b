"""Several processes on this machine: `python launch/local.py --processes=2 --devices=4 -- --config=configs/arith.py`.

Behind `--` stand the flags of `gfn_jax.launch`, or `-m MODULE` and the flags of another command that knows of processes
(`gfn_jax.sample`, `gfn_jax.export`, `gfn_jax.certify`). The processes meet at a free port of this machine and share
their work as those of a cluster would, each with virtual devices on the CPU: it is for trying out what will run on many
hosts, and no faster.

The first process speaks for all; whatever another says has its rank in front. When one dies or fails, a line says so,
the others are ended, and the exit code is 1. Ctrl-C and SIGTERM are passed on: all save and stop, and the exit code is
143; a second one kills them.
"""

import sys

from gfn_jax.commands import local

if __name__ == "__main__":
    sys.exit(local.main(sys.argv, __doc__))
