"""Sizes and plans that reports are tried on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import stowplan as sp
from stowplan.memory import Budget
from stowplan.peaks import Forecast

ONE = [{"atoms": 192, "k": 32768}]
TWO = [{"atoms": 64, "k": 4096}, {"atoms": 192, "k": 32768}]


def structures():
    """3200 structures, 96 of them large; their sizes are given by formulas."""
    a = 0.815 / (1 - 0.815)
    small = np.floor(4096 * ((np.arange(3104) + 0.5) / 3104) ** (1 / a)).astype(int)
    atoms = np.clip(np.round(64 * (small / 4096) ** 0.7), 2, 64).astype(int)
    place = (np.arange(96) + 0.5) / 96
    large = np.floor(4097 * (32768 / 4097) ** place).astype(int)
    more = np.minimum(np.round(64 + 128 * place), 192).astype(int)
    order = np.random.default_rng(0).permutation(3200)
    sizes = {"atoms": np.concatenate([atoms, more]), "k": np.concatenate([small, large])}
    return {name: column[order] for name, column in sizes.items()}


@pytest.fixture(scope="session")
def sizes():
    return structures()


@pytest.fixture(scope="session")
def finished(sizes):
    """A run of all that a report can show: costs, bytes, a budget, devices, measured numbers."""
    plan = replace(
        sp.assign_slots(sizes, TWO), costs=sp.Costs(2e-9, 1e-3, 0.8), on="jax",
        item_bytes="24 * atoms + 12 * k",
    )  # fmt: skip
    plan = sp.split_chunks(plan, rows=64)
    forecast = Forecast(
        Budget(2**30, 'budget="1 GiB"'), 20 * 2**20, (64 * 2**20, 700 * 2**20), ("probes",)
    )
    plan = sp.share_devices(replace(plan, memory=forecast), 4)
    return sp.RunRecord(plan, seconds=14.3, peak_bytes=650 * 2**20)
