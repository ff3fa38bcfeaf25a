"""The one place that reads ``mailtide.toml`` and the environment.

Order: default, then file (``MAILTIDE_CONFIG``, else ``mailtide.toml`` where it
stands), then environment. Names follow from the types in ``schemas.config``:
``[kafka] heap_mb`` is ``MAILTIDE_KAFKA_HEAP_MB``. ``MAILTIDE_KAFKA`` and
``MAILTIDE_SMTP`` are short for ``kafka.bootstrap`` and ``smtp.url``.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import msgspec

from schemas.config import Section, Settings, Trigger
from schemas.errors import SettingsError

SHORT = {"MAILTIDE_KAFKA": ("kafka", "bootstrap"), "MAILTIDE_SMTP": ("smtp", "url")}
ELSEWHERE = {"MAILTIDE_CONFIG", "MAILTIDE_CACHE"}
UNITS = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86400.0, "week": 7 * 86400.0}
DURATIONS = {
    "wait",
    "use_by",
    "re_entry",
    "cap_window",
    "interval",
    "attribution",
    "canary_time",
    "timeout",
    "session_timeout",
    "queue_seconds",
    "patience",
}
DEFAULTS = Path(__file__).with_name("defaults.toml")


def load(environment: Mapping[str, str] | None = None) -> Settings:
    """Settings as this process should use them.

    Raises SettingsError with one line that names the file or variable, the key and the mend.
    """
    variables = os.environ if environment is None else environment
    known = _variables().keys() | ELSEWHERE
    # A stranger's MAILTIDE_… variable is `config check`'s business; it must not stop a worker.
    found = problems_and_settings(environment={name: text for name, text in variables.items() if name in known})
    if isinstance(found, Settings):
        return found
    raise SettingsError(found[0])


def problems_and_settings(path: Path | None = None, environment: Mapping[str, str] | None = None) -> Settings | list[str]:
    """The settings, or every mistake that stands in the way, one line each."""
    variables = os.environ if environment is None else environment
    problems: list[str] = []
    file = path or Path(variables.get("MAILTIDE_CONFIG", "mailtide.toml"))
    values: dict[str, Any] = {}
    if path is not None or "MAILTIDE_CONFIG" in variables or file.exists():
        values, text = _read(file, problems)
        problems += _mistakes(values, Settings, "", file, places(text))
        _convert(values)
    if "trigger" not in values:
        defaults = tomllib.loads(DEFAULTS.read_text())
        _convert(defaults)
        values["trigger"] = defaults["trigger"]
    _overlay(values, variables, problems)
    if problems:
        return problems
    try:
        return msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        return [f"{file}: {error}"]


def _read(file: Path, problems: list[str]) -> tuple[dict[str, Any], str]:
    try:
        text = file.read_text()
        return tomllib.loads(text), text
    except OSError as error:
        problems.append(f"{file}: can't be read ({error.strerror}); name another file, or take MAILTIDE_CONFIG away")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.append(f"{file}: not TOML: {error}")
    return {}, ""


def _fields(section: type[Section]) -> dict[str, Any]:
    return get_type_hints(section, include_extras=True)


def _section(hint: Any) -> type[Section] | None:
    if isinstance(hint, type) and issubclass(hint, Section):
        return hint
    if get_origin(hint) is tuple and get_args(hint) and get_args(hint)[0] is Trigger:
        return Trigger
    return None


def _mistakes(values: Mapping[str, Any], section: type[Section], where: str, file: Path, lines: Mapping[str, int]) -> list[str]:
    """A line for each key that no setting has or that is missing, and for each single value that can't be one.

    ``where`` is the table's place: "", "kafka", "trigger[0]".
    """
    known = _fields(section)
    found: list[str] = []
    for key, value in values.items():
        name = f"{where}.{key}" if where else key
        place = f"{file}:{lines.get(name, lines.get(where, 1))}"
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            mend = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
            found.append(f"{place}: unknown key {name!r}; {mend}")
            continue
        inner = _section(known[key])
        if inner is None:
            found += _wrong(value, known[key], key, f"{place}: {name}")
        elif isinstance(value, dict) and inner is not Trigger:
            found += _mistakes(value, inner, name, file, lines)
        elif isinstance(value, list) and inner is Trigger:
            for position, item in enumerate(value):
                if isinstance(item, dict):
                    found += _mistakes(item, inner, f"{name}[{position}]", file, lines)
        else:
            found.append(f"{place}: {name} must be a table; write [{name}] or, for triggers, [[{name}]]")
    missing = [field.name for field in msgspec.structs.fields(section) if field.required and field.name not in values]
    return found + [f"{file}:{lines.get(where, 1)}: {where} has no {key!r}; give it one" for key in missing]


def _wrong(value: Any, hint: Any, key: str, where: str) -> list[str]:
    try:
        if key in DURATIONS and isinstance(value, str):
            duration(value)
        else:
            msgspec.convert(value, hint, strict=False)
    except ValueError as error:  # msgspec.ValidationError is one
        return [f"{where} = {value!r}: {error}"]
    return []


def places(text: str) -> dict[str, int]:
    r"""The line, from 1, of each table and key of a TOML text, by its name: "kafka", "kafka.port", "trigger[1].wait".

    >>> places("[kafka]\nport = 1\n[[trigger]]\n[[trigger]]\nwait = 2")["trigger[1].wait"]
    5
    """
    found: dict[str, int] = {}
    counts: dict[str, int] = {}
    where = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*(\[\[?)\s*([\w.-]+)\s*\]", line):
            where = header[2]
            if header[1] == "[[":
                counts[where] = counts.get(where, -1) + 1
                found.setdefault(where, number)
                where = f"{where}[{counts[where]}]"
            found.setdefault(where, number)
        elif key := re.match(r"\s*([\w.-]+)\s*=", line):
            found.setdefault(f"{where}.{key[1]}" if where else key[1], number)
    return found


def _convert(values: dict[str, Any]) -> None:
    """Durations in words become seconds, in place; one that can't is left for ``_mistakes`` to name."""
    for key, value in values.items():
        if isinstance(value, dict):
            _convert(value)
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, dict):
                    _convert(item)
        elif key in DURATIONS and isinstance(value, str):
            with contextlib.suppress(ValueError):
                values[key] = duration(value)


def duration(text: str) -> float:
    """Seconds of ``"90"``, ``"90 seconds"``, ``"1.5 hours"``, ``"2 days"``.

    >>> duration("1.5 hours")
    5400.0
    """
    matched = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text)
    unit = (matched.group(2).rstrip("s") or "second") if matched else ""
    if matched is None or unit not in UNITS:
        raise ValueError(f"{text!r} is no duration; write it as '90 seconds', '2 hours' or '3 days'")
    return float(matched.group(1)) * UNITS[unit]


def _overlay(values: dict[str, Any], variables: Mapping[str, str], problems: list[str]) -> None:
    names = _variables()
    for variable, text in variables.items():
        if not variable.startswith("MAILTIDE_") or variable in ELSEWHERE:
            continue
        place = names.get(variable)
        if place is None:
            near = difflib.get_close_matches(variable, names, 1)
            problems.append(f"{variable}: no such setting" + (f"; did you mean {near[0]}?" if near else ""))
            continue
        section, key = place
        hint = _fields(Settings)[section] if section else Settings
        wrong = _wrong(text, _fields(hint)[key], key, f"{variable} in the environment")
        problems += wrong
        value: Any = duration(text) if key in DURATIONS and not wrong else text
        (values.setdefault(section, {}) if section else values)[key] = value


def _variables() -> dict[str, tuple[str, str]]:
    names = dict(SHORT)
    for key, hint in _fields(Settings).items():
        inner = _section(hint)
        if inner is None:
            names[f"MAILTIDE_{key.upper()}"] = ("", key)
        elif inner is not Trigger:
            for name in _fields(inner):
                names[f"MAILTIDE_{key.upper()}_{name.upper()}"] = (key, name)
    return names
