"""``python -m dien_fast``: the command, also for launchers of several processes."""

import sys

from dien_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
