"""The little language of conditions in ``mailtide.toml``: names, numbers, text, comparisons, and, or, not, + - * /.

Parsed by Python's own parser and then held to a list of what may stand in it:
no calls, no attributes, nothing that runs.
"""

from __future__ import annotations

import ast
import difflib
import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from schemas.errors import SettingsError

Values = Mapping[str, Any]
Condition = Callable[[Values], bool]

_COMPARE: dict[type, Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_COUNT: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda one, other: one / other if other else 0.0,
}


def compile_condition(text: str, names: Collection[str], where: str) -> Condition:
    """A function of named values; empty text is always true.

    Raises SettingsError naming ``where``, the place in the text and the mend. A
    comparison of text with a number is false, never an error at run time.
    """
    if not text.strip():
        return lambda _values: True
    run = _build(_parsed(text, where), names, f"{where}: {text!r}")

    def condition(values: Values) -> bool:
        try:
            return bool(run(values))
        except TypeError:
            return False

    return condition


def faults(text: str, names: Collection[str]) -> Iterator[str]:
    """Everything that keeps a text from being a condition, each with its mend.

    >>> [said.split(";")[0] for said in faults("ordrs > 1 and vsits > 2", ["orders", "visits"])]
    ["column 1: 'ordrs' is not known", "column 15: 'vsits' is not known"]
    """
    try:
        said = [node for node in ast.walk(_parsed(text or "true", "")) if isinstance(node, ast.Name)]
        compile_condition(text, [node.id for node in said], "")
        yield from (f"column {column}: {unknown}" for column, unknown in sorted(_unknown(node, names) for node in said) if unknown)
    except SettingsError as error:
        yield str(error).removeprefix(": ").removeprefix(f"{text!r}: ")


def _parsed(text: str, where: str) -> ast.expr:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        column = getattr(error, "offset", None) or 1
        raise SettingsError(
            f"{where}: {text!r} is no condition (column {column}): write it as 'orders >= 2 and not ordered_since'"
        ) from None


def _build(node: ast.expr, names: Collection[str], where: str) -> Callable[[Values], Any]:
    if isinstance(node, ast.BoolOp):
        parts = [_build(part, names, where) for part in node.values]
        if isinstance(node.op, ast.And):
            return lambda values: all(part(values) for part in parts)
        return lambda values: any(part(values) for part in parts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        inner = _build(node.operand, names, where)
        return (lambda values: not inner(values)) if isinstance(node.op, ast.Not) else (lambda values: -inner(values))
    if isinstance(node, ast.Compare) and all(type(op) in _COMPARE for op in node.ops):
        return _comparison(node, names, where)
    if isinstance(node, ast.BinOp) and type(node.op) in _COUNT:
        count, left, right = _COUNT[type(node.op)], _build(node.left, names, where), _build(node.right, names, where)
        return lambda values: count(left(values), right(values))
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str):
        constant = node.value
        return lambda _values: constant
    if isinstance(node, ast.Name):
        return _name(node, names, where)
    raise SettingsError(
        f"{where}: column {node.col_offset + 1} holds what no condition may: use names, numbers, text, comparisons, and/or/not"
    )


def _comparison(node: ast.Compare, names: Collection[str], where: str) -> Callable[[Values], Any]:
    terms = [_build(term, names, where) for term in (node.left, *node.comparators)]
    tests = [_COMPARE[type(op)] for op in node.ops]

    def compare(values: Values) -> bool:
        found = [term(values) for term in terms]
        return all(test(one, other) for test, one, other in zip(tests, found, found[1:], strict=False))

    return compare


def _name(node: ast.Name, names: Collection[str], where: str) -> Callable[[Values], Any]:
    name = node.id
    if name in ("true", "false"):
        return lambda _values: name == "true"
    column, unknown = _unknown(node, names)
    if unknown:
        raise SettingsError(f"{where}: column {column}: {unknown}")
    return lambda values: values[name]


def _unknown(node: ast.Name, names: Collection[str]) -> tuple[int, str]:
    """The name's column, from 1, and what is wrong with it; empty where nothing is."""
    if node.id in names or node.id in ("true", "false"):
        return node.col_offset + 1, ""
    near = difflib.get_close_matches(node.id, names, 1)
    mend = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(names))}"
    return node.col_offset + 1, f"{node.id!r} is not known; {mend}"
