"""The worked examples reach what they promise."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import stowplan as sp
from stowplan.memory import parse_bytes

FOLDER = Path(__file__).parents[1] / "examples"
SHORT = sorted((FOLDER.parent / "docs" / "examples").glob("*.py"))
NEEDED = {"coin_shapes": "skimage", "kinase_ligands": "rdkit"}
STEPS = 400


@contextmanager
def loaded(name: str) -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[name]


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    with loaded("element_charges") as module:
        yield module


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


@pytest.fixture(scope="module")
def refining() -> Iterator[ModuleType]:
    with loaded("refine_crystal") as module:
        yield module


@pytest.fixture(scope="module")
def refined(refining: ModuleType) -> dict[str, object]:
    """The crystal refined by every framework that is installed, from one small image."""
    pytest.importorskip("torch")
    measured = refining.photons(refining.SMALL, refining.TRUTH)
    frameworks = [name for name in refining.GRADIENTS if importlib.util.find_spec(name)]
    return {on: refining.refine(on, refining.SMALL, measured) for on in frameworks}


def test_cell_misset_and_spread_are_refined_to_a_thousandth(refined: dict[str, object]) -> None:
    for done in refined.values():
        assert done.errors.max() < 1e-3
        assert done.losses[-1] < 1e-6 * done.losses[0]


def test_both_frameworks_refine_to_the_same_and_compile_once(refined: dict[str, object]) -> None:
    if "jax" not in refined:
        pytest.skip("JAX is not installed")
    both = [done.found for done in refined.values()]
    np.testing.assert_allclose(*both, rtol=5e-4)
    np.testing.assert_allclose(*(done.losses[0] for done in refined.values()), rtol=1e-4)
    assert refined["jax"].compiles[0] > 0
    assert sum(refined["jax"].compiles[1:]) == 0


@pytest.mark.parametrize("on", ["torch", "jax"])
def test_the_gradient_of_the_image_takes_chunks_within_the_budget(
    refining: ModuleType, on: str
) -> None:
    pytest.importorskip(on)
    setup = refining.SMALL
    plan = refining.planned(on, setup)
    assert len(plan.batches) > 1
    assert plan.memory.peak_bytes <= plan.memory.budget.bytes == parse_bytes(setup.budget)


def test_the_gradient_of_the_image_at_once_is_beyond_the_budget(refining: ModuleType) -> None:
    pytest.importorskip("torch")
    for setup in (refining.SMALL, refining.FULL):
        found = refining.forecast("torch", setup)
        assert found.gradient.full_bytes > 1.5 * parse_bytes(setup.budget)
        assert found.gradient.chunks[0].count > 1


def test_the_picture_of_a_refinement_is_drawn(
    refining: ModuleType, refined: dict[str, object], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    measured = refining.photons(refining.SMALL, refining.TRUTH)
    path = refining.draw(list(refined.values()), refining.SMALL, measured, tmp_path / "new")
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("script", SHORT, ids=lambda script: script.stem)
def test_a_short_example_draws_its_picture(script: Path, tmp_path: Path) -> None:
    for package in ("matplotlib", "ase", NEEDED.get(script.stem, "numpy")):
        pytest.importorskip(package)
    done = subprocess.run(
        [sys.executable, script, "--small", "--out", tmp_path / "new"],
        capture_output=True,
        check=False,
        env={**os.environ, "MPLBACKEND": "agg"},
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "new" / f"{script.stem}.png").read_bytes().startswith(b"\x89PNG")
    if script.stem == "salt_potential":
        assert "Madelung's constant 1.74756459" in done.stdout


def test_there_are_five_short_examples_of_less_than_sixty_lines() -> None:
    assert len(SHORT) == 5
    assert all(len(script.read_text("utf-8").splitlines()) < 60 for script in SHORT)
