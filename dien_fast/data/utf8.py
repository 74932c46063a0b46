"""Text in another encoding than UTF-8, in files and in their names: told by name, and how to convert it."""

from __future__ import annotations

import shlex
from pathlib import Path

from dien_fast.errors import DataError

# How much of a file shows its encoding, and its header of up to some ten thousand columns.
HEAD_BYTES = 1 << 20


def check_utf8(content: bytes, name: str) -> None:
    """Refuse text in another encoding than UTF-8; its last character may be cut.

    Args:
        content: the beginning of a file, or all of it.
        name: what the message calls the file.

    Raises:
        DataError: naming the encoding, and how to convert the file.
    """
    encoding = _encoding(content)
    if encoding is not None:
        raise DataError(not_utf8(name, encoding))


def check_name(path: str | Path) -> None:
    """Refuse a path that is not UTF-8 itself, which Arrow cannot open.

    Raises:
        DataError: showing it.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise DataError(f"{path}: the name is not UTF-8; rename the file or directory") from None


def _encoding(content: bytes) -> str | None:
    """Return the encoding of text that is not UTF-8, by iconv's name, and None for UTF-8."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    # Text has no zero bytes, but UTF-16 has one in each character of ASCII.
    even, odd = content[:4096:2], content[1:4096:2]
    if even.count(0) > 0.4 * len(even) > 1:
        return "UTF-16BE"
    if odd.count(0) > 0.4 * len(odd) > 1:
        return "UTF-16LE"
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        # A character cut at the end is no fault.
        if error.reason == "unexpected end of data" and len(content) >= HEAD_BYTES:
            return None
        # Latin-1 has control characters where Windows has dashes, quotes and the euro.
        return "WINDOWS-1252" if any(0x80 <= byte < 0xA0 for byte in content) else "LATIN1"
    return None


def not_utf8(name: str, encoding: str) -> str:
    """Return what to say of the file ``name``, which is in another encoding."""
    return (
        f"{name}: the text is not UTF-8 but, it seems, {encoding}; "
        f"convert it: iconv -f {encoding} -t UTF-8 {shlex.quote(name)} > {shlex.quote(f'utf8-{Path(name).name}')}"
    )
