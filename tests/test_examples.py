"""The worked examples reach what they promise."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import stowplan as sp

FILE = Path(__file__).parents[1] / "examples" / "element_charges.py"
STEPS = 400


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("element_charges", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["element_charges"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["element_charges"]


@pytest.fixture(scope="module")
def learnt(example: ModuleType) -> dict[str, object]:
    """Charges learnt by every framework that is installed, with its optimiser."""
    pytest.importorskip("torch")
    data = example.columns()
    plan = sp.plan(example.misfit, data)
    slots = sp.choose_slots(plan.sizes, example.SLOTS, minibatch=example.MINIBATCH, work=plan.work)
    found = {"torch": example.learn("torch", data, slots, STEPS)}
    if importlib.util.find_spec("optax"):
        found["jax"] = example.learn("jax", data, slots, STEPS)
    return found


def test_charges_are_learnt_to_a_millionth(learnt: dict[str, object]) -> None:
    for done in learnt.values():
        assert done.error < 1e-6
        assert done.losses[-1] < 1e-9 * done.losses[0]


def test_both_frameworks_learn_the_same_and_trace_once(learnt: dict[str, object]) -> None:
    if "jax" not in learnt:
        pytest.skip("optax is not installed")
    both = [list(done.charges.values()) for done in learnt.values()]
    np.testing.assert_allclose(*both, atol=1e-9)
    np.testing.assert_allclose(learnt["jax"].losses, learnt["torch"].losses, rtol=1e-6, atol=1e-18)
    assert learnt["jax"].traces == 1


def test_the_picture_is_drawn(
    example: ModuleType, learnt: dict[str, object], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    path = example.draw(list(learnt.values()), tmp_path / "new")
    assert path.read_bytes().startswith(b"\x89PNG")
