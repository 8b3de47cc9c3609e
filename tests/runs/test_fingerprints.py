"""Laws of fingerprints: the same for the same run in any process, another for any other."""

from __future__ import annotations

import functools
import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
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
    ],
)
def test_what_a_kernel_encloses_counts(one, same, other):
    first, again, changed = (
        prints(k, DATA, sp.plan(k, DATA, rows=1))["the kernel"]
        for k in map(enclosing, (one, same, other))
    )
    assert first == again != changed


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
