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
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from schemas.config import Seconds, Section, Settings, Time, Trigger
from schemas.errors import SettingsError

SHORT = {"MAILTIDE_KAFKA": ("kafka", "bootstrap"), "MAILTIDE_SMTP": ("smtp", "url")}
ELSEWHERE = {"MAILTIDE_CONFIG", "MAILTIDE_CACHE"}
UNITS = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86400.0, "week": 7 * 86400.0}
DEFAULTS = Path(__file__).with_name("defaults.toml")


def load(environment: Mapping[str, str] | None = None) -> Settings:
    """Settings as this process should use them.

    Raises SettingsError with one line that names the file or variable, the key and the mend.
    """
    variables = os.environ if environment is None else environment
    known = _variables().keys() | ELSEWHERE
    # A stranger's MAILTIDE_… variable is `config check`'s business; it must not stop a worker.
    problems, found = examined(None, {name: text for name, text in variables.items() if name in known})
    for problem in problems.values():
        raise SettingsError(problem)
    return found


def problems_and_settings(path: Path | None = None, environment: Mapping[str, str] | None = None) -> Settings | list[str]:
    """The settings, or every mistake that stands in the way, one line each."""
    problems, found = examined(path, environment)
    return list(problems.values()) or found


def examined(path: Path | None = None, environment: Mapping[str, str] | None = None) -> tuple[dict[str, str], Settings]:
    """Every mistake, one line each by the name of its setting, and the settings as they are without those."""
    variables = os.environ if environment is None else environment
    problems: dict[str, str] = {}
    file = path or Path(variables.get("MAILTIDE_CONFIG", "mailtide.toml"))
    values: dict[str, Any] = {}
    if path is not None or "MAILTIDE_CONFIG" in variables or file.exists():
        raw, text = _read(file, problems)
        values = _table(raw, Settings, "", file, places(text), problems)
    if "trigger" not in values:
        values |= _table(tomllib.loads(DEFAULTS.read_text()), Settings, "", DEFAULTS, {}, problems)
    _overlay(values, variables, problems)
    return problems, msgspec.convert(values, Settings, strict=False)


def _read(file: Path, problems: dict[str, str]) -> tuple[dict[str, Any], str]:
    try:
        text = file.read_text()
        return tomllib.loads(text), text
    except OSError as error:
        problems[""] = f"{file}: can't be read ({error.strerror}); name another file, or take MAILTIDE_CONFIG away"
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems[""] = f"{file}: not TOML: {error}"
    return {}, ""


def _fields(section: type[Section]) -> dict[str, Any]:
    return get_type_hints(section, include_extras=True)


def _section(hint: Any) -> type[Section] | None:
    if isinstance(hint, type) and issubclass(hint, Section):
        return hint
    if get_origin(hint) is tuple and get_args(hint) and get_args(hint)[0] is Trigger:
        return Trigger
    return None


def _table(
    raw: Mapping[str, Any], section: type[Section], where: str, file: Path, lines: Mapping[str, int], problems: dict[str, str]
) -> dict[str, Any]:
    """The table's values, durations in seconds. What can't be a setting is left out and told in ``problems``, as is what is missing.

    ``where`` is the table's place: "", "kafka", "trigger[0]".
    """
    known = _fields(section)
    made: dict[str, Any] = {}
    for key, value in raw.items():
        name = f"{where}.{key}" if where else key
        place = f"{file}:{lines.get(name, lines.get(where, 1))}"
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            mend = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
            problems[name] = f"{place}: unknown key {name!r}; {mend}"
            continue
        inner = _section(known[key])
        if inner is None:
            try:
                made[key] = _value(value, known[key])
            except ValueError as error:
                problems[name] = f"{place}: {name} = {value!r}: {error}"
        elif inner is Trigger and isinstance(value, list) and all(isinstance(item, dict) for item in value):
            made[key] = [_table(item, inner, f"{name}[{position}]", file, lines, problems) for position, item in enumerate(value)]
        elif inner is not Trigger and isinstance(value, dict):
            made[key] = _table(value, inner, name, file, lines, problems)
        else:
            problems[name] = f"{place}: {name} must be a table; write " + (f"[[{name}]]" if inner is Trigger else f"[{name}]")
    for field in msgspec.structs.fields(section):
        if field.required and field.name not in made:
            missing = f"{file}:{lines.get(where, 1)}: {where} has no {field.name!r}; give it one"
            problems.setdefault(f"{where}.{field.name}", missing)
            made[field.name] = where  # so that the rest can be examined
    return made


def _value(value: Any, hint: Any) -> Any:
    """The value as its type has it; ValueError with the mend where it can't be."""
    if hint in (Seconds, Time) and isinstance(value, str):
        value = duration(value)
    try:
        return msgspec.to_builtins(msgspec.convert(value, hint, strict=False))
    except msgspec.ValidationError as error:
        choices = ", ".join(repr(choice) for choice in get_args(hint) if choice) if get_origin(hint) is Literal else ""
        mend = f"; choose among {choices}" if choices else '; write it in quotes, as "22:00"' if hint is str else ""
        raise ValueError(f"{error}{mend}") from None


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


def _overlay(values: dict[str, Any], variables: Mapping[str, str], problems: dict[str, str]) -> None:
    names = _variables()
    for variable, text in variables.items():
        if not variable.startswith("MAILTIDE_") or variable in ELSEWHERE:
            continue
        place = names.get(variable)
        if place is None:
            near = difflib.get_close_matches(variable, names, 1)
            problems[variable] = f"{variable}: no such setting" + (f"; did you mean {near[0]}?" if near else "")
            continue
        section, key = place
        hint = _fields(Settings)[section] if section else Settings
        try:
            (values.setdefault(section, {}) if section else values)[key] = _value(text, _fields(hint)[key])
        except ValueError as error:
            problems[variable] = f"{variable} in the environment = {text!r}: {error}"


def variables_of(section: type[Section]) -> dict[str, str]:
    """The environment variable of each key of a section; the short one where there is one."""
    short = {place: variable for variable, place in SHORT.items()}
    return {
        key: short.get((table, key), variable)
        for variable, (table, key) in _variables().items()
        if (Settings if not table else _fields(Settings)[table]) is section
    }


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
