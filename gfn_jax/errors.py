"""How a run may end other than by finishing: each of these is one line for the person who launched it."""

import contextlib
import re
from collections.abc import Iterator


class UserCodeError(ValueError):
    """What a user's own config, function or task raised, or returned instead of what was asked for."""


@contextlib.contextmanager
def user_code(name: str, passed: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Whatever is raised inside is the user's fault, and is said to be that of `name`.

    Args:
        name: the user's file or function.
        passed: what is raised as it is, being a message to the person at the terminal.
    """
    try:
        yield
    except passed:
        raise
    except Exception as error:
        raise UserCodeError(f"{name} raised {type(error).__name__}: {error} (--debug shows where)") from error


class TrainingDiverged(RuntimeError):
    """The loss, or the state it led to, is no longer finite."""


class EvaluationFailed(RuntimeError):
    """A measurement could not be made, or gave what is no number; the state that was to be measured is saved."""


class TrainingStopped(Exception):
    """A signal ended the run between two steps, or during its report; everything is saved.

    Attributes:
        exit_code: 128 + the signal's number, as a shell reports it (130 for Ctrl-C).
    """

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def first_line(error: BaseException) -> str:
    """Type and first line of an exception; of its cause, where a library wrapped it in a bare one."""
    if type(error) is Exception and error.__cause__ is not None:
        error = error.__cause__
    lines = re.sub(r"\[Errno \d+\] ", "", str(error)).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
