"""Whatever a page or a docstring names of ours is there: links, paths, modules."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.unit.test_layout import FILES, ROOMS, TREES

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")
PATH = re.compile(rf"`((?:{'|'.join((*ROOMS, 'tests', 'docs', 'deploy', 'examples'))})/[\w./-]*[\w/])`")
DOTTED = re.compile(rf"``((?:{'|'.join(ROOMS)})(?:\.\w+)+)``")
# Topics, settings and files of a user's that begin like a room of ours.
OTHERS = re.compile(
    r"training\.examples|training\.(artifacts|\w+_\w+|interval|canary|replay|epsilon|rank)|mailtide\.(toml|forwarded|origin|reason|cut|writer)"
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_of_a_page(page: Path) -> None:
    text = page.read_text()
    dead = [
        link for link, _ in LINK.findall(text) if "://" not in link and not link.startswith("mailto:") and not (page.parent / link).exists()
    ]
    dead += [path for path in PATH.findall(text) if not (ROOT / path).exists()]
    assert dead == []


def docstrings(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def is_there(dotted: str) -> bool:
    """A module, or a name in one."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        name = ".".join(parts[:end])
        if name in FILES:
            rest = parts[end:]
            return not rest or re.search(rf"\b{rest[0]}\b", FILES[name].read_text()) is not None
    return importlib.util.find_spec(parts[0]) is None


@pytest.mark.parametrize("name", FILES)
def test_what_a_docstring_names(name: str) -> None:
    dead: list[str] = []
    for text in docstrings(TREES[name]):
        dead += [dotted for dotted in DOTTED.findall(text) if not OTHERS.fullmatch(dotted) and not is_there(dotted)]
        dead += [
            path
            for path in re.findall(rf"(?<![\w./])((?:{'|'.join(ROOMS)}|docs|deploy)/[\w/-]+\.(?:py|md|toml|json))", text)
            if not (ROOT / path).exists()
        ]
    assert dead == []
