"""TOML from plain values; the standard library only reads it."""

ESCAPES = {'"': '\\"', "\\": "\\\\", "\x7f": "\\u007F"}


def toml_text(settings):
    """Return a TOML file that holds the settings, each on a line of its own."""
    return "".join(f"{_text(key)} = {_value(value)}\n" for key, value in settings.items())


def _value(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value)  # TOML writes inf and nan as Python does
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_text(key)} = {_value(item)}" for key, item in value.items()) + "}"
    return value.isoformat()


def _text(text):
    escaped = "".join(ESCAPES.get(letter, letter) for letter in text)
    return '"' + "".join(letter if letter >= " " else f"\\u{ord(letter):04X}" for letter in escaped) + '"'
