"""How a run may end other than by finishing: each of these is one line for the person who launched it."""

import re


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
