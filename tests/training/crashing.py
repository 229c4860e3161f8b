"""A command one of whose processes is killed at a certain place: `python crashing.py PLACE RANK MARK COMMAND...`.

PLACE is `step`, `save` or `restore`; the process of that rank kills itself there, once: the file MARK, which it leaves,
has the time of its death. COMMAND is `launch` with the flags of `gfn_jax.launch`, or `toy` with those of `toy.py`.
"""

import functools
import os
import pathlib
import runpy
import signal
import sys

STEP = 3  # the one that is killed in, or saved then


def set_trap(place: str, rank: str, mark: pathlib.Path) -> None:
    """Has the process die in the middle of a step, of a save in the background, or of a restore."""
    import orbax.checkpoint as ocp

    from gfn_jax.training.checkpoint import Checkpointer
    from gfn_jax.training.loop import _Session

    def die() -> None:
        if os.environ["JAX_PROCESS_ID"] == rank and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    owner, name = {
        "step": (_Session, "stepped"),  # started, and not waited for
        "save": (Checkpointer, "save"),  # copied, and being written
        "restore": (ocp.StandardCheckpointHandler, "restore"),  # read, and the others not told
    }[place]
    done = getattr(owner, name)

    @functools.wraps(done)
    def done_and_die(self, first, *arguments, **more):
        if place == "step" and first == STEP:
            self.run.checkpointer.wait()  # what was saved before is whole
            die()
        found = done(self, first, *arguments, **more)
        if place == "restore" or (place == "save" and first >= STEP):
            die()
        return found

    setattr(owner, name, done_and_die)


if __name__ == "__main__":
    place, rank, mark, command, *words = sys.argv[1:]
    set_trap(place, rank, pathlib.Path(mark))
    sys.argv = [command, *words]
    if command == "toy":
        runpy.run_path(str(pathlib.Path(__file__).with_name("toy.py")), run_name="__main__")
    else:
        runpy.run_module(f"gfn_jax.{command}", run_name="__main__", alter_sys=True)
