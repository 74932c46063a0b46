"""Files with some of their bytes changed, for campaigns."""

from hypothesis import strategies as st

PIECES = [
    b"\x00",
    b"\xff",
    b'"',
    b"\n",
    b"\r",
    b",",
    b";",
    b"\t",
    b"|",
    b"::",
    b"{",
    b"[]",
    b"null",
    b"-1",
    b"1e999",
]
PIECES += [
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b'"' * 9,
    b"\n\n\n",
    b"," * 99,
    b"9" * 30,
    b"[" * 3000,
    b":token",
    b"\x1f\x8b",
]


def spoil(draw, content, most=3):
    """Return bytes with one change to ``most``."""
    for _ in range(draw(st.integers(1, most))):
        place = draw(st.integers(0, len(content)))
        change = draw(st.sampled_from(["cut", "flip", "flip", "flip", "remove", "insert", "insert"]))
        if change == "cut":
            content = content[:place]
        elif change == "remove":
            content = content[:place] + content[place + draw(st.integers(1, 40)) :]
        elif change == "insert":
            content = content[:place] + draw(st.sampled_from(PIECES)) + content[place:]
        elif content:
            place = min(place, len(content) - 1)
            content = content[:place] + bytes([content[place] ^ draw(st.integers(1, 255))]) + content[place + 1 :]
    return content
