"""Lines that people and log files read, in which data cannot pass for something else."""

from __future__ import annotations

import sys
from typing import TextIO


def visible(text: str) -> str:
    r"""Return ``text`` with every character that does not print written as its escape, as ``repr`` writes it.

    Names of columns and files, words, and what a client sends come into messages. A newline in them would begin
    a line of its own, an escape sequence of a terminal would overwrite the lines above, and a mark of direction
    would turn the order of the letters.

    Example:
        >>> visible("item\nepoch 9: auc 0.99 \x1b[2K")
        'item\\nepoch 9: auc 0.99 \\x1b[2K'
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def print_line(line: str, file: TextIO | None = None) -> None:
    """Print one line at once, which a pipe would otherwise hold back, with an escape for what does not print.

    Args:
        line: without the newline at its end.
        file: where it goes; None prints to stdout.
    """
    print(visible(line), file=sys.stdout if file is None else file, flush=True)
