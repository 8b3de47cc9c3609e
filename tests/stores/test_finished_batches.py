"""Laws of the folder of finished batches: what is saved comes back, and only to its own run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import stowplan as sp
from stowplan.stores.finished_batches import FinishedBatches

SELF = {"the plan": "a", "column 'x'": "b"}


@given(
    values=hnp.arrays(
        st.one_of(hnp.floating_dtypes(), hnp.integer_dtypes(), hnp.complex_number_dtypes()),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    number=st.integers(0, 10**7),
)
def test_outputs_come_back_bit_by_bit(tmp_path_factory, values, number):
    batches = FinishedBatches(tmp_path_factory.mktemp("run"), SELF, "run")
    batches.save(number, [values], ["module", "Name", "one"])
    assert batches.numbers() == {number}
    (found,), kind = batches.read(number)
    assert kind == ["module", "Name", "one"]
    assert found.dtype == values.dtype.newbyteorder("=") or found.dtype == values.dtype
    assert found.shape == values.shape
    np.testing.assert_array_equal(found, values)


def test_ragged_outputs_come_back_with_their_shapes(tmp_path):
    pool = sp.Ragged.from_list([np.ones((2, 3)), np.zeros((1, 3)), np.full((0, 3), 2.0)])
    view = pool[[1, 0, 0]]
    batches = FinishedBatches(tmp_path / "run", SELF, "run")
    batches.save(0, [view, np.arange(3)])
    found, plain = batches.load(0)
    np.testing.assert_array_equal(found.shapes, view.shapes)
    for one, other in zip(found, view, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(plain, np.arange(3))


def test_numbers_that_numpy_does_not_know_by_itself_keep_their_dtype(tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.arange(3).astype(ml_dtypes.bfloat16)
    batches = FinishedBatches(tmp_path / "run", SELF, "run")
    batches.save(0, [values])
    assert batches.load(0)[0].dtype == values.dtype
    np.testing.assert_array_equal(batches.load(0)[0], values)


def test_a_batch_that_was_not_written_to_its_end_does_not_count(tmp_path):
    batches = FinishedBatches(tmp_path / "run", SELF, "run")
    batches.save(2, [np.ones(3)])
    (tmp_path / "run" / "batch-000005.npz.part").write_bytes(b"PK")
    assert batches.numbers() == {2}


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_damaged_batch_is_told_and_left_out(tmp_path, caplog, place):
    batches = FinishedBatches(tmp_path / "run", SELF, "run")
    for number in (0, 1):
        batches.save(number, [np.arange(1000.0)])
    path = tmp_path / "run" / "batch-000001.npz"
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(bytes(content))
    assert list(batches.readable()) == [0]
    assert "run: batch 1 is computed again" in caplog.text


def test_a_folder_of_another_run_is_refused_naming_what_differs(tmp_path):
    FinishedBatches(tmp_path / "run", SELF, "run")
    FinishedBatches(tmp_path / "run", dict(SELF), "run")
    with pytest.raises(sp.PlanError, match=r"another run: column 'x' differs\."):
        FinishedBatches(tmp_path / "run", {**SELF, "column 'x'": "c"}, "run")
    with pytest.raises(sp.PlanError, match=r"column 'y', column 'x' differ\."):
        FinishedBatches(tmp_path / "run", {"the plan": "a", "column 'y'": "b"}, "run")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no manifest"),
        ("[]", '"format" is not'),
        (json.dumps({"format": "stowplan finished batches", "version": 9}), "has version 9"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(tmp_path: Path, text: str, message: str):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(sp.PlanError, match=message):
        FinishedBatches(tmp_path, SELF, "run")
