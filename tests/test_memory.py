"""Budgets in bytes: what people write, exactly, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stowplan.errors import BudgetError
from stowplan.memory import parse_bytes, show_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("7B", 7),
        (" 300 MB ", 300_000_000),
        ("4 GiB", 4 * 2**30),
        ("4gib", 4 * 2**30),
        ("2 KiB", 2048),
        ("2 kB", 2000),
        ("1.5MB", 1_500_000),
        ("0.5 KiB", 512),
        ("3 TiB", 3 * 2**40),
        ("3 TB", 3 * 10**12),
        (4096.0, 4096),
        (np.int64(12), 12),
    ],
)
def test_a_budget_is_read_in_every_unit(text, size):
    assert parse_bytes(text) == size


@given(st.integers(1, 10**40))
def test_no_byte_is_lost_to_rounding(size):
    assert parse_bytes(size) == size
    assert parse_bytes(f"{size} KiB") == 1024 * size


@pytest.mark.parametrize(
    "text",
    ["", "GiB", "4 XB", "4 GiBs", "-5", "1e9", ".5 GB", "4 GiB 3", None, True, "4,5 GB", "inf"],
)
def test_what_is_no_number_of_bytes_is_refused_with_examples(text):
    with pytest.raises(BudgetError, match=r"is no number of bytes. Write 4096, '300 MB', '4 GiB'"):
        parse_bytes(text)


@pytest.mark.parametrize("text", [0, "0 GiB", "0.0001 KiB", 0.8])
def test_less_than_one_byte_is_refused(text):
    with pytest.raises(BudgetError, match="less than one byte"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1000, "1000 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (2**20, "1 MiB"),
        (4.5 * 2**30, "4.5 GiB"),
        (2**40, "1 TiB"),
        (2**50, "1024 TiB"),
    ],
)
def test_bytes_are_shown_without_exponents(size, text):
    assert show_bytes(size) == text
