"""How a run may end other than by finishing: each of these is one line for the person who launched it."""


class TrainingDiverged(RuntimeError):
    """The loss, or the state it led to, is no longer finite."""


class TrainingStopped(Exception):
    """A signal ended the run between two steps; everything is saved.

    Attributes:
        exit_code: 128 + the signal's number, as a shell reports it (130 for Ctrl-C).
    """

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code
