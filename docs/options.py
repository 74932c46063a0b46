"""Writes the options of the command as tables, which pages include."""

from __future__ import annotations

import argparse
from pathlib import Path

from dien_fast.cli import build_parser


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command."""
    (action,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(action.choices)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _row(action: argparse.Action) -> str:
    value = action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else "")
    names = action.option_strings or [str(action.metavar)]
    shown = f"`{names[-1]} {value}`" if value and action.option_strings and action.nargs != 0 else f"`{names[-1]}`"
    return f"| {_cell(shown)} | {_cell(action.help or '')} |"


def tables(parser: argparse.ArgumentParser) -> str:
    """Return a Markdown table for each group of options."""
    blocks = []
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if not isinstance(action, argparse._HelpAction)]
        if actions:
            title = {"positional arguments": "Arguments", "options": "Options"}.get(group.title or "", group.title)
            rows = "\n".join(map(_row, actions))
            blocks.append(
                f"**{str(title)[:1].upper()}{str(title)[1:]}**\n\n| option | meaning |\n|---|---|\n{rows}\n"
            )
    return "\n".join(blocks)


def write(directory: Path) -> None:
    """Write ``COMMAND.md`` for each command."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, parser in subparsers(build_parser()).items():
        path, text = directory / f"{name}.md", tables(parser)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
