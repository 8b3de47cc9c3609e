"""No array moves between devices or frameworks that nobody asked to move."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from array_api_compat import array_namespace

import stowplan as sp
from stowplan.adapters import get_adapter


@sp.kernel("(n),(n)->(),(n)", ragged="n", fill={"index": -1})
def pick(x, index, *, scale, mask):
    """Uses gather, index columns, masks and shared numbers at once."""
    xp = array_namespace(x)
    safe = xp.where(index < 0, xp.zeros_like(index), index)
    found = xp.take_along_axis(x, safe, axis=-1)
    found = xp.where(mask["n"] & (index >= 0), found, xp.zeros_like(found))
    return scale * xp.sum(found, axis=-1), scale * found


def make_data(xp, device=None):
    x = xp.asarray([1.0, 2.0, 4.0, 8.0, 16.0], dtype=xp.float64, device=device)
    index = xp.asarray([1, 1, 0, -1, 2], dtype=xp.int64, device=device)
    return {"x": sp.Ragged(x, [2, 3]), "index": sp.Ragged(index, [2, 3])}


@pytest.fixture
def strict():
    return pytest.importorskip("array_api_strict")


@pytest.fixture(params=["CPU_DEVICE", "device1", "device2"])
def device(strict, request):
    return strict.Device(request.param)


def test_data_on_a_device_stay_there_with_no_copy_to_the_host(strict, device, monkeypatch):
    adapter = get_adapter("array_api_strict")

    def refuse(*_):
        raise AssertionError("a copy to the host")

    monkeypatch.setattr(adapter, "to_host", refuse)
    data = make_data(strict, device)
    for slots in (1, "exact"):
        plan = sp.plan(pick, data, slots=slots)
        for scale in (2.0, np.float64(2.0), strict.asarray(2.0, device=device)):
            total, each = sp.run(pick, data, plan, scale=scale)
            assert total.device == each.values.device == device
    monkeypatch.undo()
    assert np.asarray(total.to_device(strict.Device("CPU_DEVICE"))).tolist() == [8.0, 40.0]


def test_views_of_a_pool_on_a_device_stay_there(strict, device):
    data = {name: column[[1, 0, 1]] for name, column in make_data(strict, device).items()}
    total, _ = sp.run(pick, data, scale=1.0)
    assert total.device == device


def test_no_items_on_a_device(strict, device):
    data = {name: column[[]] for name, column in make_data(strict, device).items()}
    total, each = sp.run(pick, data, scale=1.0)
    assert total.device == each.values.device == device
    assert total.shape == (0,)


def test_a_plan_serves_data_on_two_devices_in_turn(strict):
    plan = None
    for name in ("CPU_DEVICE", "device1", "CPU_DEVICE"):
        data = make_data(strict, strict.Device(name))
        plan = plan or sp.plan(pick, data)
        assert sp.run(pick, data, plan, scale=1.0)[0].device == strict.Device(name)


def test_device_asks_for_a_move_and_results_come_back(strict):
    cpu, other = strict.Device("CPU_DEVICE"), strict.Device("device1")
    seen = []

    @sp.kernel("(n)->()", ragged="n")
    def total(x):
        seen.append(x.device)
        return array_namespace(x).sum(x, axis=-1)

    x = sp.Ragged(strict.asarray([1.0, 2.0, 4.0], device=cpu), [1, 2])
    for device in (other, str(other), 1):
        result = sp.run(total, {"x": x}, device=device)
        assert result.device == cpu
        assert seen[-1] == other


def test_arrays_on_two_devices_are_an_error(strict):
    data = make_data(strict, strict.Device("device1"))
    here = make_data(strict, strict.Device("CPU_DEVICE"))
    with pytest.raises(sp.FrameworkError, match="two devices"):
        sp.run(pick, {**data, "x": here["x"]}, scale=1.0)
    with pytest.raises(sp.FrameworkError, match="two devices"):
        sp.run(pick, data, scale=strict.asarray(1.0, device=strict.Device("CPU_DEVICE")))


def test_two_frameworks_in_one_call_are_an_error(strict):
    data = make_data(strict)
    other = make_data(np)
    with pytest.raises(sp.FrameworkError, match=r"run: .*array_api_strict and numpy"):
        sp.run(pick, {**data, "x": other["x"]}, scale=1.0)
    with pytest.raises(sp.FrameworkError, match=r"plan: .*array_api_strict and numpy"):
        sp.plan(pick, {**data, "x": other["x"]})
    with pytest.raises(sp.FrameworkError, match="two frameworks"):
        sp.run(pick, data, scale=np.ones(3))


def test_an_unknown_framework_lists_the_known_ones():
    with pytest.raises(sp.FrameworkError, match=r"on='numppy'.*numpy, jax, torch, cupy"):
        sp.run(pick, make_data(np), on="numppy", scale=1.0)


@pytest.mark.parametrize("device", [7, -1, "cuda:9", "gpu", object()])
def test_an_unknown_device_lists_the_known_ones(framework, device):
    with pytest.raises(sp.FrameworkError, match=f"no device of {framework} here; it has: "):
        sp.run(pick, make_data(np), on=framework, device=device, scale=1.0)


@pytest.mark.parametrize("name", ["jax", "torch", "cupy"])
def test_a_framework_that_is_not_installed_names_the_extra(name, monkeypatch):
    monkeypatch.delitem(sys.modules, f"stowplan.adapters.{name}", raising=False)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        sp.MissingDependencyError, match=rf"run: .*pip install 'stowplan\[{name}\]'"
    ):
        sp.run(pick, make_data(np), on=name, scale=1.0)
