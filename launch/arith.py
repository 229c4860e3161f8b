"""The main job under a name of its own: `python launch/arith.py --workdir=DIR`, from any folder.

The flags are those of `gfn_jax.launch`; `--config.KEY=VALUE` and another `--config` work as there.
"""

import pathlib
import sys

from gfn_jax.commands import train
from gfn_jax.commands.config_flag import with_default

CONFIG = pathlib.Path(__file__).resolve().parents[1] / "configs" / "arith.py"

if __name__ == "__main__":
    sys.exit(train.main(with_default(sys.argv, str(CONFIG)), __doc__))
