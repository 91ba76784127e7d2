"""Expressions over named columns: `num_turns <= 8 and not truncated`, `0.8*accuracy + 0.2*format`.

The grammar is a part of Python's. A text is parsed once and becomes closures over a whitelist; nothing of it is ever executed.
On columns that have values an expression is worth what Python would say. A column without one is None, which means unknown:
arithmetic and comparisons with it are unknown, and `and`, `or`, `not` follow Kleene's logic (False and unknown is False).
"""

import ast
import itertools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gym_bridge.errors import ConfigError, DataError, nearest

MAX_LENGTH = 2000
"""Characters of an expression."""
MAX_DEPTH = 100
"""Operators within operators."""
MAX_EXPONENT = 1024
"""Powers beyond it, and whole numbers of more bits, have no value."""
MAX_DIGITS = 20
"""What `round` may be asked for."""
MAX_LISTED = 30
"""Known names that an error lists where none is near."""

ALLOWED = (
    "column names, numbers, 'strings', True, False, None, + - * / // % **, < <= > >= == !=, in ['a', 'b'], is None, and, or, not, "
    "min() max() abs() len() round()"
)

Evaluate = Callable[[Mapping[str, Any]], Any]
Clash = Callable[[Mapping[str, Any]], DataError]

_NUMBERS = (int, float)
_SPELLINGS = {"true": "True", "false": "False", "null": "None", "nil": "None"}


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed expression. Pickles as its text."""

    text: str
    names: frozenset[str] = field(compare=False)
    """Columns that it reads; `reward_components.accuracy` is one name."""
    value: Evaluate = field(compare=False, repr=False)
    """`value(columns)`: what it is worth for these columns; None when that is unknown, a division by zero, or no real number that
    a float holds. Raises DataError, without path and line, for types that do not go together."""

    def __reduce__(self):
        return parse_expression, (self.text,)


def parse_expression(text: str) -> Expression:
    """The expression that `text` spells. Raises ConfigError that shows the place and what is allowed."""
    if len(text) > MAX_LENGTH:
        raise ConfigError(f"an expression of {len(text)} characters; expected at most {MAX_LENGTH}")
    text = text.strip()
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError as error:
        raise _refusal(text, (error.offset or len(text) + 1) - 1, error.msg) from error  # without an offset it ends too early
    except (ValueError, RecursionError, MemoryError) as error:
        raise _refusal(text, 0, f"cannot be read ({error})") from error
    compiler = _Compiler(text)
    value = compiler.compile(tree.body)
    return Expression(text, frozenset(compiler.names), value)


def check_names(expression: Expression, known: Iterable[str]) -> None:
    """Raises ConfigError for a name of the expression that is not known; it tells the nearest one."""
    known = set(known)
    for name in sorted(expression.names - known):
        hint = nearest(name, known, at_most=MAX_LISTED)
        raise ConfigError(f"{expression.text!r} names no known column {name!r}{hint or '; --columns lists the known ones'}")


def _refusal(text: str, column: int, problem: str) -> ConfigError:
    """`column` counts characters from 0."""
    at = f" at {text[column : column + 20]!r}" if text[column:] else ""
    return ConfigError(f"expression {text!r}: {problem} (column {column + 1}{at}); allowed are {ALLOWED}")


class _Compiler:
    """Turns the nodes of one text into closures and collects its names."""

    def __init__(self, text: str):
        self.text = text
        self.names: set[str] = set()
        self._depth = 0

    def compile(self, node: ast.AST) -> Evaluate:
        compile_node = _COMPILERS.get(type(node))
        if compile_node is None:
            raise self.refusal(node, f"{type(node).__name__} is not allowed")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self.refusal(node, f"more than {MAX_DEPTH} operators within each other")
        compiled = compile_node(self, node)
        self._depth -= 1
        return compiled

    def refusal(self, node: ast.AST, problem: str) -> ConfigError:
        offset = getattr(node, "col_offset", 0)  # counts bytes of UTF-8
        return _refusal(self.text, len(self.text.encode()[:offset].decode()), problem)

    def clash(self, node: ast.expr) -> Clash:
        """What makes the error for operands of this node that do not go together."""
        source = ast.get_source_segment(self.text, node) or self.text
        found = {name for one in ast.walk(node) if (name := _dotted(one)) and name not in _FUNCTIONS}
        names = sorted(name for name in found if not any(other.startswith(f"{name}.") for other in found))

        def error(columns: Mapping[str, Any]) -> DataError:
            values = [(name, columns.get(name)) for name in names]
            told = ", ".join(f"{name} is {repr(value)[:40]} ({type(value).__name__})" for name, value in values)
            return DataError(f"{source!r}: these types do not go together{': ' if told else ''}{told}")

        return error


def _constant(compiler: _Compiler, node: ast.Constant) -> Evaluate:
    value = node.value
    if value is not None and not isinstance(value, str | int | float):
        raise compiler.refusal(node, f"a {type(value).__name__} is not allowed")
    return lambda columns: value


def _name(compiler: _Compiler, node: ast.Name | ast.Attribute) -> Evaluate:
    name = _dotted(node)
    if name is None:
        raise compiler.refusal(node, "a dot may stand in a column's name only")
    if name in _SPELLINGS:
        raise compiler.refusal(node, f"{name} is spelled {_SPELLINGS[name]}")
    compiler.names.add(name)
    return lambda columns: columns.get(name)


def _dotted(node: ast.AST) -> str | None:
    """`a.b.c` of a name or a chain of attributes; None for any other node."""
    if isinstance(node, ast.Name):
        return node.id
    base = _dotted(node.value) if isinstance(node, ast.Attribute) else None
    return f"{base}.{node.attr}" if base and isinstance(node, ast.Attribute) else None


def _arithmetic(compiler: _Compiler, node: ast.BinOp) -> Evaluate:
    operate = _ARITHMETIC.get(type(node.op))
    if operate is None:
        raise compiler.refusal(node, f"the operator {type(node.op).__name__} is not allowed")
    exponent = _literal(node.right)
    if operate is _power and isinstance(exponent, _NUMBERS) and abs(exponent) > MAX_EXPONENT:
        raise compiler.refusal(node.right, f"an exponent beyond {MAX_EXPONENT}")
    left, right, clash = compiler.compile(node.left), compiler.compile(node.right), compiler.clash(node)

    def evaluate(columns: Mapping[str, Any]) -> Any:
        a, b = left(columns), right(columns)
        if a is None or b is None:
            return None
        if not (isinstance(a, _NUMBERS) and isinstance(b, _NUMBERS)):
            raise clash(columns)
        try:
            return operate(a, b)
        except ArithmeticError:  # a division by zero, a number that no float holds
            return None

    return evaluate


def _power(a: float, b: float) -> float | None:
    if abs(b) > MAX_EXPONENT or (isinstance(a, int) and a.bit_length() * b > MAX_EXPONENT):
        return None
    result = a**b
    return None if isinstance(result, complex) else result


_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}


def _unary(compiler: _Compiler, node: ast.UnaryOp) -> Evaluate:
    operand = compiler.compile(node.operand)
    if isinstance(node.op, ast.Not):

        def negation(columns: Mapping[str, Any]) -> bool | None:
            value = operand(columns)
            return None if value is None else not value

        return negation
    if not isinstance(node.op, ast.USub):
        raise compiler.refusal(node, f"the operator {type(node.op).__name__} is not allowed")
    clash = compiler.clash(node)

    def minus(columns: Mapping[str, Any]) -> Any:
        value = operand(columns)
        if value is None:
            return None
        if not isinstance(value, _NUMBERS):
            raise clash(columns)
        return -value

    return minus


def _logic(compiler: _Compiler, node: ast.BoolOp) -> Evaluate:
    """Kleene's `and` and `or`. As in Python, the value is that of the operand that decided."""
    operands = tuple(compiler.compile(value) for value in node.values)
    decisive = isinstance(node.op, ast.Or)

    def evaluate(columns: Mapping[str, Any]) -> Any:
        value, unknown = None, False
        for operand in operands:
            value = operand(columns)
            if value is None:
                unknown = True
            elif (not value) is not decisive:
                return value
        return None if unknown else value

    return evaluate


def _comparison(compiler: _Compiler, node: ast.Compare) -> Evaluate:
    sides = [node.left, *node.comparators]
    links = [_link(compiler, op, *pair) for op, pair in zip(node.ops, itertools.pairwise(sides), strict=True)]
    values = [compiler.compile(node.left)]
    for op, side in zip(node.ops, node.comparators, strict=True):
        values.append(_members(compiler, side) if isinstance(op, ast.In | ast.NotIn) else compiler.compile(side))
    clash = compiler.clash(node)
    if len(links) > 1:
        return _chain(values, links, clash)
    left, right, link = *values, links[0]

    def evaluate(columns: Mapping[str, Any]) -> bool | None:
        try:
            return link(left(columns), right(columns))
        except TypeError:
            raise clash(columns) from None

    return evaluate


def _chain(values: Sequence[Evaluate], links: Sequence[Callable[[Any, Any], bool | None]], clash: Clash) -> Evaluate:
    """`a < b < c`: both at once, the middle evaluated once."""
    first, rest = values[0], tuple(zip(links, values[1:], strict=True))

    def evaluate(columns: Mapping[str, Any]) -> bool | None:
        a, result = first(columns), True
        for link, value in rest:
            b = value(columns)
            try:
                holds = link(a, b)
            except TypeError:
                raise clash(columns) from None
            if holds is False:
                return False
            result = None if holds is None else result
            a = b
        return result

    return evaluate


def _link(compiler: _Compiler, op: ast.cmpop, left: ast.expr, right: ast.expr) -> Callable[[Any, Any], bool | None]:
    """One comparison of two values; with None written out it is a test for it."""
    if any(isinstance(side, ast.Constant) and side.value is None for side in (left, right)):
        if isinstance(op, ast.Is | ast.Eq):
            return operator.is_
        if isinstance(op, ast.IsNot | ast.NotEq):
            return operator.is_not
        raise compiler.refusal(right, "None is compared by is, is not, == and != only")
    if type(op) not in _COMPARISONS:
        raise compiler.refusal(right, "is and is not compare with None only; write == or !=")
    return _COMPARISONS[type(op)]


_COMPARISONS: dict[type, Callable[[Any, Any], bool | None]] = {
    ast.Lt: lambda a, b: None if a is None or b is None else a < b,
    ast.LtE: lambda a, b: None if a is None or b is None else a <= b,
    ast.Gt: lambda a, b: None if a is None or b is None else a > b,
    ast.GtE: lambda a, b: None if a is None or b is None else a >= b,
    ast.Eq: lambda a, b: None if a is None or b is None else a == b,
    ast.NotEq: lambda a, b: None if a is None or b is None else a != b,
    ast.In: lambda a, b: None if a is None or b is None else a in b,
    ast.NotIn: lambda a, b: None if a is None or b is None else a not in b,
}


def _members(compiler: _Compiler, node: ast.expr) -> Evaluate:
    """The right side of `in`: a list of literals, or what holds strings."""
    if not isinstance(node, ast.List | ast.Tuple | ast.Set):
        return compiler.compile(node)
    members = tuple(_literal(element) for element in node.elts)
    for element, member in zip(node.elts, members, strict=True):
        if not isinstance(member, str | int | float):
            raise compiler.refusal(element, "a list holds numbers, strings, True and False only")
    return lambda columns: members


def _literal(node: ast.expr) -> Any:
    """The value of a literal, `-1` included; None for what is none."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _literal(node.operand)
        return -value if isinstance(value, _NUMBERS) else None
    return node.value if isinstance(node, ast.Constant) else None


def _call(compiler: _Compiler, node: ast.Call) -> Evaluate:
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    if name not in _FUNCTIONS or node.keywords:
        raise compiler.refusal(node, f"only {', '.join(_FUNCTIONS)} can be called, without keywords")
    function, fewest, most = _FUNCTIONS[name]
    if not fewest <= len(node.args) <= most:
        raise compiler.refusal(node, f"{name} of {len(node.args)} arguments")
    if name == "round" and len(node.args) == 2:
        digits = _literal(node.args[1])
        if type(digits) is not int or abs(digits) > MAX_DIGITS:
            raise compiler.refusal(node.args[1], f"round takes a whole number of digits from -{MAX_DIGITS} to {MAX_DIGITS}")
    arguments, clash = tuple(compiler.compile(argument) for argument in node.args), compiler.clash(node)

    def evaluate(columns: Mapping[str, Any]) -> Any:
        values = [argument(columns) for argument in arguments]
        if None in values:
            return None
        try:
            return function(*values)
        except TypeError:
            raise clash(columns) from None
        except (ValueError, ArithmeticError):  # the least of nothing, a rounded infinity
            return None

    return evaluate


_FUNCTIONS: dict[str, tuple[Callable[..., Any], int, int]] = {
    "min": (min, 1, MAX_LENGTH),
    "max": (max, 1, MAX_LENGTH),
    "abs": (abs, 1, 1),
    "len": (len, 1, 1),
    "round": (round, 1, 2),
}

_COMPILERS: dict[type, Callable[[_Compiler, Any], Evaluate]] = {
    ast.Constant: _constant,
    ast.Name: _name,
    ast.Attribute: _name,
    ast.BinOp: _arithmetic,
    ast.UnaryOp: _unary,
    ast.BoolOp: _logic,
    ast.Compare: _comparison,
    ast.Call: _call,
}
