"""What a command says while it is at work: progress with the time, or plain notes.

A record with `extra={"place": (done, total)}` says where the work is. One below INFO says nothing else, and is no line:
on a terminal the place is a bar beneath the lines, elsewhere it stands in the lines that break a long silence.
"""

import contextlib
import io
import logging
import pathlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, TextIO

from absl import logging as absl_logging


@contextlib.contextmanager
def heard(handler: logging.Handler, level: int = logging.INFO) -> Iterator[None]:
    """What the library says goes to `handler` alone, not again to one that another library gave the root.

    Args:
        handler: where to; it is closed at the end.
        level: of what is heard at least.
    """
    logger = logging.getLogger("gfn_jax")
    before = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(level)
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


@contextlib.contextmanager
def progress(debug: bool = False) -> Iterator[None]:
    """Progress on standard output, with the time; what orbax's threads say is heard with `debug` only.

    Where a checkpoint cannot be written they print hundreds of lines (on a full disk 325) about what is raised anyway
    where the run waits for them, and becomes the command's last line.
    """
    absl_logging.set_verbosity(absl_logging.WARNING if debug else absl_logging.FATAL)
    if not debug:
        sys.unraisablehook = lambda unraisable: None
    screen = Screen(sys.stdout)
    handler = Progress(screen)
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", datefmt="%H:%M:%S"))
    with contextlib.closing(screen), contextlib.redirect_stdout(screen), heard(handler, logging.DEBUG):
        try:
            yield
        except BaseException as error:  # what is said of it goes to standard error
            screen.note(f"{type(error).__name__}: {error}\n")
            raise


def keep(path: pathlib.Path) -> None:
    """From now on `path` gets, behind what is there, all that progress prints, and what it has printed until now.

    Raises:
        OSError: the file cannot be opened.
    """
    if isinstance(sys.stdout, Screen):
        sys.stdout.keep(path)


def note(text: str) -> None:
    """Writes a text that is printed elsewhere behind what progress has printed, in the file that `keep` has named."""
    if isinstance(sys.stdout, Screen):
        sys.stdout.note(text)


class Screen(io.TextIOBase):
    """Standard output with a memory and, where it is a terminal, a bar beneath the lines while a place is known."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._kept: io.TextIOBase = io.StringIO()
        self._bar: Any = None
        self._work: tuple[str, int] | None = None

    @property
    def shows_place(self) -> bool:
        """Whether a bar is there now."""
        return self._bar is not None

    def keep(self, path: pathlib.Path) -> None:
        """See `progress.keep`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        before, self._kept = self._kept, io.TextIOWrapper(path.open("ab"), encoding="utf-8", line_buffering=True)
        self.note(before.getvalue() if isinstance(before, io.StringIO) else "")

    def note(self, text: str) -> None:
        """Remembers without printing; a full disk is for the files that matter to complain of."""
        with contextlib.suppress(OSError):
            self._kept.write(text)

    def write(self, text: str) -> int:
        """Prints and remembers; whole lines above the bar, anything else ends it."""
        self.note(text)
        if self._bar is not None and text.endswith("\n"):
            self._bar.console.print(text, end="", soft_wrap=True, markup=False, highlight=False)
            return len(text)
        self.clear()
        return self._stream.write(text)

    def place(self, work: str, done: int, total: int) -> None:
        """Shows that so much of a work is done; nothing where the stream is no terminal, or all of it is."""
        if not self._stream.isatty() or done >= total:
            return self.clear()
        if self._bar is None:
            self._bar = _bar(self._stream)
            self._bar.start()
            self._bar.add_task(work, total=total, completed=done)
        elif self._work != (work, total):
            self._bar.reset(self._bar.task_ids[0], description=work, total=total, completed=done)
        self._bar.update(self._bar.task_ids[0], completed=done)
        self._work = work, total

    def clear(self) -> None:
        """Takes the bar away."""
        bar, self._bar, self._work = self._bar, None, None
        if bar is not None:
            bar.stop()

    def close(self) -> None:
        """Takes the bar away and closes the file; the stream stays open."""
        self.clear()
        with contextlib.suppress(OSError):
            self._kept.close()

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()


def _bar(stream: TextIO) -> Any:
    """A bar that disappears when it is stopped, drawn twice a second."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as Left

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        Left(),
        console=Console(file=stream),
        transient=True,
        refresh_per_second=2,
        redirect_stdout=False,
        redirect_stderr=False,
    )


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
        self._place: tuple[int, int] | None = None
        self._ended = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Prints a line, and remembers it unless it is a repetition; remembers the place."""
        place = getattr(record, "place", None)
        if record.levelno >= logging.INFO:
            super().emit(record)
            self._spoke = time.monotonic()
            if not hasattr(record, "repeated"):
                self._text, self._began, self._place = record.getMessage(), self._spoke, None
        if place is not None:
            self._place = place
            if isinstance(self.stream, Screen):
                self.stream.place(record.getMessage(), *place)

    def close(self) -> None:
        """Says nothing more by itself."""
        self._ended.set()
        super().close()

    def _beat(self) -> None:
        while not self._ended.wait(self._patience / 10):
            now = time.monotonic()
            shown = isinstance(self.stream, Screen) and self.stream.shows_place
            if self._text and now - self._spoke >= self._patience and not shown:
                place = "" if self._place is None else "; {} of {}".format(*self._place)
                text = f"  still: {self._text:.70}{place} ({now - self._began:.0f} s)"
                self.handle(logging.makeLogRecord({"msg": text, "levelno": logging.INFO, "repeated": True}))
