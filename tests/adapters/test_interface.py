"""What all adapters promise."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import stowplan as sp
from stowplan.adapters import FRAMEWORKS, framework_of, get_adapter, installed_frameworks
from stowplan.adapters.interface import static_key


def test_an_adapter_that_fails_for_another_reason_says_so(load_framework, monkeypatch):
    load_framework("torch")
    monkeypatch.delitem(sys.modules, "stowplan.adapters.torch", raising=False)
    monkeypatch.setitem(sys.modules, "stowplan.adapters.interface", None)
    with pytest.raises(ImportError) as caught:
        get_adapter("torch")
    assert not isinstance(caught.value, sp.MissingDependencyError)


def test_frameworks_are_recognised_by_their_arrays(xp, framework):
    assert framework_of([1.0, "text", xp.asarray([1.0])]) == framework
    assert framework_of([1.0, "text", None]) is None
    assert framework in installed_frameworks()
    assert set(installed_frameworks()) <= set(FRAMEWORKS)
    assert get_adapter(framework).name == framework


def test_host_arrays_survive_the_way_to_a_device_and_back(framework):
    adapter = get_adapter(framework)
    for values in (
        np.arange(3.0),
        np.arange(3),
        np.array([True, False]),
        np.array(1.5),
        np.ones((2, 0)),
    ):
        moved = adapter.asarray(values, adapter.devices()[0])
        back = adapter.to_host(moved)
        assert back.dtype == values.dtype
        assert back.shape == values.shape
        assert np.array_equal(back, values)
        assert not adapter.requires_grad(moved)
        assert not adapter.is_traced(moved)


def test_what_an_adapter_says_to_share_is_the_memory_that_it_was_given(framework):
    adapter = get_adapter(framework)
    read_only = np.arange(6.0, dtype=np.float32)
    read_only.flags.writeable = False
    arrays = [np.ones((2, 3), np.float32), np.ones((2, 3), np.float32).T, read_only, np.arange(5)]
    for values in arrays:
        staged = adapter.stage(values, adapter.devices()[0])
        shared = np.shares_memory(adapter.to_host(staged), values)
        assert shared or not adapter.shares(values, adapter.devices()[0])
    if framework in ("numpy", "torch", "jax"):
        assert adapter.shares(arrays[0], adapter.devices()[0])


def test_static_keys_tell_types_apart():
    keys = {static_key({"power": value}) for value in (1, 1.0, True)}
    assert len(keys) == 3
    assert static_key({"a": 1, "b": 2}) == static_key({"b": 2, "a": 1})
