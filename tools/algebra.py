"""Algebra with symbols, by SymPy: simplify, expand, factor, solve, differentiate, integrate, limit, sum.

An expression is parsed and walked, never evaluated as code. The work is done in a process of its own, with
limits on time and memory, since algebra may never end.

>>> algebra("solve", "x^2 = 5*x - 6", "x")
'[2, 3]'
>>> algebra("integrate", "x*sin(x)", "x")
'-x*cos(x) + sin(x)'
"""

import ast
from importlib.util import find_spec
from typing import Any, Literal

from ..serving.errors import MissingExtra
from .base import Limits, tool
from .calculator import MAX_LENGTH, SIGNS

if find_spec("sympy") is None:
    raise MissingExtra("sympy", "tools")

Doing = Literal["simplify", "expand", "factor", "solve", "differentiate", "integrate", "limit", "evaluate"]

_MAX_EXPONENT = 1000
_FUNCTIONS = (
    "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "exp", "log", "sqrt", "Abs",
    "factorial", "binomial", "gcd", "lcm", "floor", "ceiling", "gamma", "Min", "Max",
)  # fmt: skip
_SAME = {"abs": "Abs", "ln": "log", "ceil": "ceiling", "min": "Min", "max": "Max", "arcsin": "asin",
         "arccos": "acos", "arctan": "atan"}  # fmt: skip
_CONSTANTS = {"pi": "pi", "e": "E", "E": "E", "I": "I", "oo": "oo", "infinity": "oo"}


def algebra(do: Doing, expression: str, variable: str = "x", at: str = "0") -> str:
    """Do algebra on an expression such as "x^2 - 1" and return the result.

    do: simplify, expand, factor, solve (an equation such as "x^2 = 4", or several with commas; `variable` may
    be "x, y"), differentiate, integrate, limit (as the variable goes to `at`), or evaluate (a number).
    """
    import sympy

    names = [name.strip() for name in variable.split(",") if name.strip()]
    if not names or not all(name.isidentifier() for name in names):
        raise ValueError(f"variable is a letter such as x, got {variable!r}")
    symbols = [sympy.Symbol(name) for name in names]
    equations = _parsed(sympy, expression)
    if do == "solve":
        return _solved(sympy, equations, symbols)
    if len(equations) != 1:
        raise ValueError(f"one expression is needed, got {len(equations)}")
    [whole] = equations
    match do:
        case "simplify" | "expand" | "factor":
            found = getattr(sympy, do)(whole)
        case "differentiate":
            found = sympy.diff(whole, symbols[0])
        case "integrate":
            found = sympy.integrate(whole, symbols[0])
        case "limit":
            [point] = _parsed(sympy, at)
            found = sympy.limit(whole, symbols[0], point)
        case "evaluate":
            found = sympy.N(whole)
        case _:
            raise ValueError(f"it cannot {do!r}")
    return str(found)


def _solved(sympy: Any, equations: list[Any], symbols: list[Any]) -> str:
    found = sympy.solve(equations, *symbols, dict=True)
    if len(symbols) == 1 and len(equations) == 1:
        return str([solution[symbols[0]] for solution in found if symbols[0] in solution])
    return str(found)


def _parsed(sympy: Any, text: str) -> list[Any]:
    """Expressions, those with an equals sign as left minus right."""
    if len(text) > MAX_LENGTH:
        raise ValueError(f"the expression has {len(text)} characters, at most {MAX_LENGTH} are read")
    plain = text.translate(SIGNS).replace("==", "=")
    found = []
    try:
        for part in _parts(plain):
            sides = [_walk(sympy, ast.parse(side.strip(), mode="eval").body) for side in part.split("=")]
            if len(sides) > 2:
                raise ValueError(f"{part!r} has more than one equals sign")
            found.append(sides[0] - sides[1] if len(sides) == 2 else sides[0])
    except SyntaxError:
        raise ValueError(f"{text!r} is not an expression; write products with *, as in 2*x") from None
    except (RecursionError, MemoryError):
        raise ValueError("the expression is nested too deeply") from None
    return found


def _parts(text: str) -> list[str]:
    """Split at commas outside brackets, and at semicolons."""
    parts, depth = [""], 0
    for char in text:
        depth += (char in "([") - (char in ")]")
        if char == ";" or (char == "," and depth == 0):
            parts.append("")
        else:
            parts[-1] += char
    return [part for part in parts if part.strip()]


def _walk(sympy: Any, node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=bool()):
            pass
        case ast.Constant(value=int() as number):
            return sympy.Integer(number)
        case ast.Constant(value=float() as number):
            return sympy.Rational(repr(number))  # 0.1 is a tenth
        case ast.Name(id=name):
            return getattr(sympy, _CONSTANTS[name]) if name in _CONSTANTS else sympy.Symbol(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_walk(sympy, operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _walk(sympy, operand)
        case ast.BinOp(left=left, op=op, right=right):
            return _binary(op, _walk(sympy, left), _walk(sympy, right))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if _SAME.get(name, name) in _FUNCTIONS:
            return getattr(sympy, _SAME.get(name, name))(*(_walk(sympy, arg) for arg in args))
    known = ", ".join(sorted((*_FUNCTIONS, *_CONSTANTS)))
    raise ValueError(f"{ast.unparse(node)!r} is not algebra; known functions and constants: {known}")


def _binary(op: ast.operator, left: Any, right: Any) -> Any:
    match op:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div():
            return left / right
        case ast.Mod():
            return left % right
        case ast.Pow():
            if right.is_number and abs(right) > _MAX_EXPONENT:
                raise ValueError(f"an exponent may be {_MAX_EXPONENT} at most")
            return left**right
    raise ValueError("known operators: + - * / % ^")


algebra_tool = tool(effect="pure", limits=Limits(seconds=15, memory_bytes=1 << 30))(algebra)
