"""The program ``dien-fast``, which Ctrl-C ends without a traceback while it imports PyTorch, which takes seconds.

It is no part of the package, whose import begins with that of PyTorch.
"""

from __future__ import annotations

import os
import signal
import sys


def main() -> int:
    """Run the command and return its exit status, as :func:`dien_fast.cli.main` does."""
    # A shell lets programs in the background ignore Ctrl-C.
    listens = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if listens:
        signal.signal(signal.SIGINT, _leave)
    from dien_fast.cli import main as command

    if listens:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return command()
    except KeyboardInterrupt:
        # A second one, while the first was being answered.
        return 130
    finally:
        if listens:
            # The interpreter, which is about to end, would print a traceback.
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _leave(*_: object) -> None:
    """End the process at once: half-imported modules have nothing to clean up, and might catch an exception."""
    os.write(2, b"\ndien-fast: interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
