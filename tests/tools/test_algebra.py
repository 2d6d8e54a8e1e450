import pytest

from abduce.tools import load
from abduce.tools.algebra import algebra


@pytest.mark.parametrize(
    ("do", "expression", "variable", "found"),
    [
        ("solve", "x^2 = 5*x - 6", "x", "[2, 3]"),
        ("solve", "x + y = 3, x - y = 1", "x, y", "[{x: 2, y: 1}]"),
        ("solve", "2*x = 0.2", "x", "[1/10]"),
        ("simplify", "sin(x)^2 + cos(x)^2", "x", "1"),
        ("factor", "x^3 - 1", "x", "(x - 1)*(x**2 + x + 1)"),
        ("expand", "(a + b)^2", "a", "a**2 + 2*a*b + b**2"),
        ("differentiate", "ln(x)", "x", "1/x"),
        ("integrate", "3*x^2", "x", "x**3"),
        ("limit", "sin(x)/x", "x", "1"),
        ("evaluate", "sqrt(2)", "x", "1.41421356237310"),
    ],
)
def test_algebra(do, expression, variable, found):
    assert algebra(do, expression, variable) == found


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('ls')", "x.__class__", "(lambda: 1)()", "[1, 2]", "'a'", "x if x else y",
        "open('/etc/passwd')", "x = y = z", "x^100000", "exec('1')", "(" * 300 + "x" + ")" * 300, "x" * 600,
        "2x", "",
    ],
)  # fmt: skip
def test_what_is_no_algebra_is_refused_and_never_run(expression):
    with pytest.raises(ValueError):
        algebra("simplify", expression)


async def test_as_a_tool_it_runs_in_a_process_of_its_own():
    told = await load("algebra").call({"do": "solve", "expression": "x*x = 9"})
    assert told.text == "[-3, 3]"
    told = await load("algebra").call({"do": "dance", "expression": "x"})
    assert not told.ok and "simplify" in told.text
