"""What a full disk does, without one: the system ends a write with an error."""

import contextlib
import resource


@contextlib.contextmanager
def files_of_at_most(size):
    """Let no write go beyond ``size`` bytes of a file, in this process: "File too large"."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
