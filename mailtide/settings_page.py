"""docs/settings.md, written from the types in ``schemas.config``: what stands behind a key there is its meaning here.

``python -m mailtide.settings_page [FOLDER]`` writes it; a test compares it with what the code says.
"""

from __future__ import annotations

import ast
import inspect
import io
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from mailtide.settings import UNITS, variables_of
from schemas.config import Seconds, Section, Settings, Time, Trigger

TOP = """\
# Settings

Written by `python -m mailtide.settings_page` from the types in `schemas/config.py`; a test keeps it true.

Each stands in `mailtide.toml` (or the file that `MAILTIDE_CONFIG` names) under its table, or in the environment, which wins.
`mailtide config check` names every mistake. Text is written in quotes in the file, times of day too: `quiet_start = "22:00"`, never `22`.
The type names the unit; a whole number counts what its meaning says. A duration is `"90 seconds"`, `"2 hours"`, `"3 days"`, `"1 week"`, or
a number of seconds. A share is a number from 0 to 1.

`MAILTIDE_KAFKA` is short for `kafka.bootstrap`, `MAILTIDE_SMTP` for `smtp.url`. `MAILTIDE_CACHE` (environment only) is the folder in which
fetched files are kept for all homes. On a `mailtide.toml` that a shop writes: [triggers.md](triggers.md), [lifecycle.toml](lifecycle.toml).
"""
PLAIN = {str: "text", int: "whole number", float: "number", bool: "true or false"}


def page() -> str:
    """The whole page."""
    parts = [TOP, _table("Above all tables", Settings)]
    for name, hint in get_type_hints(Settings).items():
        if isinstance(hint, type) and issubclass(hint, Section):
            parts.append(_table(f"[{name}]", hint))
    return "\n".join([*parts, _table("[[trigger]]", Trigger)])


def _table(title: str, section: type[Section]) -> str:
    rows = "".join(_rows(section))
    said = "" if section is Settings else f"{inspect.cleandoc(section.__doc__ or '').replace('``', '`')}\n\n"
    environment = "" if section is Trigger else " environment |"
    rule = "|---" * (4 if section is Trigger else 5) + "|"
    return f"## {title}\n\n{said}| key |{environment} type | default | meaning |\n{rule}\n{rows}"


def _rows(section: type[Section]) -> Iterator[str]:
    variables, hints, meanings = variables_of(section), get_type_hints(section, include_extras=True), _meanings(section)
    for field in msgspec.structs.fields(section):
        hint = hints[field.name]
        if section is not Trigger and field.name not in variables:
            continue  # a table of its own
        environment = "" if section is Trigger else f" `{variables[field.name]}` |"
        default = "none: must be given" if field.required else _default(field.default, hint)
        yield f"| `{field.name}` |{environment} {_kind(hint)} | {default} | {meanings.get(field.name, '')} |\n"


def _kind(hint: Any) -> str:
    if hint in (Seconds, Time):
        return "duration" if hint is Seconds else "duration above 0"
    if get_origin(hint) is Annotated:
        plain, meta = get_args(hint)
        named = {"port": "port, 0 to 65535", "share": "share"}.get((meta.extra or {}).get("type", ""))
        bounds = [f"at least {meta.ge:g}" if meta.ge is not None else "", f"at most {meta.le:g}" if meta.le is not None else ""]
        bounds += [f"above {meta.gt:g}" if meta.gt is not None else "", "not empty" if meta.min_length else ""]
        return named or ", ".join([PLAIN[plain], *filter(None, bounds)])
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(f'`"{choice}"`' for choice in get_args(hint))
    if get_origin(hint) is tuple:
        return "list of text"
    if isinstance(hint, UnionType):
        return " or ".join(_kind(one) for one in get_args(hint))
    return PLAIN[hint]


def _default(value: Any, hint: Any) -> str:
    if hint in (Seconds, Time):
        for unit in ("day", "hour", "minute"):
            if value and value % UNITS[unit] == 0:
                return f'`"{value / UNITS[unit]:g} {unit}{"s" * (value != UNITS[unit])}"`'
        return f'`"{value:g} seconds"`'
    if isinstance(value, tuple):
        return "`[]`"
    return f"`{msgspec.json.encode(value).decode()}`"


def _meanings(section: type[Section]) -> dict[str, str]:
    """The comment behind each key, by key."""
    source = inspect.getsource(section)
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.ClassDef)
    found = {
        each.target.id: comments.get(each.end_lineno or 0, "")
        for each in node.body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    }
    return {key: said.replace("|", "\\|").replace("<home>", "`<home>`") for key, said in found.items()}


if __name__ == "__main__":
    (Path(sys.argv[1] if len(sys.argv) > 1 else "docs") / "settings.md").write_text(page(), encoding="utf-8")
