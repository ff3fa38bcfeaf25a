"""The examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib

import pytest

from tests.unit.test_layout import FILES


@pytest.mark.parametrize("name", [name for name, file in FILES.items() if ">>>" in file.read_text()])
def test_examples(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert failed == 0 and tried > 0
