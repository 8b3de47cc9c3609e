"""Laws of fingerprints: the same for the same run in any process, another for any other."""

from __future__ import annotations

import functools
import importlib
import json
import logging
import os
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stowplan as sp
from stowplan.runs.columns import bind
from stowplan.runs.fingerprints import digest, fingerprints
from stowplan.runs.places import find_places
from stowplan.runs.tasks import Call


def prints(kernel: Any, data: Any, plan: Any, **shared: Any) -> dict[str, str]:
    columns = bind("run", kernel, data)
    source, target = find_places("run", columns.arrays, None, None)
    call = Call.make("run", kernel, source, target, shared, {"compile": False})
    return fingerprints(call, columns, plan)


def make(times: int = 2, fill: float = 0.0, signature: str = "(n)->()") -> Any:
    if times == 2:

        @sp.kernel(signature, ragged="n", fill={"x": fill})
        def total(x, *, scale=1.0):
            return 2 * x.sum(axis=-1)
    else:

        @sp.kernel(signature, ragged="n", fill={"x": fill})
        def total(x, *, scale=1.0):
            return 3 * x.sum(axis=-1)

    return total


DATA = {"x": sp.Ragged.from_list([np.arange(3.0), np.arange(2.0)])}


def test_the_same_run_has_the_same_fingerprints_in_another_process():
    code = (
        "import sys, json; sys.path.insert(0, sys.argv[1]); import test_fingerprints as t; "
        "import stowplan as sp; k = t.make(); "
        "print(json.dumps(t.prints(k, t.DATA, sp.plan(k, t.DATA, rows=1), scale=2.0)))"
    )
    kernel = make()
    expected = prints(kernel, DATA, sp.plan(kernel, DATA, rows=1), scale=2.0)
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(Path(__file__).parent)],
            capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed},
        )  # fmt: skip
        assert json.loads(done.stdout) == expected


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("the kernel", lambda call: call.update(kernel=make(times=3))),
        ("the kernel", lambda call: call.update(kernel=make(fill=1.0))),
        ("the plan", lambda call: call.update(rows=2)),
        ("the plan", lambda call: call.update(offsets="centre")),
        ("column 'x'", lambda call: call.update(data={"x": DATA["x"].map_values(np.negative)})),
        ("column 'x'", lambda call: call.update(data={"x": DATA["x"].map_values(np.float32)})),
        ("scale=", lambda call: call.update(scale=3.0)),
        ("scale=", lambda call: call.update(scale=2)),
        ("scale=", lambda call: call.update(scale=np.asarray(2.0))),
    ],
)
def test_each_part_has_its_own_fingerprint(what, change):
    call: dict[str, Any] = {"kernel": make(), "data": DATA, "rows": 1, "scale": 2.0}
    plan = sp.plan(call["kernel"], DATA, slots=[{"n": 4}], rows=1)
    first = prints(call["kernel"], DATA, plan, scale=2.0)
    change(call)
    options = {name: call[name] for name in ("rows", "offsets") if name in call}
    plan = sp.plan(call["kernel"], call["data"], slots=[{"n": 4}], **options)
    second = prints(call["kernel"], call["data"], plan, scale=call["scale"])
    assert [name for name in first if first[name] != second[name]] == [what]


def test_views_of_the_same_rows_are_the_same_data():
    kernel = make()
    plan = sp.plan(kernel, DATA, rows=1)
    backwards = {"x": sp.Ragged.from_list([np.arange(2.0), np.arange(3.0)])[[1, 0]]}
    assert prints(kernel, DATA, plan) == prints(kernel, backwards, plan)


class Selector:
    """Without a representation of its own."""

    def __init__(self, power: int) -> None:
        self.power = power

    def scaled(self, x: Any) -> Any:
        return self.power * x.sum(axis=-1)


@dataclass(frozen=True)
class Scale:
    """A factor and more, which a kernel takes as it is."""

    factor: float
    more: list[int]
    unit = 1.0
    other = 2.0

    def __call__(self, x: Any) -> Any:
        return self.factor * self.more[0] * x.sum(axis=-1)


class Slotted:
    """Without a dict of its own."""

    __slots__ = ("power",)

    def __init__(self, power: int) -> None:
        self.power = power

    def __call__(self, x: Any) -> Any:
        return self.power * x.sum(axis=-1)


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (Selector(1), Selector(1), Selector(2)),
        (functools.partial(max, 1), functools.partial(max, 1), functools.partial(max, 2)),
        (frozenset("abc"), frozenset("cba"), frozenset("ab")),
        (max, max, min),
        ({"a": [1, None]}, {"a": [1, None]}, {"a": [1, 0]}),
        ("1", "1", 1),
        ([1, 2], [1, 2], (1, 2)),
        ([[1], 2], [[1], 2], [[1, 2]]),
        (True, True, 1),
    ],
)
def test_values_of_any_kind_have_a_fingerprint(one, same, other):
    kernel = make()
    plan = sp.plan(kernel, DATA, rows=1)
    first, again, else_ = (
        prints(kernel, DATA, plan, scale=value)["scale="] for value in (one, same, other)
    )
    assert first == again != else_


MODULE = """
import stowplan as sp

def half(x):
    return {body}

@sp.kernel("(n)->()", ragged="n", fill={{"x": 0.0}})
def total(x):
    return half(x).sum(axis=-1)
"""


def test_a_function_that_the_module_of_a_kernel_defines_counts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for body in ("x / 2", "x / 2", "x / 2.5"):
        (tmp_path / "own_kernels.py").write_text(MODULE.format(body=body))
        sys.modules.pop("own_kernels", None)
        importlib.invalidate_caches()
        kernel = importlib.import_module("own_kernels").total
        found.append(prints(kernel, DATA, sp.plan(kernel, DATA, rows=1)))
    assert found[0] == found[1]
    changed = [name for name in found[0] if found[0][name] != found[2][name]]
    assert changed == ["the module of the kernel"]


def enclosing(value: Any) -> Any:
    @sp.kernel("(n)->()", ragged="n")
    def total(x):
        return value(x) if callable(value) else value * x.sum(axis=-1)

    return total


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (2.0, 2.0, 3.0),
        (np.arange(3), np.arange(3), np.arange(3) + 1),
        (lambda x: x + 1, lambda x: x + 1, lambda x: x + 2),
        (Selector(1).scaled, Selector(1).scaled, Selector(2).scaled),
        (Scale(1.0, [2]), Scale(1.0, [2]), Scale(1.0, [3])),
        (Slotted(1), Slotted(1), Slotted(2)),
        (lambda x: x * Scale.unit, lambda x: x * Scale.unit, lambda x: x * Scale.other),
    ],
)
def test_what_a_kernel_encloses_counts(one, same, other):
    first, again, changed = (
        prints(k, DATA, sp.plan(k, DATA, rows=1))["the kernel"]
        for k in map(enclosing, (one, same, other))
    )
    assert first == again != changed


@pytest.mark.parametrize("make", [list, tuple, lambda x: {"w": x}, lambda x: [{"w": x}]])
def test_what_a_kernel_encloses_in_containers_counts(make):
    def weighted(weights: Any) -> Any:
        @sp.kernel("(n)->()", ragged="n")
        def total(x):
            return x.sum(axis=-1) * len(weights)

        return total

    first, again, changed = (
        digest(weighted(make(values))) for values in ([2.0, 1.0], [2.0, 1.0], [3.0, 1.0])
    )
    assert first == again != changed


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (bytearray(b"a"), bytearray(b"a"), bytearray(b"b")),
        (deque([1]), deque([1]), deque([2])),
        (Decimal(1), Decimal(1), Decimal(2)),
        (date(2024, 1, 1), date(2024, 1, 1), date(2025, 1, 1)),
        (Path("a"), Path("a"), Path("b")),
        ({1: 2}, {1: 2}, {"1": 2}),
        ({"b": 1, "a": 2}, {"a": 2, "b": 1}, {"a": 1, "b": 2}),
        ([[1], [2]], [[1], [2]], [[1, 2]]),
        (np.array(["a", None], object), np.array(["a", None], object), np.array([1], object)),
        (np.dtype("f4"), np.dtype("f4"), np.dtype("f8")),
    ],
)
def test_values_that_a_kernel_takes_in_any_form_count(one, same, other):
    def using(value: Any) -> Any:
        return lambda x: (x, value)

    assert digest(using(one)) == digest(using(same)) != digest(using(other))


def test_what_differs_from_one_process_to_the_next_and_changes_no_result_does_not_count():
    """Loggers, sets of functions, what was cached, and paths that were printed."""

    def made(name: str) -> Any:
        log, cached, path = logging.Logger(name), Cached(3), Path("a") / "b"
        log.addHandler(logging.NullHandler())
        if name == "other":
            assert log.isEnabledFor(10)
            assert cached.twice == 6
            assert str(path) == "a/b"
        return lambda x: (x, log, cached, path, {sorted, made})

    assert digest(made("one")) == digest(made("other"))


class Cached:
    """With an attribute that is kept once it was asked for."""

    def __init__(self, value: int) -> None:
        self.value = value

    @cached_property
    def twice(self) -> int:
        return 2 * self.value


def test_containers_that_a_kernel_fills_do_not_count():
    def using(calls: list[int], memo: dict[int, int], weights: list[float]) -> Any:
        def total(x):
            calls.append(1)
            memo[len(calls)] = 3
            return weights[0] * x.sum(axis=-1)

        return total

    first = digest(using([], {}, [2.0]))
    assert first == digest(using([1], {1: 3}, [2.0])) != digest(using([], {}, [3.0]))


def test_large_graphs_and_lists_have_a_fingerprint_in_no_time():
    def grid(value: int) -> Any:
        nodes = [[Selector(value) for _ in range(20)] for _ in range(20)]
        for x, row in enumerate(nodes):
            for y, node in enumerate(row):
                node.near = [nodes[x - 1][y], nodes[x][y - 1]]
        return nodes[0][0]

    start = time.perf_counter()
    assert digest(enclosing(grid(1))) == digest(enclosing(grid(1))) != digest(enclosing(grid(2)))
    chain = Selector(0)
    for _ in range(5000):
        chain = Selector(chain)  # type: ignore[arg-type]
    numbers = list(range(10**6))
    assert digest(enclosing([chain, numbers])) != digest(enclosing([chain, numbers[1:]]))
    assert time.perf_counter() - start < 10


def test_an_object_that_holds_itself_has_a_fingerprint():
    def made(power: int) -> Any:
        one = Selector(power)
        one.own = [one]
        return one

    first, again, changed = (digest(enclosing(made(power))) for power in (1, 1, 2))
    assert first == again != changed


CELLS = """
import stowplan as sp
weight = {weight}

def half(x):
    return {body}

@sp.kernel("(n)->()", ragged="n", fill={{"x": 0.0}})
def total(x):
    return weight * half(x).sum(axis=-1)
"""


@pytest.mark.parametrize(("weight", "body"), [("3.0", "x / 2"), ("2.0", "x / 2.5")])
def test_what_a_session_without_a_file_defines_counts(weight, body):
    """As in a notebook, where a module has no source."""

    def kernel(**values: str) -> Any:
        names: dict[str, Any] = {"__name__": "a_session"}
        exec(CELLS.format(**values), names)
        return names["total"]

    first = digest(kernel(weight="2.0", body="x / 2"))
    assert first == digest(kernel(weight="2.0", body="x / 2"))
    assert first != digest(kernel(weight=weight, body=body))


def test_a_global_that_was_set_while_its_module_ran_counts(tmp_path, monkeypatch):
    """Such as one of the command line, of which the source tells nothing."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "set_kernels.py").write_text(CELLS.format(weight="None", body="x / 2"))
    importlib.invalidate_caches()
    module = importlib.import_module("set_kernels")
    found = []
    for weight in (2.0, 2.0, 3.0):
        module.weight = weight
        found.append(digest(module.total))
    assert found[0] == found[1] != found[2]


COUNT = """
def count():
    global calls
    calls += 1
    return weight
"""


def test_what_a_kernel_sets_itself_does_not_count():
    """Such as a count of its calls, which is another one when the run is resumed."""

    def counting(start: int, scale: float) -> Any:
        calls = start

        @sp.kernel("(n)->()", ragged="n")
        def total(x):
            nonlocal calls
            calls += 1
            return scale * x.sum(axis=-1)

        return total

    assert digest(counting(0, 2.0)) == digest(counting(5, 2.0)) != digest(counting(0, 3.0))
    source = CELLS.format(weight="2.0", body="x / 2").replace("weight *", "count() *") + COUNT

    def session(calls: int) -> Any:
        names: dict[str, Any] = {"__name__": "a_session"}
        exec(f"{source}\ncalls = {calls}", names)
        return names["total"]

    assert digest(session(0)) == digest(session(7))


def test_functions_that_enclose_each_other_have_a_fingerprint():
    def even(n: int) -> bool:
        return n == 0 or odd(n - 1)

    def odd(n: int) -> bool:
        return n != 0 and even(n - 1)

    assert digest(even) == digest(even) != digest(odd)


def test_versions_are_named():
    kernel = make()
    found = prints(kernel, DATA, sp.plan(kernel, DATA, rows=1))
    assert found["the version of numpy"] == np.__version__
    assert found["the version of stowplan"] == sp.__version__


def test_what_is_forecast_is_no_part_of_a_plan():
    kernel = make()
    plan = sp.plan(kernel, DATA, rows=1, budget="1 MB", peak=(0, 100))
    assert plan.memory is not None
    assert prints(kernel, DATA, plan) == prints(kernel, DATA, replace(plan, memory=None))
