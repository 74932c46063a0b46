"""The errors that a user's input can cause; each message is one sentence that says what to change."""


class DienFastError(ValueError):
    """Base of the errors below. The command line prints its message and exits with status 2."""


class DataError(DienFastError):
    """A table, file or schema cannot be used; the message names the file, column and row it knows."""


class CheckpointError(DienFastError):
    """A run directory or checkpoint is missing, corrupt, or does not fit the model."""
