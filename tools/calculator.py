"""Arithmetic, exactly where it can be: an expression is parsed and walked, never evaluated as code.

>>> calculate("2 * (3 + 4)"), calculate("1/3 + 1/6"), calculate("2^10"), calculate("sqrt(16)")
('14', '0.5', '1024', '4')
"""

import ast
import math
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import TypeAlias

from .base import Limits, tool

Value: TypeAlias = Fraction | float

MAX_LENGTH = 500  # characters of an expression
MAX_BITS = 4096  # of a number on the way


def calculate(expression: str) -> str:
    """The value of an expression, as text. Raises ValueError, with what is wrong, for anything else.

    Numbers, `+ - * / // % ^ **`, brackets, pi, e, and abs, ceil, cos, exp, factorial, floor, gcd, lcm, log,
    max, min, round, sin, sqrt, tan. Rationals are exact; other functions use floating point.
    """
    if len(expression) > MAX_LENGTH:
        raise ValueError(f"the expression has {len(expression)} characters, at most {MAX_LENGTH} are read")
    plain = expression.strip().rstrip("=").translate(SIGNS)
    if not any(c.isalpha() for c in plain):
        plain = plain.replace(",", "")  # thousands; with letters it may separate arguments
    try:
        tree = ast.parse(plain.strip(), mode="eval")
        value = _value(tree.body)
    except SyntaxError:
        raise ValueError(f"{expression!r} is not an arithmetic expression") from None
    except ZeroDivisionError:
        raise ValueError("division by zero") from None
    except (RecursionError, MemoryError):
        raise ValueError("the expression is nested too deeply") from None
    except OverflowError:
        raise ValueError("the result is too large") from None
    return _shown(value)


@tool(effect="pure", limits=Limits(seconds=5))
def calculator(expression: str) -> str:
    """Evaluate an arithmetic expression such as "12 * (3 + 4) / 7" and return its value."""
    return calculate(expression)


SIGNS = str.maketrans({"×": "*", "÷": "/", "−": "-", "·": "*", "^": "**", "$": " "})

_BINARY: dict[type[ast.operator], Callable[[Value, Value], Value]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: lambda a, b: Fraction(a // b),
    ast.Mod: operator.mod,
    ast.Pow: lambda a, b: _power(a, b),
}
_CONSTANTS: dict[str, float] = {"pi": math.pi, "e": math.e}
_FUNCTIONS: dict[str, Callable[..., float | int | Fraction]] = {
    "abs": lambda x: abs(x),
    "ceil": math.ceil,
    "cos": math.cos,
    "exp": math.exp,
    "factorial": lambda n: math.factorial(_whole(n, 500)),
    "floor": math.floor,
    "gcd": lambda *ns: math.gcd(*(_whole(n) for n in ns)),
    "lcm": lambda *ns: math.lcm(*(_whole(n) for n in ns)),
    "log": math.log,
    "max": lambda *xs: max(xs),
    "min": lambda *xs: min(xs),
    "round": lambda x, n=0: round(x, _whole(n, 300)),
    "sin": math.sin,
    "sqrt": lambda x: _power(x, Fraction(1, 2)),
    "tan": math.tan,
}


def _value(node: ast.expr) -> Value:
    match node:
        case ast.Constant(value=bool()):
            pass
        case ast.Constant(value=int() as number):
            return _checked(Fraction(number))
        case ast.Constant(value=float() as number) if math.isfinite(number):
            return _checked(Fraction(repr(number)))  # 0.1 is a tenth
        case ast.Name(id=name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _checked(_BINARY[type(op)](_value(left), _value(right)))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            return _called(name, [_value(arg) for arg in args])
    known = ", ".join(sorted([*_FUNCTIONS, *_CONSTANTS]))
    raise ValueError(f"{ast.unparse(node)!r} is not arithmetic; known besides numbers and operators: {known}")


def _called(name: str, arguments: list[Value]) -> Value:
    try:
        found = _FUNCTIONS[name](*arguments)
    except TypeError:
        raise ValueError(f"{name} does not take {len(arguments)} such arguments") from None
    return _checked(found if isinstance(found, float) else Fraction(found))


def _power(base: Value, exponent: Value) -> Value:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        if exponent.denominator == 1:
            size = max(base.numerator.bit_length(), base.denominator.bit_length())
            if size * abs(exponent.numerator) > MAX_BITS and abs(base) not in (0, 1):
                raise ValueError(f"the power has more than {MAX_BITS} bits")
            return Fraction(base ** (exponent.numerator % 2 if abs(base) == 1 else exponent.numerator))
        if exponent == Fraction(1, 2) and base >= 0:
            root = Fraction(math.isqrt(base.numerator), math.isqrt(base.denominator))
            if root * root == base:
                return root
    if base < 0:
        raise ValueError("the root of a negative number is not real")
    return math.pow(base, exponent)


def _checked(value: Value) -> Value:
    if isinstance(value, Fraction):
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
            raise ValueError(f"a number on the way has more than {MAX_BITS} bits")
    elif not math.isfinite(value):
        raise ValueError("the result is too large")
    return value


def _whole(n: Value, limit: int | None = None) -> int:
    if n != int(n) or (limit is not None and not -limit <= n <= limit):
        raise ValueError(f"a whole number{f' up to {limit}' if limit else ''} is needed, got {_shown(n)}")
    return int(n)


def _shown(value: Value) -> str:
    if isinstance(value, float):
        return f"{value:.12g}"
    if value.denominator == 1:
        return str(value.numerator)
    return f"{float(value):.12g}"
