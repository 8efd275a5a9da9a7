# SPDX-License-Identifier: Apache-2.0
"""Mutants of a Python module: one small change of its syntax tree each.

A mutant is put into the text where its node stands, so all other lines stay as they are. What no
test can be asked to notice is left alone: docstrings, annotations, decorators, words for people.
"""

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass

_SWAPS: dict[type, type] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
_CALLS = {"all": "any", "any": "all", "min": "max", "max": "min"}
_Node = ast.expr | ast.stmt
_LEFT_ALONE = (ast.JoinedStr, ast.Import, ast.ImportFrom)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One change of a module's text."""

    line: int
    before: str
    after: str
    """Both in one line, as ast writes them."""
    text: str
    """The complete text of the module with the change."""


def mutants(source: str) -> list[Mutant]:
    """All mutants of a module that compile, in the order of its text."""
    found: list[Mutant] = []
    for node in _nodes(ast.parse(source)):
        place, changed = _change(node)
        if changed is None:
            continue
        text = _replaced(source, place, changed)
        try:
            compile(text, "mutant", "exec")
        except SyntaxError:
            continue
        before, after = (" ".join(ast.unparse(tree).split()) for tree in (place, changed))
        found.append(Mutant(line=place.lineno, before=before, after=after, text=text))
    return found


def _nodes(parent: ast.AST) -> Iterator[_Node]:
    """Everything that may be changed, outer nodes first."""
    for name, value in ast.iter_fields(parent):
        if name in {"annotation", "returns", "decorator_list"}:
            continue
        for node in value if isinstance(value, list) else [value]:
            if not isinstance(node, ast.AST) or isinstance(node, _LEFT_ALONE):
                continue
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                continue  # a docstring
            if isinstance(node, ast.Assign) and _is_enumeration(parent):
                continue  # its values are for outputs, which have tests of their own
            if isinstance(node, _Node):
                yield node
            yield from _nodes(node)


def _change(node: _Node) -> tuple[_Node, _Node | None]:
    """What is exchanged at one node, and for what; None: nothing."""
    match node:
        case ast.IfExp(test=test) | ast.If(test=test):
            return test, ast.UnaryOp(ast.Not(), test)
        case ast.Constant():
            return node, _constant(node.value)
        case ast.stmt():
            return node, _statement(node)
        case _:
            return node, _expression(node)


def _expression(node: ast.expr) -> ast.expr | None:
    match node:
        case ast.Compare(ops=[operator]) if type(operator) in _SWAPS:
            return _with(node, ops=[_SWAPS[type(operator)]()])
        case ast.BoolOp(op=operator) | ast.BinOp(op=operator) if type(operator) in _SWAPS:
            return _with(node, op=_SWAPS[type(operator)]())
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return operand
        case ast.Call(func=ast.Name(id=name)) if name in _CALLS:
            return _with(node, func=ast.Name(_CALLS[name]))
        case _:
            return None


def _constant(value: object) -> ast.Constant | None:
    match value:
        case bool():
            return ast.Constant(not value)
        case int():
            return ast.Constant(value + 1)
        case str() if value and " " not in value:
            return ast.Constant(f"{value}XX")
        case _:
            return None


def _statement(node: ast.stmt) -> ast.stmt | None:
    match node:
        case ast.Return(value=ast.AST() as value) if not _is_nothing(value):
            return ast.Return(ast.Constant(None))
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Delete() | ast.Raise():
            return ast.Pass()
        case ast.Assign(targets=[ast.Subscript() | ast.Attribute()]):
            return ast.Pass()
        case ast.Break():
            return ast.Continue()
        case ast.Continue():
            return ast.Break()
        case _:
            return None


def _is_enumeration(node: ast.AST) -> bool:
    """Whether a node is a class of named words. An enumeration of numbers would be the kernel's."""
    bases = node.bases if isinstance(node, ast.ClassDef) else []
    return any(isinstance(base, ast.Name) and base.id in {"Enum", "StrEnum"} for base in bases)


def _is_nothing(node: ast.AST) -> bool:
    """Whether it is None, or another constant that counts as little."""
    return isinstance(node, ast.Constant) and not node.value


def _with(node: ast.expr, **fields: object) -> ast.expr:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _replaced(source: str, node: _Node, changed: _Node) -> str:
    """The text with what stands at one node exchanged. Columns are of its bytes."""
    text = ast.unparse(changed)
    if isinstance(changed, ast.expr):
        text = f"({text})"
    lines = source.encode().splitlines(keepends=True)
    first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
    before = b"".join(lines[:first]) + lines[first][: node.col_offset]
    after = lines[last][node.end_col_offset :] + b"".join(lines[last + 1 :])
    return (before + text.encode() + after).decode()
