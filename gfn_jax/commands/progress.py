"""What a command says while it is at work: progress with the time, or plain notes."""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from absl import logging as absl_logging


@contextlib.contextmanager
def heard(handler: logging.Handler) -> Iterator[None]:
    """What the library says goes to `handler` alone, not again to one that another library gave the root."""
    logger = logging.getLogger("gfn_jax")
    before = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        handler.close()
        logger.handlers, logger.propagate = before[0], before[2]
        logger.setLevel(before[1])


def notes() -> contextlib.AbstractContextManager[None]:
    """The library's notes and warnings as plain lines on standard error."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    return heard(logging.StreamHandler(sys.stderr))


def progress(debug: bool = False) -> contextlib.AbstractContextManager[None]:
    """Progress on standard output, with the time; what orbax's threads say is heard with `debug` only.

    Where a checkpoint cannot be written they print hundreds of lines (on a full disk 325) about what is raised anyway
    where the run waits for them, and becomes the command's last line.
    """
    absl_logging.set_verbosity(absl_logging.WARNING if debug else absl_logging.FATAL)
    if not debug:
        sys.unraisablehook = lambda unraisable: None
    handler = Progress(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", datefmt="%H:%M:%S"))
    return heard(handler)


class Progress(logging.StreamHandler):
    """Prints log lines, and where a line takes long to be followed by another (a compilation), that it still does.

    Args:
        stream: where to.
        patience: seconds of silence that a person is asked to bear.
    """

    def __init__(self, stream: Any, patience: float = 9.0):
        super().__init__(stream)
        self._patience = patience
        self._text, self._began, self._spoke = "", 0.0, time.monotonic()
        self._ended = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Prints a line, and remembers it unless it is a repetition."""
        super().emit(record)
        self._spoke = time.monotonic()
        if not hasattr(record, "repeated"):
            self._text, self._began = record.getMessage(), self._spoke

    def close(self) -> None:
        """Says nothing more by itself."""
        self._ended.set()
        super().close()

    def _beat(self) -> None:
        while not self._ended.wait(self._patience / 10):
            now = time.monotonic()
            if self._text and now - self._spoke >= self._patience:
                text = f"  still: {self._text:.70} ({now - self._began:.0f} s)"
                self.handle(logging.makeLogRecord({"msg": text, "repeated": True}))
