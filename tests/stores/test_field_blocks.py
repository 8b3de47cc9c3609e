"""Blocks of fields: each value in one of them, read and written as slices of the fields would."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stowplan as sp
from stowplan.stores.arrays import create_array, open_array
from stowplan.stores.field_blocks import Block, FieldBlocks, count_blocks, cut_fields

SHAPES = st.lists(st.integers(1, 6), min_size=1, max_size=5)


@st.composite
def cuts(draw: Any) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    shape = tuple(draw(SHAPES))
    most = min(3, len(shape))
    axes = tuple(draw(st.permutations(range(len(shape))))[: draw(st.integers(1, most))])
    return shape, axes, draw(st.integers(1, 2000))


@settings(max_examples=150, deadline=None)
@given(cut=cuts())
def test_every_value_is_in_one_block_whole_in_space_and_of_few_enough_bytes(cut):
    shape, axes, most = cut
    blocks = cut_fields([shape, shape], axes, 8, most)
    seen = np.zeros((2, *shape), int)
    place = 8 * math.prod(shape[axis] for axis in axes)
    for block in blocks:
        seen[block.field][block.index] += 1
        part = seen[block.field][block.index]
        assert all(part.shape[axis] == shape[axis] for axis in axes)
        assert part.size * 8 <= max(most, place)
    assert (seen == 1).all()
    others = [n for axis, n in enumerate(shape) if axis not in axes]
    count, lines = count_blocks(others, max(most // place, 1))
    sizes = [math.prod(p.stop - p.start for p in block.index) for block in blocks]
    assert (count, lines * place) == (len(blocks) // 2, 8 * max(sizes))


def moved(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    others = [axis for axis in range(values.ndim) if axis not in axes]
    return values.transpose([*axes, *others]).ravel()


@settings(max_examples=60, deadline=None)
@given(
    cut=cuts(), kind=st.sampled_from(["npy", "fortran", "big", "zarr", "memory"]), data=st.data()
)
def test_blocks_are_read_as_slices_are(tmp_path_factory, cut, kind, data):
    shape, axes, most = cut
    folder = tmp_path_factory.mktemp("blocks")
    values = [np.random.default_rng(n).normal(size=shape) for n in range(2)]
    fields = []
    for number, array in enumerate(values):
        path = folder / f"{number}.npy"
        if kind == "zarr":
            zarr = pytest.importorskip("zarr")
            chunks = tuple(max(n // 2, 1) for n in shape)
            made = zarr.create_array(
                store=str(folder / f"{number}.zarr"), shape=shape, dtype="f8", chunks=chunks
            )
            made[...] = array
            fields.append(open_array(made, "test"))
            continue
        turned = {"fortran": np.asfortranarray(array), "big": array.astype(">f8")}.get(kind, array)
        np.save(path, turned)
        fields.append(open_array(path, "test"))
    blocks = cut_fields([shape, shape], axes, 8, most)
    stored = FieldBlocks(fields, blocks, axes)
    wanted = np.concatenate([moved(values[b.field][b.index], axes) for b in blocks])
    first = data.draw(st.integers(0, len(blocks)))
    last = data.draw(st.integers(first, len(blocks)))
    stops = np.cumsum([0, *stored.layout.counts])
    start, stop = int(stops[first]), int(stops[last])
    into = np.full(stop - start, np.nan)
    assert stored.read(start, stop, into) is into
    np.testing.assert_array_equal(into, wanted[start:stop])
    assert stored.shape == (2 * math.prod(shape),)
    lead = [shape[axis] for axis in axes] + [1] * (3 - len(axes))
    assert (stored.layout.shapes[:, :3] == lead).all()


@settings(max_examples=40, deadline=None)
@given(cut=cuts(), kind=st.sampled_from(["npy", "zarr"]))
def test_blocks_that_are_written_are_the_fields(tmp_path_factory, cut, kind):
    shape, axes, most = cut
    pytest.importorskip("zarr" if kind == "zarr" else "numpy")
    folder = tmp_path_factory.mktemp("blocks")
    values = np.random.default_rng(0).normal(size=shape)
    made = create_array(folder / f"a.{kind}", shape, "f8", "test")
    blocks = cut_fields([shape], axes, 8, most)
    stored = FieldBlocks([made], blocks, axes)
    stops = np.cumsum([0, *stored.layout.counts]).tolist()
    order = np.random.default_rng(1).permutation(len(blocks)).tolist()
    for number in order:
        stored.write(stops[number], moved(values[blocks[number].index], axes))
    made.finish()
    again = open_array(folder / f"a.{kind}", "test")
    np.testing.assert_array_equal(again.read(0, shape[0]), values)


def test_rows_that_are_no_whole_blocks_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 6)))
    field = open_array(tmp_path / "a.npy", "test")
    stored = FieldBlocks([field], cut_fields([(4, 6)], (0,), 8, 64), (0,))
    with pytest.raises(sp.DataError, match="no whole blocks"):
        stored.read(0, 5)
    with pytest.raises(sp.DataError, match="no whole blocks"):
        stored.read(1, 8)


def test_what_is_checked_is_each_block_with_the_axes_of_its_field(tmp_path):
    values = np.arange(24.0).reshape(2, 3, 4)
    np.save(tmp_path / "a.npy", values)
    field, seen = open_array(tmp_path / "a.npy", "test"), []

    def check(own: Any, block: Block, part: np.ndarray) -> None:
        seen.append((own is field, np.array_equal(part, values[block.index])))

    blocks = cut_fields([(2, 3, 4)], (2, 0), 8, 64)
    FieldBlocks([field], blocks, (2, 0), check).read(0, 24)
    assert seen == [(True, True)] * 3


def test_the_identity_says_how_fields_are_cut(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 6)))
    field = open_array(tmp_path / "a.npy", "test")
    one, same, other = (
        FieldBlocks([field], cut_fields([(4, 6)], (0,), 8, most), (0,)).identity()
        for most in (64, 64, 128)
    )
    assert one == same != other
