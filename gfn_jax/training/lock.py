"""One process at a time in a folder: a lock that the system lets go of when its process ends, however it ends."""

import errno
import fcntl
import logging
import os
import pathlib
import socket
from typing import TextIO

_log = logging.getLogger("gfn_jax")
_held: dict[pathlib.Path, TextIO] = {}  # open until this process ends: closing a file gives up its lock


def hold(folder: pathlib.Path) -> None:
    """Takes FOLDER/.lock until this process ends; the process that has it may take it again.

    Raises:
        ValueError: another process has it; the message says which.
    """
    path = folder.resolve() / ".lock"
    held = _held.get(path)
    if held is not None and path.exists() and os.path.samestat(os.fstat(held.fileno()), path.stat()):
        return
    file = path.open("a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        owner = file.read().strip() or "a process that has only begun"
        file.close()
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise ValueError(
                f"{folder} is in use ({owner}); wait until that run has ended, or use another --workdir"
            ) from None
        _log.warning("%s cannot be locked (%s): see to it that no other run writes there", folder, error.strerror)
        return
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    _held[path] = file
