import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stowplan.errors import PlanError
from stowplan.expressions import Expression


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a * b", 6),
        ("a + b * 2 - 1", 7),
        ("-a + b", 1),
        ("b / a", 1.5),
        ("(a + b) ** 2", 25),
        ("a ** -1", 0.5),
        ("1.5e3", 1500.0),
    ],
)
def test_arithmetic_is_that_of_python(text, value):
    assert Expression.parse(text).evaluate({"a": 2, "b": 3}) == value


@given(st.integers(0, 10**30), st.integers(0, 10**30))
def test_ints_stay_exact(a, b):
    assert Expression.parse("a * b + a - b").evaluate({"a": a, "b": b}) == a * b + a - b


def test_numpy_ints_do_not_overflow():
    value = Expression.parse("a * a").evaluate({"a": np.int64(2**40)})
    assert value == 2**80
    assert type(value) is int


def test_arrays_are_evaluated_in_float64():
    value = Expression.parse("a * b").evaluate({"a": np.array([2**40, 1]), "b": 2**40})
    assert value.dtype == np.float64
    assert value.tolist() == [2.0**80, 2.0**40]


def test_spaces_and_new_lines_are_one_space():
    expression = Expression.parse("  n1 *\n  n2 ")
    assert expression.text == "n1 * n2"
    assert expression.names == ("n1", "n2")
    assert expression == Expression.parse("n1 * n2")


@pytest.mark.parametrize(
    ("text", "column", "reason"),
    [
        ("a * f(b)", 4, "function calls are not allowed"),
        ("a.b", 0, "Attribute is not allowed"),
        ("a * b[0]", 4, "Subscript is not allowed"),
        ("a // b", 0, "this operator is not allowed"),
        ("a % b", 0, "this operator is not allowed"),
        ("a + True", 4, "Constant is not allowed"),
        ("a + 1j", 4, "Constant is not allowed"),
        ("a + 'b'", 4, "Constant is not allowed"),
        ("+a", 0, "UnaryOp is not allowed"),
        ("not a", 0, "UnaryOp is not allowed"),
        ("lambda: a", 0, "Lambda is not allowed"),
        ("a if b else c", 0, "IfExp is not allowed"),
        ("µ + f(a)", 4, "function calls"),
        ("a * ", 3, "invalid syntax"),
        ("a b", 2, "invalid syntax"),
    ],
)
def test_what_is_no_arithmetic_is_pointed_at(text, column, reason):
    with pytest.raises(PlanError, match=reason) as caught:
        Expression.parse(text)
    shown, caret = str(caught.value).splitlines()[-2:]
    assert shown == f"  {' '.join(text.split())}"
    assert caret.index("^") - 2 == column


@pytest.mark.parametrize("text", ["", "   ", 3, None, "a" * 1001, "a\0b"])
def test_what_is_no_text_is_refused(text):
    with pytest.raises(PlanError, match="expression"):
        Expression.parse(text)


@pytest.mark.parametrize("text", ["-" * 150 + "a", "(" * 300 + "a" + ")" * 300])
def test_deep_nesting_is_refused(text):
    with pytest.raises(PlanError, match=r"nested|nesting|too many"):
        Expression.parse(text)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(PlanError, match="unknown name 'q'; known: atoms, k") as caught:
        Expression.parse("atoms * q", ["atoms", "k"])
    assert str(caught.value).splitlines()[-1] == "  " + " " * 8 + "^"
    with pytest.raises(PlanError, match="known: none"):
        Expression.parse("a").evaluate({})


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1 / a", {"a": 0}),
        ("a ** a ** a", {"a": 99}),
        ("a ** 0.5", {"a": -4}),
        ("a * 1e308", {"a": 1e10}),
        ("1 / a", {"a": np.array([1, 0])}),
        ("a ** 0.5", {"a": np.array([1, -1])}),
        ("a + 0.5", {"a": 10**400}),
    ],
)
def test_a_value_that_is_no_finite_real_number_is_refused(text, values):
    with pytest.raises(PlanError, match="expression"):
        Expression.parse(text).evaluate(values)


def test_a_small_power_is_exact():
    assert Expression.parse("a ** 64").evaluate({"a": 7}) == 7**64
    assert math.isclose(Expression.parse("a ** 0.5").evaluate({"a": 2}), math.sqrt(2))
    assert Expression.parse("a ** 10").evaluate({"a": 1}) == 1
