"""@kernel: what a declaration says, and every contradiction refused where it is written."""

from __future__ import annotations

import functools
import inspect
import pickle

import numpy as np
import pytest
from array_api_compat import array_namespace

import stowplan as sp
from stowplan.contradictions import OF_ITERATE, RESERVED
from stowplan.declaration import kernel
from stowplan.errors import SignatureError


@kernel("(n,3),(n)->()", ragged="n")
def dipole(positions, charges):
    """Sum of charge times position."""
    return (charges[..., None] * positions).sum()


@kernel("(n),(m,n)->()", ragged=("n", "m"))
def masked(x, table, *, scale=1.0, mask=None):
    """Sum of the real entries, times a scale."""
    xp = array_namespace(x, table)
    inside = mask["m"][..., :, None] & mask["n"][..., None, :]
    real = xp.where(inside, table * x[..., None, :], xp.zeros_like(table))
    return scale * xp.sum(real, axis=(-2, -1))


@kernel(
    "(n),(pairs,2),(items)->(items),(n)",
    ragged=("n", "pairs", "items"),
    fill={"pair": -1},
    index={"pair": "n"},
    segments="items",
)
def several(x, pair, weight, *, mask, segments):
    """Says what it received."""
    return mask, segments


def declare(signature="(n),(n)->()", function=None, **options):
    """Declare a kernel of two arguments."""
    if function is None:

        def function(x, y, *, scale=1.0, mode="a", mask=None):
            return x

    return kernel(signature, **{"ragged": "n", **options})(function)


def test_a_kernel_says_what_it_was_declared_with():
    made = kernel(
        "(n,3),(m,n,c),()->(),(n,c),(new)",
        ragged=("n", "m"),
        exact=("m",),
        work="pairs + n",
        memory="3 * pairs",
        derived={"pairs": "n * m"},
        static=("mode",),
        fill={"b": -1},
        out_sizes={"new": "2 * pairs"},
        per_item=True,
    )
    def_ = made(lambda a, b, c, *, scale, mode="plain", mask: a)
    assert def_.arguments == ("a", "b", "c")
    assert def_.shared == ("scale", "mode")
    assert def_.defaults == {"mode": "plain"}
    assert def_.takes_mask
    assert def_.per_item
    assert def_.fill == {"b": -1}
    assert def_.work.evaluate({"pairs": 12, "n": 4}) == 16
    assert def_.memory.evaluate({"pairs": 12}) == 36
    assert def_.ragged_dims(("m", "n", "c")) == ("m", "n")
    assert def_.ragged_dims(("new",)) == ("new",)
    assert def_.out_length("new", {"n": 4, "m": 3}) == 24


@pytest.mark.parametrize(
    ("ragged", "work"), [(("n", "m"), "n * m"), ("n", "n"), ((), "1"), (["m"], "m")]
)
def test_the_work_is_the_product_of_the_ragged_dims_by_default(ragged, work):
    made = kernel("(n),(m)->()", ragged=ragged)(lambda x, y: x)
    assert made.work.text == work
    assert made.memory is None


def test_a_kernel_looks_like_its_function():
    assert dipole.__name__ == "dipole"
    assert dipole.__doc__ == "Sum of charge times position."
    assert list(inspect.signature(dipole).parameters) == ["positions", "charges"]
    assert repr(dipole) == "<kernel dipole (n,3),(n)->()>"
    assert dipole(np.eye(3), np.array([1.0, 2.0, 4.0])) == 7.0
    assert dipole(charges=np.ones(3), positions=np.eye(3)) == 3.0


def test_a_kernel_is_pickled_by_name(monkeypatch):
    import statistics

    monkeypatch.setattr(dipole, "__module__", "statistics")  # any module that can be imported
    monkeypatch.setattr(statistics, "dipole", dipole, raising=False)
    assert pickle.loads(pickle.dumps(dipole)) is dipole


def test_another_fill_leaves_the_kernel_as_it_was():
    made = declare(fill={"x": 1.0})
    other = made.refilled("y", 9.0)
    again = other.refilled("x", 5.0)
    assert made.fill == {"x": 1.0}
    assert other.fill == {"x": 1.0, "y": 9.0}
    assert again.fill == {"x": 5.0, "y": 9.0}
    assert other is not made
    assert other.signature is made.signature


def test_by_hand_every_entry_counts(xp):
    x = xp.asarray([1.0, 2.0])
    table = xp.ones((4, 3, 2), dtype=xp.float64)
    for result in (masked(x, table), masked(x, table=table), masked(x=x, table=table)):
        assert np.asarray(result).tolist() == [9.0] * 4
    assert np.asarray(masked(x, table, mask=None, scale=2.0)).tolist() == [18.0] * 4


def test_a_mask_given_by_hand_is_used(xp):
    mask = {"n": xp.asarray([True, False]), "m": xp.asarray([True, True, False])}
    result = masked(xp.asarray([1.0, 2.0]), xp.ones((3, 2), dtype=xp.float64), mask=mask)
    assert float(result) == 2.0


def test_masks_by_hand_are_on_the_device_of_the_data():
    strict = pytest.importorskip("array_api_strict")
    device = strict.Device("device1")
    x = strict.ones(2, device=device)
    assert masked(x, strict.ones((3, 2), device=device)).device == device


def test_a_call_that_lacks_an_argument_fails_as_the_function_would():
    with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'table'"):
        masked(np.ones(2))


def segmented(x, y, *, mask=None, segments=None):
    """Two arguments, and rows of several items."""
    return x


def test_index_columns_and_the_dim_that_counts_items_are_declared():
    assert several.index == {"pair": "n"}
    assert several.segments == "items"
    assert several.takes_segments
    assert several.shared == ()
    assert several.work.text == "n * pairs"  # what counts items is no cost
    assert masked.index == {}
    assert masked.segments is None
    assert not masked.takes_segments
    assert several.refilled("x", 1.0).index == {"pair": "n"}


@pytest.mark.parametrize("signature", ["(n),(n)->(items)", "(n),(items)->()", "(n),(n)->(n)"])
def test_the_dim_that_counts_items_needs_no_argument_and_no_length(signature):
    made = declare(signature, segmented, ragged=("n", "items"), segments="items")
    assert made.ragged == ("n", "items")
    assert made.ragged_dims(("items",)) == ("items",)


def test_by_hand_the_arrays_are_one_item(xp):
    x, pair = xp.ones((4, 3)), xp.zeros((4, 5, 2), dtype=xp.int64)
    mask, segments = several(x, pair, xp.ones((4, 1)))
    assert {dim: tuple(real.shape) for dim, real in mask.items()} == {
        "items": (1,), "n": (3,), "pairs": (5,)
    }  # fmt: skip
    assert all(bool(xp.all(real)) for real in mask.values())
    assert {dim: np.asarray(ids).tolist() for dim, ids in segments.items()} == {
        "n": [0] * 3, "pairs": [0] * 5
    }  # fmt: skip


def test_by_hand_a_mask_says_which_entries_are_of_the_item(xp):
    given = {"n": xp.asarray([True, True, False]), "pairs": xp.asarray([False])}
    x, pair = xp.ones(3), xp.zeros((1, 2), dtype=xp.int64)
    mask, segments = several(x, pair, xp.ones(1), mask=given)
    assert np.asarray(segments["n"]).tolist() == [0, 0, -1]
    assert np.asarray(segments["pairs"]).tolist() == [-1]
    assert np.asarray(mask["items"]).tolist() == [True]
    assert mask["n"] is given["n"]


def test_segments_given_by_hand_are_used():
    x, pair, ids = np.ones(3), np.zeros((2, 2), int), {"n": [0, 1, 1], "pairs": [0, 1]}
    mask, segments = several(x, pair, np.ones(2), segments=ids)
    assert segments is ids
    assert mask["items"].tolist() == [True, True]
    with pytest.raises(sp.DataError, match=r"several: the arrays have items=2.*segments={dim"):
        several(x, pair, np.ones(2))

    made = declare(
        "(n),(n)->(items)",
        lambda x, y, *, mask, segments: x,
        ragged=("n", "items"),
        segments="items",
    )
    with pytest.raises(sp.DataError, match="segments= without mask= leaves open how many items"):
        made(x, x, segments={"n": [0, 1, 1]})
    made(x, x, segments={"n": [0, 1, 1]}, mask={"n": np.ones(3, bool), "items": np.ones(2, bool)})


@pytest.mark.parametrize(
    ("signature", "function", "options", "message"),
    [
        ("(n),(n)->()", None, {"ragged": "q"}, "ragged names 'q'; it can name: n."),
        ("(n),(n)->()", None, {"ragged": "n,m"}, "ragged names 'n,m'; it can name: n."),
        ("(n),(n)->()", None, {"ragged": ("n", "n")}, "names one thing twice"),
        ("(n),(n)->()", None, {"ragged": ("n", 3)}, "ragged names 3"),
        ("(3),()->()", None, {"ragged": "n"}, "ragged names 'n'; it can name: none."),
        ("(n),(n)->()", None, {"exact": "m"}, "exact names 'm'; it can name: n."),
        ("(n,c),(n)->()", None, {"exact": "c"}, "exact names 'c'; it can name: n."),
        ("(n),(n)->()", None, {"static": "q"}, "static names 'q'; it can name: scale, mode."),
        ("(n),(n)->()", None, {"static": "mask"}, "static names 'mask'"),
        ("(n),(n)->()", None, {"static": "x"}, "static names 'x'"),
        ("(n),(n)->()", None, {"fill": {"z": 0}}, "fill names 'z'; it can name: x, y."),
        ("(n),(n)->()", None, {"fill": {"n": 0}}, "fill names 'n'; it can name: x, y."),
        ("(n),(n)->()", None, {"fill": {"x": "0"}}, "fill of 'x' is '0'; give a number"),
        ("(n),(n)->()", None, {"fill": {"x": None}}, "fill of 'x' is None; give a number"),
        ("(n),(n)->()", None, {"fill": 0.5}, "fill=0.5 is no mapping; write fill={'name'"),
        ("(n),(n)->()", None, {"derived": "n * n"}, "derived='n \\* n' is no mapping"),
        ("(n),(n)->()", None, {"derived": {"n": "2 * n"}}, "'n' is a dim, so it cannot be"),
        ("(n,c),(n)->()", None, {"derived": {"c": "n"}}, "'c' is a dim, so it cannot be"),
        ("(n),(n)->()", None, {"derived": {"k": "n * q"}}, "derived 'k' names 'q'; it can name: n"),
        ("(n,c),(n)->()", None, {"derived": {"k": "n * c"}}, "derived 'k' names 'c'"),
        ("(n),(n)->()", None, {"derived": {"k": "n", "j": "k"}}, "derived 'j' names 'k'"),
        ("(n),(n)->()", None, {"derived": {"rows": "n"}}, "'rows' cannot name a derived size"),
        ("(n),(n)->()", None, {"derived": {"k k": "n"}}, "'k k' cannot name a derived size"),
        ("(n),(n)->()", None, {"derived": {"k": "n +"}}, "derived 'k': expression 'n \\+'"),
        ("(n),(n)->()", None, {"work": "n * q"}, "work names 'q'; it can name: n."),
        ("(n,c),(n)->()", None, {"work": "n * c"}, "work names 'c'; it can name: n."),
        ("(n),(n)->()", None, {"work": "len(n)"}, "work: expression .* calls are not allowed"),
        ("(n),(n)->()", None, {"work": ""}, "work: expression: empty"),
        ("(n),(n)->()", None, {"work": 2.5}, "work: expression: expected text"),
        ("(n),(n)->()", None, {"memory": "q"}, "memory names 'q'; it can name: n."),
        ("(n),(n)->()", None, {"memory": "n n"}, "memory: expression"),
        ("(c,n),(n)->()", None, {}, r"argument x has core shape \(c, n\).*dims \(n\) must lead"),
        ("(n),(3,n)->()", None, {}, r"argument y has core shape \(3, n\)"),
        ("(n),(n,c,n)->()", None, {}, r"argument y has core shape \(n, c, n\)"),
        ("(n),(n)->(3,n)", None, {}, r"an output has core shape \(3, n\)"),
        ("(rows),(n)->()", None, {}, "slots use the name 'rows' themselves"),
        ("(n),(n)->(rows)", None, {"out_sizes": {"rows": 2}}, "slots use the name 'rows'"),
        ("(n),(n)->(m)", None, {}, r"no input has the output dim 'm'.*out_sizes={'m': '...'}"),
        ("(n),(n)->(m)", None, {"out_sizes": {"m": "q"}}, "out_sizes 'm' names 'q'"),
        ("(n,c),(n)->(m)", None, {"out_sizes": {"m": "n*c"}}, "'m' names 'c'; it can name: n."),
        ("(n),(n)->(m)", None, {"out_sizes": {"m": "n +"}}, "out_sizes 'm': expression"),
        ("(n),(n)->(m)", None, {"out_sizes": {"m": 2.5}}, "out_sizes 'm': expression: expected"),
        ("(n),(n)->(m)", None, {"out_sizes": {"m": lambda k: k}}, "ragged dims .n. by name"),
        ("(n),(n)->()", None, {"out_sizes": {"n": 3}}, "out_sizes names 'n'; it can name: none"),
        ("(n),(n)->(3,m,n)", None, {"out_sizes": {"m": "n"}}, "an output has core shape"),
        ("(n)->()", None, {}, "has 1 inputs, the function has 2 positional .*: x, y"),
        ("(n),(n),(n)->()", None, {}, "has 3 inputs, the function has 2 positional"),
        ("(n),()->()", lambda x, scale, mode="a": x, {}, r"3 positional .*Put a \* before"),
        ("(n)->()", lambda *arrays: arrays, {}, r"instead of \*arrays"),
        ("(n)->()", lambda x, **shared: x, {}, r"name every parameter instead of \*\*shared"),
        ("(n),(n)->()", None, {"index": {"z": "n"}}, "index names 'z'; it can name: x, y."),
        ("(n),(n)->()", None, {"index": "y"}, "index='y' is no mapping"),
        (
            "(n,c),(n)->()",
            None,
            {"index": {"y": "c"}, "fill": {"y": -1}},
            "'y' names 'c'; it can n",
        ),
        ("(n),(n)->()", None, {"index": {"y": "n"}}, r"negative integer: fill={'y': -1}"),
        ("(n),(n)->()", None, {"index": {"y": "n"}, "fill": {"y": 0}}, r"fill={'y': -1}"),
        ("(n),(n)->()", None, {"index": {"y": "n"}, "fill": {"y": -1.0}}, r"fill={'y': -1}"),
        ("(n),(n)->(m)", segmented, {"segments": "m"}, "segments names 'm'; it can name: n."),
        (
            "(n),(n)->(m)",
            segmented,
            {"segments": ("n",)},
            r"segments=\('n',\); give the name of one",
        ),
        ("(n),(n)->()", segmented, {"segments": "n"}, "nothing is ragged beside 'n'"),
        ("(n),(n)->()", segmented, {}, "declare the dim that counts the items, segments='molecul"),
        (
            "(n),(m)->()",
            None,
            {"ragged": ("n", "m"), "segments": "m"},
            r"def function\(..., \*, se",
        ),
        (
            "(n),(m,n)->()",
            segmented,
            {"ragged": ("n", "m"), "segments": "m"},
            r"\(m, n\) has 'm' b",
        ),
        ("(n),(n)->(n,m)", segmented, {"ragged": ("n", "m"), "segments": "m"}, r"have it alone"),
        (
            "(n),(n)->(m)",
            segmented,
            {"ragged": ("n", "m"), "segments": "m", "out_sizes": {"m": 2}},
            "out_sizes names 'm'; it can name: none",
        ),
        ("(n)->()", functools.partial(lambda x, y: x, 1), {}, "has no name; declare a def"),
        ("(2n)->()", lambda x: x, {}, "at character 1"),
    ],
)
def test_a_contradiction_is_refused_with_its_reason(signature, function, options, message):
    with pytest.raises(SignatureError, match=message):
        declare(signature, function, **options)


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_names_that_run_uses_are_refused(name):
    scope: dict = {}
    exec(f"def function(x, *, {name}): return x", scope)
    with pytest.raises(SignatureError, match=f"run uses the name '{name}' itself; rename"):
        kernel("(n)->()", ragged="n")(scope["function"])


@pytest.mark.parametrize("call", [sp.run, sp.plan, sp.verify, sp.measure_costs])
def test_every_parameter_of_the_public_calls_is_reserved(call):
    named = {
        name
        for name, parameter in inspect.signature(call).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    }
    assert named <= RESERVED


@pytest.mark.parametrize("call", [sp.iterate, sp.plan])
def test_every_parameter_of_an_iteration_and_its_plan_is_kept_from_its_functions(call):
    named = {
        name
        for name, parameter in inspect.signature(call).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    }
    assert named <= OF_ITERATE


@pytest.mark.parametrize("signature", [lambda x: x, None, 3, ["(n)->()"]])
def test_a_decorator_without_a_signature_is_refused_at_once(signature):
    with pytest.raises(
        SignatureError, match=r'Write @kernel\("\(atoms,3\)->\(\)", ragged="atoms"\)'
    ):
        kernel(signature)


def test_a_message_names_the_kernel():
    def transport(x):
        return x

    with pytest.raises(SignatureError, match=r"^kernel transport: ragged names 'm'"):
        kernel("(n)->()", ragged="m")(transport)


@pytest.mark.parametrize(
    ("rule", "length"),
    [("2 * n + 1", 9), ("pairs", 16), (5, 5), ("5", 5), (lambda n: n - 1, 3), (lambda **d: 2, 2)],
)
def test_the_length_of_a_new_dim_follows_its_rule(rule, length):
    made = kernel("(n)->(m)", ragged="n", derived={"pairs": "n * n"}, out_sizes={"m": rule})(
        lambda x: x
    )
    assert made.out_length("m", {"n": 4}) == length
    varies = rule not in (5, "5")
    assert made.ragged_dims(("m",)) == (("m",) if varies else ())
