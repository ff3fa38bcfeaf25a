"""The one place that reads ``mailtide.toml`` and the environment.

Order: default, then file (``MAILTIDE_CONFIG``, else ``mailtide.toml`` where it
stands), then environment. Names follow from the types in ``schemas.config``:
``[kafka] heap_mb`` is ``MAILTIDE_KAFKA_HEAP_MB``. ``MAILTIDE_KAFKA`` and
``MAILTIDE_SMTP`` are short for ``kafka.bootstrap`` and ``smtp.url``.
"""

from __future__ import annotations

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
        problems += _unknown(values, Settings, "", file, text)
        _convert(values, str(file), problems)
    if "trigger" not in values:
        defaults = tomllib.loads(DEFAULTS.read_text())
        _convert(defaults, str(DEFAULTS), problems)
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
        problems.append(f"{file}: can't be read ({error.strerror}); mend MAILTIDE_CONFIG")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.append(f"{file}: not TOML: {error}")
    return {}, ""


def _fields(section: type[Section]) -> dict[str, Any]:
    return get_type_hints(section)


def _section(hint: Any) -> type[Section] | None:
    if isinstance(hint, type) and issubclass(hint, Section):
        return hint
    if get_origin(hint) is tuple and get_args(hint) and get_args(hint)[0] is Trigger:
        return Trigger
    return None


def _unknown(values: Mapping[str, Any], section: type[Section], where: str, file: Path, text: str) -> list[str]:
    """A line for each key that no setting has, and for each single value that can't be one."""
    known = _fields(section)
    found: list[str] = []
    for key, value in values.items():
        name = f"{where}.{key}" if where else key
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            mend = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
            found.append(f"{file}:{_line(text, key)}: unknown key {name!r}; {mend}")
            continue
        inner = _section(known[key])
        if inner is None:
            found += _wrong(value, known[key], key, f"{file}:{_line(text, key)}: {name}")
        elif isinstance(value, dict):
            found += _unknown(value, inner, name, file, text)
        elif isinstance(value, list):
            for position, item in enumerate(value):
                if isinstance(item, dict):
                    found += _unknown(item, inner, f"{name}[{item.get('name', position)}]", file, text)
        else:
            found.append(f"{file}:{_line(text, key)}: {name} must be a table")
    return found


def _wrong(value: Any, hint: Any, key: str, where: str) -> list[str]:
    if key in DURATIONS and isinstance(value, str):
        return []
    try:
        msgspec.convert(value, hint, strict=False)
    except msgspec.ValidationError as error:
        return [f"{where} = {value!r}: {error}"]
    return []


def _line(text: str, key: str) -> int:
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(rf"\s*\[*\s*(\w+\.)*{re.escape(key)}\b", line):
            return number
    return 1


def _convert(values: dict[str, Any], file: str, problems: list[str]) -> None:
    """Durations in words become seconds, in place."""
    for key, value in list(values.items()):
        if isinstance(value, dict):
            _convert(value, file, problems)
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, dict):
                    _convert(item, file, problems)
        elif key in DURATIONS and isinstance(value, str):
            try:
                values[key] = duration(value)
            except ValueError as error:
                problems.append(f"{file}: {key}: {error}")


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
        value: Any = text
        if key in DURATIONS and not wrong:
            try:
                value = duration(text)
            except ValueError as error:
                problems.append(f"{variable}: {error}")
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
