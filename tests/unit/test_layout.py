"""The house stays one that a newcomer finds their way in: no import goes round, no room is too full, no class name stands twice."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.paths import ROOT

ROOMS = ("mailtide", "schemas", "transport", "models", "streams", "training", "monitoring", "benchmarks")
FULL = 14  # modules in a folder; more are two folders


def modules() -> Iterator[tuple[str, Path]]:
    """Each module's dotted name, and its file."""
    for room in ROOMS:
        for file in sorted((ROOT / room).rglob("*.py")):
            dotted = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            yield dotted.removesuffix(".__init__"), file


FILES = dict(modules())
TREES = {name: ast.parse(file.read_text()) for name, file in FILES.items()}


def imports(name: str) -> set[str]:
    """The modules of ours that this one imports anywhere: at its top, within functions, under TYPE_CHECKING."""
    wanted: set[str] = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ImportFrom) and node.module:
            wanted |= {f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in FILES else node.module for alias in node.names}
        elif isinstance(node, ast.Import):
            wanted |= {alias.name for alias in node.names}
    return wanted & FILES.keys()


def test_no_import_goes_round() -> None:
    try:
        TopologicalSorter({name: imports(name) for name in FILES}).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_no_room_is_too_full() -> None:
    counts = Counter(file.parent for file in FILES.values() if file.name != "__init__.py")
    assert {str(folder.relative_to(ROOT)): count for folder, count in counts.items() if count > FULL} == {}


def test_no_class_name_stands_twice() -> None:
    places = defaultdict(list)
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(name)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


@pytest.mark.parametrize("name", FILES)
def test_a_module_says_what_it_holds(name: str) -> None:
    """Its first line, for somebody who has never seen it; a package that holds nothing itself needs none."""
    if FILES[name].read_text().strip() and not name.startswith("benchmarks.peers"):
        assert ast.get_docstring(TREES[name]), f"{name} has no docstring"
