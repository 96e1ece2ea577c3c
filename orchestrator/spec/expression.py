"""Small expressions over a job (`model.dim % model.heads == 0`): constraints and conditions of a sweep.

Python's parser reads them, a white-list of node kinds decides what may stand in one, and a walk over the tree computes
the value. Nothing is compiled or evaluated as Python: no calls but the functions below, no attributes of values.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.wording import listed, nearest

MAX_CHARS = 500
_LARGEST_POWER = 64
_MOST_BITS = 4096
_MOST_DIGITS = 30


def _round(number: float, digits: int | None = None) -> float:
    """Round as Python does; a huge number of digits would keep it busy for ever."""
    if digits is not None and abs(digits) > _MOST_DIGITS:
        raise ExpressionError(f"round takes at most {_MOST_DIGITS} digits, not {digits}")
    return round(number, digits)


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "abs": abs, "ceil": math.ceil, "floor": math.floor, "len": len, "log": math.log, "log2": math.log2,
    "log10": math.log10, "max": max, "min": min, "round": _round, "sqrt": math.sqrt, "sum": sum,
}  # fmt: skip
_BINARY: Mapping[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip
_COMPARE: Mapping[type[ast.AST], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.In: lambda one, many: one in many, ast.NotIn: lambda one, many: one not in many,
}  # fmt: skip
_WORDS = {"true": True, "false": False, "null": None}


class ExpressionError(ValueError):
    """The expression cannot be read, or has no value for this job."""


@dataclass(frozen=True)
class Expression:
    """A parsed expression; `names` are the dotted paths of the job that it reads."""

    text: str
    names: tuple[str, ...]
    _tree: ast.expr

    def value(self, lookup: Callable[[str], Any]) -> Any:
        """Return its value; `lookup` gives the job's value at a path and raises KeyError where there is none.

        Raises ExpressionError when a name has no value or an operation does not fit its values.
        """
        try:
            return _value(self._tree, lookup)
        except ExpressionError:
            raise
        except KeyError as error:
            raise ExpressionError(f"the job has no {error.args[0]}") from error
        except (TypeError, ValueError, ArithmeticError, IndexError) as error:
            raise ExpressionError(str(error)) from error
        except RecursionError as error:
            raise ExpressionError("it is nested too deeply") from error

    def holds(self, lookup: Callable[[str], Any]) -> bool:
        """Say whether it is true of the job. Raises as `value`."""
        return bool(self.value(lookup))


def parse(text: str) -> Expression:
    """Read an expression. Raises ExpressionError saying what is not allowed in it."""
    if len(text) > MAX_CHARS:
        raise ExpressionError(f"an expression has at most {MAX_CHARS} characters, this one {len(text)}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        what = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ExpressionError(f"not an expression: {what}") from error
    names: dict[str, None] = {}
    try:
        _check(tree, names)
    except RecursionError as error:
        raise ExpressionError("not an expression: it is nested too deeply") from error
    return Expression(text, tuple(names), tree)


def checked(text: str) -> str:
    """Return the text when it is an expression (for pydantic). Raises ExpressionError, which is a ValueError."""
    parse(text)
    return text


def _path(node: ast.AST) -> str | None:
    """Return the dotted path that a name, an attribute or an index in a list spells; None for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        above = _path(node.value)
        return None if above is None else f"{above}.{node.attr}"
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and type(node.slice.value) is int:
        above = _path(node.value)
        return None if above is None else f"{above}.{node.slice.value}"
    return None


def _check(node: ast.AST, names: dict[str, None]) -> None:
    path = _path(node)
    if path is not None:
        if path not in _WORDS:
            names[path] = None
        return
    for child in _parts(node):
        _check(child, names)


def _parts(node: ast.AST) -> list[ast.expr]:
    """Return what a node of an allowed kind is made of. Raises ExpressionError for any other."""
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str | None):
        return []
    if isinstance(node, ast.BoolOp):
        return node.values
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub | ast.UAdd):
        return [node.operand]
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return [node.left, node.right]
    if isinstance(node, ast.Compare) and all(type(each) in _COMPARE for each in node.ops):
        return [node.left, *node.comparators]
    if isinstance(node, ast.List | ast.Tuple):
        return node.elts
    if isinstance(node, ast.Call):
        return _arguments(node)
    raise ExpressionError(
        f"'{ast.unparse(node)}' is not allowed: write paths of the job, numbers, text, lists, and or not, "
        f"+ - * / // % **, comparisons, in, and {listed(FUNCTIONS)}"
    )


def _arguments(node: ast.Call) -> list[ast.expr]:
    name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
    if name not in FUNCTIONS:
        close = nearest(name, FUNCTIONS)
        advice = f"did you mean {close}?" if close else f"there are {listed(FUNCTIONS)}"
        raise ExpressionError(f"no function is called '{name}': {advice}")
    if node.keywords:
        raise ExpressionError(f"{name} takes its values without names")
    return node.args


def _value(node: ast.AST, lookup: Callable[[str], Any]) -> Any:
    path = _path(node)
    if path is not None:
        return _WORDS[path] if path in _WORDS else lookup(path)
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.BoolOp):
        is_and = isinstance(node.op, ast.And)
        values = (bool(_value(each, lookup)) for each in node.values)
        return all(values) if is_and else any(values)
    if isinstance(node, ast.UnaryOp):
        inner = _value(node.operand, lookup)
        return (not inner) if isinstance(node.op, ast.Not) else -inner if isinstance(node.op, ast.USub) else +inner
    if isinstance(node, ast.BinOp):
        return _binary(node, _value(node.left, lookup), _value(node.right, lookup))
    if isinstance(node, ast.Compare):
        return _compare(node, lookup)
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(each, lookup) for each in node.elts]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return FUNCTIONS[node.func.id](*(_value(each, lookup) for each in node.args))
    raise ExpressionError(f"'{ast.unparse(node)}' has no value")


def _binary(node: ast.BinOp, left: Any, right: Any) -> Any:
    numbers = isinstance(left, int | float) and isinstance(right, int | float)
    if not numbers:  # text and lists would let a short expression fill the memory
        raise ExpressionError(f"'{ast.unparse(node)}' computes with {left!r} and {right!r}, which are not both numbers")
    if isinstance(node.op, ast.Pow) and abs(right) > _LARGEST_POWER:
        raise ExpressionError(f"'{ast.unparse(node)}' has a power above {_LARGEST_POWER}")
    bits = [abs(number).bit_length() for number in (left, right) if isinstance(number, int)]
    if bits and max(bits) > _MOST_BITS:  # powers of powers would fill the memory
        raise ExpressionError(f"'{ast.unparse(node)}' computes with numbers of more than {_MOST_BITS} bits")
    return _BINARY[type(node.op)](left, right)


def _compare(node: ast.Compare, lookup: Callable[[str], Any]) -> bool:
    left = _value(node.left, lookup)
    for op, comparator in zip(node.ops, node.comparators, strict=True):
        right = _value(comparator, lookup)
        if not _COMPARE[type(op)](_plain(left), _plain(right)):
            return False
        left = right
    return True


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
