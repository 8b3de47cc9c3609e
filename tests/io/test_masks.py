"""Masks from files: what each format holds, what values may mean, and what is refused."""

from __future__ import annotations

import logging
import re
import struct
import sys
import zlib
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stowplan.errors import DataError, MissingDependencyError
from stowplan.io.masks import read, read_with_places

BENT = np.array([[0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1]], bool)
LABELLED = np.array([[0, 3, 3, 0], [7, 0, 3, 250], [7, 7, 0, 250]], np.uint8)
WIDE = BENT.astype(np.uint8) * 255
GREY_OR_COLOUR = {2: "minisblack", 3: "rgb", 4: "rgb"}
OME = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
STACKS = hnp.arrays(bool, st.tuples(*[st.integers(1, 6)] * 2, st.integers(2, 9)))


def need(*modules):
    return [pytest.importorskip(module) for module in modules]


def save_png(path, image, **options):
    (pillow,) = need("PIL.Image")
    need("imageio")
    pillow.fromarray(image).save(path, **options)
    return path


def save_palette(path, indices, colours, **options):
    (pillow,) = need("PIL.Image")
    need("imageio")
    image = pillow.fromarray(indices, "L")
    image.putpalette([level for colour in colours for level in colour])
    image.save(path, **options)
    return path


def save_tiff(path, image, **options):
    (tifffile,) = need("tifffile")
    tifffile.imwrite(path, image, **{"photometric": "minisblack"} | options)
    return path


def save_npy(path, array):
    np.save(path, array)
    return path


def assert_masks(found, expected):
    assert len(found) == len(expected)
    for mask, image in zip(found, expected, strict=True):
        assert mask.dtype == np.bool_
        np.testing.assert_array_equal(mask, image)


def refused(path, *words, **options):
    """The message, which must name the file and hold the words."""
    with pytest.raises(DataError) as error:
        read(path, **options)
    message = str(error.value)
    assert message.startswith("read: ")
    assert message.count("read: ") == 1
    for word in (Path(path).name, *words):
        assert word in message
    return message


# Formats


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.uint16, np.float32])
@given(stack=STACKS)
def test_arrays_are_read_as_they_were_saved(stack, dtype, tmp_path):
    saved = stack.astype(dtype)
    np.save(tmp_path / "stack.npy", saved)
    np.save(tmp_path / "frame.npy", saved[0])
    np.savez(tmp_path / "stack.npz", second=saved[0], first=saved)
    assert_masks(read(tmp_path / "stack.npy"), stack)
    assert_masks(read(tmp_path / "frame.npy"), stack[:1])
    assert_masks(read(tmp_path / "stack.npz"), [stack[0], *stack])


@given(stack=STACKS)
def test_a_png_is_one_mask_whether_by_bits_bytes_or_words(stack, tmp_path):
    path = tmp_path / "mask.png"
    for image in (
        stack[0],
        stack[0].astype(np.uint8),
        stack[0] * np.uint8(255),
        stack[0] * np.uint16(65535),
    ):
        assert_masks(read(save_png(path, image)), stack[:1])
    imageio, _ = need("imageio.v3", "PIL")
    imageio.imwrite(path, stack[0] * np.uint8(255), mode="L")
    assert_masks(read(path), stack[:1])


@pytest.mark.parametrize("suffix", [".bmp", ".pbm", ".webp", ".png"])
def test_other_pictures_are_read_too(suffix, tmp_path):
    options = {"lossless": True} if suffix == ".webp" else {}
    image = BENT if suffix == ".pbm" else WIDE
    assert_masks(read(save_png(tmp_path / f"mask{suffix}", image, **options)), [BENT])


@pytest.mark.parametrize("suffix", [".gif", ".png"])
def test_a_moving_picture_is_a_mask_for_each_frame(suffix, tmp_path):
    pillow, _ = need("PIL.Image", "imageio")
    stack = [WIDE, 255 - WIDE, WIDE[::-1]]
    first, *others = map(pillow.fromarray, stack)
    path = tmp_path / f"moving{suffix}"
    first.save(path, save_all=True, append_images=others)
    assert_masks(read(path), [image > 0 for image in stack])


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"bigtiff": True}, {"ome": True}])
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.float32])
@settings(max_examples=20)
@given(stack=STACKS)
def test_a_tiff_of_pages_is_read_as_it_was_saved(stack, dtype, options, tmp_path):
    if options.get("ome") and dtype is bool:
        return  # has a test of its own
    saved, path = stack.astype(dtype), tmp_path / "stack.tif"
    assert_masks(read(save_tiff(path, saved, **options)), stack)
    assert_masks(read(save_tiff(path, saved[0], **options)), stack[:1])


@settings(max_examples=20)
@given(stack=STACKS)
def test_bool_tiffs_of_tifffile_are_true_where_they_were(stack, tmp_path):
    (tifffile,) = need("tifffile")
    for options in ({}, {"ome": True}):
        tifffile.imwrite(tmp_path / "stack.tif", stack, **options)  # photometric: white is 0
        assert_masks(read(tmp_path / "stack.tif"), stack)


@settings(max_examples=20)
@given(stack=STACKS)
def test_tiffs_of_pillow_and_imageio_are_read_as_they_were_saved(stack, tmp_path):
    pillow, imageio, _ = need("PIL.Image", "imageio.v3", "tifffile")
    path = tmp_path / "stack.tiff"
    for kind in (bool, np.uint8):
        first, *others = (pillow.fromarray(image.astype(kind)) for image in stack)
        first.save(path, save_all=True, append_images=others)
        assert_masks(read(path), stack)
    imageio.imwrite(path, stack[0].astype(np.uint8))
    assert_masks(read(path), stack[:1])


def test_frames_appended_to_a_tiff_one_by_one_are_read_in_their_order(tmp_path):
    (tifffile,) = need("tifffile")
    canvases = [BENT, ~BENT, BENT[:, :2], BENT[:2]]
    with tifffile.TiffWriter(tmp_path / "grown.tif") as file:
        for canvas in canvases:
            file.write(canvas.astype(np.uint8), photometric="minisblack")
    assert_masks(read(tmp_path / "grown.tif"), canvases)


def test_pages_whose_canvases_alternate_are_refused_rather_than_reordered(tmp_path):
    pillow, _ = need("PIL.Image", "tifffile")
    first, *others = (pillow.fromarray(image) for image in (WIDE, WIDE[:2], ~WIDE))
    first.save(tmp_path / "turns.tif", save_all=True, append_images=others)
    refused(tmp_path / "turns.tif", "several canvases in turn", "Save a file for each")


def test_three_columns_are_a_narrow_canvas_and_never_colours(tmp_path):
    narrow = np.stack([BENT[:, :3]] * 2 + [~BENT[:, :3]])
    for path in (
        save_npy(tmp_path / "narrow.npy", narrow),
        save_tiff(tmp_path / "narrow.tif", narrow.astype(np.uint8)),
    ):
        assert_masks(read(path), narrow)
    assert_masks(read(save_png(tmp_path / "narrow.png", WIDE[:, :3])), narrow[:1])


def test_a_suffix_may_be_in_capitals(tmp_path):
    with (tmp_path / "MASK.NPY").open("wb") as file:
        np.save(file, BENT)
    assert_masks(read(tmp_path / "MASK.NPY"), [BENT])


# Values


def test_the_masks_of_a_label_image_partition_what_is_not_background(tmp_path):
    path = save_npy(tmp_path / "cells.npy", LABELLED)
    masks = read(path, labels="all")
    assert_masks(masks, [LABELLED == 3, LABELLED == 7, LABELLED == 250])
    np.testing.assert_array_equal(np.sum(masks, axis=0), LABELLED != 0)


@given(stack=hnp.arrays(np.uint16, (2, 3, 5), elements=st.sampled_from([0, 1, 300, 40000])))
def test_labels_survive_every_format(stack, tmp_path):
    stack[:, 0, 0] = 300
    expected = [frame == n for frame in stack for n in (1, 300, 40000) if (frame == n).any()]
    files = [
        save_png(tmp_path / "0.png", stack[0]),
        save_png(tmp_path / "1.png", stack[1]),
        save_npy(tmp_path / "stack.npy", stack.astype(np.float32)),
        save_tiff(tmp_path / "stack.tif", stack),
    ]
    assert_masks(read(files, labels="all"), 3 * expected)


def test_chosen_labels_come_in_the_order_of_the_caller_for_each_frame(tmp_path):
    stack = np.stack([LABELLED, LABELLED[::-1]])
    path = save_npy(tmp_path / "stack.npy", stack)
    masks = read(path, labels=np.array([7, 3]))
    assert_masks(masks, [stack[0] == 7, stack[0] == 3, stack[1] == 7, stack[1] == 3])


def test_values_that_no_one_explained_are_refused_with_both_cures(tmp_path):
    path = save_png(tmp_path / "cells.png", LABELLED)
    refused(
        path,
        "4 values (0, 3, 7, 250) in 1 frame of 3 × 4",
        "labels='all'",
        "threshold=125 ",
    )
    many = np.arange(40, dtype=np.int32).reshape(2, 4, 5)
    refused(
        save_npy(tmp_path / "many.npy", many),
        "40 values (0, 1, 2, 3, 4, 5, 6, 7, ...) in 2 frames of 4 × 5",
    )


@pytest.mark.parametrize("values", [(0, 128), (1, 2), (1, 255), (-1, 0), (0.0, 0.5), (7, 7)])
def test_two_values_that_are_no_mask_are_refused(values, tmp_path):
    image = np.where(BENT, *values)
    refused(save_npy(tmp_path / "two.npy", image), str(values[0]), str(values[1]), "0 and 255")


def test_a_stack_is_two_valued_as_a_whole(tmp_path):
    stack = np.stack([BENT * 1, BENT * 255])
    refused(save_npy(tmp_path / "stack.npy", stack), "3 values (0, 1, 255)")
    parts = [save_npy(tmp_path / f"{n}.npy", frame) for n, frame in enumerate(stack)]
    assert_masks(read(parts), [BENT, BENT])


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float64])
def test_masks_may_be_empty_or_full(dtype, tmp_path):
    for fill in (0, 1):
        image = np.full((3, 4), fill, dtype)
        assert_masks(read(save_npy(tmp_path / "flat.npy", image)), [image.astype(bool)])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
@given(threshold=st.one_of(st.integers(-5, 300), st.floats(-5, 300, width=16)))
def test_a_threshold_keeps_what_is_above_it(threshold, dtype, tmp_path):
    image = np.arange(240).reshape(2, 10, 12).astype(dtype)
    above = [[[float(v) > threshold for v in row] for row in frame] for frame in image]
    assert_masks(read(save_npy(tmp_path / "grey.npy", image), threshold=threshold), above)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([3, 4, 5], "lacks 2 labels (4, 5); it holds 3 labels (3, 7, 250)"),
        ([300], "lacks 1 label (300)"),
    ],
)
def test_a_label_that_is_in_no_pixel_is_named_with_its_frame(labels, words, tmp_path):
    path = save_npy(tmp_path / "cells.npy", np.stack([LABELLED] * 2))
    refused(path, "frame 0 of 2 frames of 3 × 4", words, labels=labels)
    later = np.stack([np.full((3, 4), labels[0], np.uint16)] * 2)
    for n, label in enumerate(labels):
        later[0, 0, n] = label
    message = refused(save_npy(path, later), labels=labels) if len(labels) > 1 else "frame 1"
    assert "frame 1" in message


def test_a_frame_without_labels_is_refused_where_all_are_asked_for(tmp_path):
    path = save_npy(tmp_path / "cells.npy", np.stack([LABELLED, 0 * LABELLED]))
    refused(path, "frame 1", "has no label", "Leave it out", labels="all")


@pytest.mark.parametrize("wrong", [-1.0, 0.5])
def test_labels_are_whole_and_positive(wrong, tmp_path):
    path = save_npy(tmp_path / "cells.npy", np.where(BENT, wrong, 3))
    refused(path, f"1 value ({wrong})", "whole numbers", "threshold=", labels="all")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"labels": "every"}, "labels='every'"),
        ({"labels": 3}, "labels=3; 'all' or a sequence is allowed: labels=[3, 7]"),
        ({"labels": []}, "at least one"),
        ({"labels": [3, 3]}, "each once"),
        ({"labels": [3, 0]}, "holds 0"),
        ({"labels": [3, -2]}, "holds -2"),
        ({"labels": [3.0]}, "holds 3.0"),
        ({"labels": [True]}, "holds True"),
        ({"threshold": np.nan}, "threshold=nan; a finite number"),
        ({"threshold": "127"}, "threshold='127'"),
        ({"threshold": True}, "threshold=True"),
        ({"threshold": 5, "labels": "all"}, "exclude one another"),
    ],
)
def test_options_without_meaning_are_refused_before_any_file(options, words):
    with pytest.raises(DataError, match=re.escape(words)):
        read("no/such.png", **options)


@pytest.mark.parametrize("options", [{"labels": "all"}, {"threshold": 127}])
def test_bool_has_neither_labels_nor_a_threshold(options, tmp_path):
    path = save_npy(tmp_path / "mask.npy", BENT)
    refused(path, "mask already", f"Leave {next(iter(options))}= out", **options)


@pytest.mark.parametrize("options", [{}, {"threshold": 0.5}, {"labels": "all"}])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_counted_and_the_first_is_placed(value, options, tmp_path):
    stack = np.zeros((2, 3, 4), np.float32)
    stack[1, 2, 1:3] = value
    for path in (save_npy(tmp_path / "s.npy", stack), save_tiff(tmp_path / "s.tif", stack)):
        refused(path, f"2 of 24 pixels that are not finite, first {value} at y=2, x=1 of frame 1",
                "nan_to_num", **options)  # fmt: skip


# Colours and transparency


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [3, 4, 2])
def test_equal_channels_are_grey_and_opaque_alpha_counts_for_nothing(channels, suffix, tmp_path):
    picture = np.stack([WIDE] * (channels - 1) + [WIDE if channels == 3 else WIDE * 0 + 255], -1)
    path = tmp_path / f"mask{suffix}"
    if suffix == ".png":
        save_png(path, picture)
    else:
        save_tiff(path, picture, planarconfig="contig", photometric=GREY_OR_COLOUR[channels])
    assert_masks(read(path), [BENT])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_real_colours_are_refused_with_the_first_and_a_cure(suffix, tmp_path):
    picture = np.stack([WIDE, WIDE, 0 * WIDE], -1)
    path = tmp_path / f"colours{suffix}"
    if suffix == ".png":
        save_png(path, picture)
    else:
        save_tiff(path, picture, photometric="rgb")
    for options in ({}, {"labels": "all"}, {"threshold": 3}):
        refused(path, "real colours in 5 of 12 pixels, first [255, 255, 0] at y=0, x=1 of frame 0",
                "picture[..., 0]", **options)  # fmt: skip


def test_more_channels_than_colours_have_are_refused(tmp_path):
    picture = np.broadcast_to(WIDE[..., None], (3, 4, 5))
    path = save_tiff(tmp_path / "five.tif", picture, planarconfig="contig")
    refused(path, "5 channels", "grey values or labels have one")


def test_colours_for_print_are_real_colours(tmp_path):
    pillow, _, _ = need("PIL.Image", "imageio", "tifffile")
    image = pillow.fromarray(np.stack([WIDE, 0 * WIDE, 0 * WIDE, 0 * WIDE + 255], -1), "CMYK")
    image.save(tmp_path / "print.tif")
    refused(tmp_path / "print.tif", "colours in SEPARATED", "grey values")
    other = pillow.fromarray(np.stack([WIDE, 0 * WIDE, 0 * WIDE, 0 * WIDE], -1), "CMYK")
    other.save(tmp_path / "print.jpg")
    refused(tmp_path / "print.jpg", "real colours")


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [4, 2])
def test_transparency_is_refused_with_its_first_pixel_and_a_cure(channels, suffix, tmp_path):
    alpha = np.where(BENT, 255, 9).astype(np.uint8)
    picture = np.stack([WIDE] * (channels - 1) + [alpha], -1)
    path = tmp_path / f"clear{suffix}"
    if suffix == ".png":
        save_png(path, picture)
    else:
        save_tiff(path, picture, planarconfig="contig", photometric=GREY_OR_COLOUR[channels])
    refused(path, "transparent in 7 of 12 pixels", "alpha 9 of 255, at y=0, x=0 of frame 0",
            "picture[..., -1]")  # fmt: skip


def test_a_transparent_grey_is_transparency_too(tmp_path):
    refused(save_png(tmp_path / "key.png", WIDE, transparency=0), "transparent in 7 of 12 pixels")
    assert_masks(read(save_png(tmp_path / "key.png", WIDE, transparency=4)), [BENT])
    path = tmp_path / "palette.png"
    save_palette(path, BENT.astype(np.uint8), [(0, 0, 0), (9, 0, 0)], transparency=0)
    refused(path, "transparent in 7 of 12 pixels", labels="all")


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_grey_palette_is_applied(suffix, tmp_path):
    need("tifffile")
    path = tmp_path / f"mask{suffix}"
    save_palette(path, BENT.astype(np.uint8), [(255, 255, 255), (0, 0, 0)])
    assert_masks(read(path), [~BENT])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_the_indices_of_a_palette_of_colours_are_labels(suffix, tmp_path):
    need("tifffile")
    path = tmp_path / f"cells{suffix}"
    indices = np.array([[0, 1, 2], [2, 2, 0]], np.uint8)
    save_palette(path, indices, [(0, 0, 0), (200, 0, 0), (0, 200, 0)])
    assert_masks(read(path, labels="all"), [indices == 1, indices == 2])
    refused(path, "3 values (0, 1, 2)", "palette of colours", "labels='all'")
    refused(path, "no threshold", "labels='all'", threshold=1)
    save_palette(path, BENT.astype(np.uint8), [(0, 0, 0), (200, 0, 0)])
    assert_masks(read(path, labels="all"), [BENT])
    refused(path, "2 values (0, 1)", "palette of colours", "labels='all'")


def test_a_moving_picture_in_colours_has_no_labels_since_each_frame_may_have_its_palette(tmp_path):
    pillow, _ = need("PIL.Image", "imageio")
    frames = [pillow.fromarray(image.astype(np.uint8), "L") for image in (BENT, ~BENT)]
    for frame in frames:
        frame.putpalette([0, 0, 0, 200, 0, 0])
    path = tmp_path / "moving.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    refused(path, "real colours in 12 of 24 pixels", labels="all")


def test_colours_of_16_bits_are_not_reduced_silently(tmp_path):
    need("imageio", "PIL")

    def chunk(name, body):
        check = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + check

    rows = b"".join(b"\0" + struct.pack(">HHH", n, n, n) for n in (5, 7))
    body = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 2, 16, 2, 0, 0, 0))
    body += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path = tmp_path / "deep.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    refused(path, "16 bits", "Pillow keeps 8", labels="all")


# Axes of TIFF


def test_frames_that_tifffile_stored_as_colours_in_planes_are_refused(tmp_path):
    planes = np.stack([np.tile(WIDE, (2, 2))] * 3)
    options = {"photometric": "rgb", "planarconfig": "separate"}  # its guess of uint8 (3, y, x)
    path = save_tiff(tmp_path / "planes.tif", planes, **options)
    refused(path, "axes SYX of lengths (3, 6, 8)", "photometric='minisblack'")


@pytest.mark.parametrize(("axes", "shape"), [("TZYX", (2, 2, 3, 4)), ("TCYX", (2, 2, 3, 4))])
def test_two_axes_of_frames_are_refused_by_their_names(axes, shape, tmp_path):
    image = np.broadcast_to(BENT, shape).astype(np.uint8)
    path = save_tiff(tmp_path / "axes.ome.tif", image, ome=True, metadata={"axes": axes})
    refused(path, f"axes {axes} of lengths {shape}", "metadata={'axes': 'TYX'}")


@pytest.mark.parametrize("axes", ["TYX", "ZYX", "CYX", "TCYX"])
def test_one_axis_of_frames_is_read_whatever_its_name(axes, tmp_path):
    stack = np.stack([BENT, ~BENT])
    image = stack.astype(np.uint8).reshape(2, *[1] * (len(axes) - 3), 3, 4)
    path = save_tiff(tmp_path / "axes.tif", image, imagej=True, metadata={"axes": axes})
    assert_masks(read(path), stack)


@pytest.mark.parametrize("shape", [(1, 1, 3, 4), (3, 4, 1), (1, 3, 4, 1)])
def test_axes_of_one_entry_are_neither_frames_nor_channels(shape, tmp_path):
    path = save_tiff(tmp_path / "ones.tif", WIDE.reshape(shape))
    assert_masks(read(path), [BENT])
    stack = np.stack([BENT, ~BENT])
    path = save_tiff(tmp_path / "ones.tif", stack.astype(np.uint8)[:, None, None])
    assert_masks(read(path), stack)


@pytest.mark.parametrize("dtype", [np.uint8, bool])
def test_white_stored_as_0_is_refused_for_it_may_mean_both(dtype, tmp_path):
    path = tmp_path / "white.tif"
    save_tiff(path, BENT.astype(dtype), photometric="miniswhite", metadata=None)
    refused(path, "MINISWHITE", "imwrite(..., photometric='minisblack')")


def test_a_smaller_copy_in_a_tiff_is_no_frame(tmp_path):
    (tifffile,) = need("tifffile")
    path = tmp_path / "copy.tif"
    pages = [(WIDE, 0), (WIDE[:2, :2], 1)]
    for turn in (1, -1):
        with tifffile.TiffWriter(path) as file:
            for image, kind in pages[::turn]:
                file.write(image, photometric="minisblack", subfiletype=kind)
        if turn == 1:
            assert_masks(read(path), [BENT])
        else:
            refused(path, "a smaller copy")


# Files


def test_files_of_a_pattern_or_folder_are_in_natural_order(tmp_path):
    order = ["a/t1_frame9", "a/t1_frame10", "a/t2_frame1", "a10/t1", "a9/t1"]
    (tmp_path / "a").mkdir()
    (tmp_path / "a9").mkdir()
    (tmp_path / "a10").mkdir()
    for n, name in enumerate(order):
        np.save(tmp_path / f"{name}.npy", np.arange(5)[None] == n)

    def found(*arguments):
        return [int(mask[0].argmax()) for mask in read(*arguments)]

    assert found(tmp_path / "a") == [0, 1, 2]
    assert found(f"{tmp_path}/a/*.npy") == [0, 1, 2]
    assert found(tmp_path / "*" / "*.npy") == [0, 1, 2, 4, 3]
    assert found(f"{tmp_path}/**/t1*") == [0, 1, 4, 3]
    listed = [f"{tmp_path}/a/t2*", tmp_path / "a9", tmp_path / f"{order[0]}.npy"]
    assert found(listed) == [2, 4, 0]
    assert found(iter(listed)) == [2, 4, 0]


def test_two_stars_reach_into_all_folders_below(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for n, folder in enumerate(("", "a", "a/b"), start=1):
        save_npy(tmp_path / folder / "mask.npy", BENT[:n])
    found = read(tmp_path / "**" / "mask.npy")
    assert sorted(len(mask) for mask in found) == [1, 2, 3]


def test_canvases_may_differ(tmp_path):
    paths = [save_npy(tmp_path / f"{n}.npy", BENT[:n]) for n in (1, 2, 3)]
    assert_masks(read(paths), [BENT[:1], BENT[:2], BENT])


def test_a_name_that_exists_is_no_pattern(tmp_path):
    path = save_npy(tmp_path / "mask[1].npy", BENT)
    save_npy(tmp_path / "mask1.npy", ~BENT)
    assert_masks(read(path), [BENT])


def test_hidden_files_and_folders_below_are_left_out(tmp_path):
    save_npy(tmp_path / "mask.npy", BENT)
    (tmp_path / "._mask.npy").write_bytes(b"of a file manager")
    (tmp_path / "below.npy").mkdir()
    assert_masks(read(tmp_path), [BENT])
    assert_masks(read(tmp_path / "*"), [BENT])


def test_names_without_an_order_are_refused(tmp_path):
    for name in ("frame1.npy", "frame01.npy"):
        save_npy(tmp_path / name, BENT)
    refused(tmp_path, "frame1.npy", "frame01.npy", "Give a list")


def test_a_folder_of_several_kinds_is_refused_with_a_pattern(tmp_path):
    for n in (1, 2):
        save_npy(tmp_path / f"{n}.npy", BENT)
    (tmp_path / "notes").write_text("see 1")
    refused(tmp_path, "2 of '.npy'", "1 of 'no suffix'", repr(str(tmp_path / "*.npy")))


def test_what_means_no_file_is_named(tmp_path):
    refused(tmp_path / "no.png", "is no file")
    refused(tmp_path / "*.png", "no file matches", repr(str(tmp_path / "*.png")))
    refused(tmp_path, "a folder without files")
    for path, words in (
        ("", "'' is no file"),
        ([], "the list of paths is empty"),
        (None, "None is no path"),
        (b"a.png", "b'a.png' is no path"),
        (["a.png", 3], "entry 1 of the list, 3, is no path"),
    ):
        with pytest.raises(DataError, match=re.escape(words)):
            read(path)


@pytest.mark.parametrize("name", ["mask.png", "mask.tif", "mask.npy", "mask.npz", "mask"])
def test_a_file_that_is_something_else_is_named_with_the_reason(name, tmp_path):
    need("imageio", "PIL", "tifffile")
    path = tmp_path / name
    for content in (b"", b"nothing that anyone reads", b"\x89PNG\r\n\x1a\n" + b"short"):
        path.write_bytes(content)
        assert re.search(r"could not be read by \w+\. \w+: .", refused(path))


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("mask.png", lambda path, stack: save_png(path, stack[0] * np.uint8(255))),
        ("mask.npy", save_npy),
        ("mask.npz", np.savez_compressed),
        ("bool.tif", save_tiff),
        ("byte.tif", lambda path, stack: save_tiff(path, stack.astype(np.uint8))),
        ("zlib.tif", lambda path, stack: save_tiff(path, stack.astype("u1"), compression="zlib")),
        ("ij.tif", lambda path, stack: save_tiff(path, stack.astype(np.uint8), imagej=True)),
    ],
)
@pytest.mark.parametrize("silenced", [False, True])
def test_a_file_that_is_cut_off_is_refused_or_read_whole(name, save, silenced, tmp_path):
    stack = np.random.default_rng(0).random((5, 20, 30)) > 0.5
    save(tmp_path / name, stack)
    whole = (tmp_path / name).read_bytes()
    expected = read(tmp_path / name)
    logger = logging.getLogger("tifffile")
    logger.disabled = silenced
    logger.setLevel(logging.CRITICAL if silenced else logging.NOTSET)
    count = 0
    try:
        for length in range(0, len(whole), max(1, len(whole) // 60)):
            (tmp_path / name).write_bytes(whole[:length])
            try:
                found = read(tmp_path / name)
            except DataError as error:
                assert name in str(error)  # noqa: PT017 - either is right
                count += 1
            else:
                assert_masks(found, expected)
        assert (logger.disabled, logger.handlers) == (silenced, [])
        assert logger.level == (logging.CRITICAL if silenced else logging.NOTSET)
    finally:
        logger.disabled = False
        logger.setLevel(logging.NOTSET)
    assert count > 30


def test_errors_that_another_thread_logs_are_its_own(tmp_path, monkeypatch):
    (tifffile,) = need("tifffile")
    path, opened = save_tiff(tmp_path / "mask.tif", WIDE), tifffile.TiffFile

    def open_beside_another(name):
        other = Thread(target=logging.getLogger("tifffile").error, args=("of another file",))
        other.start()
        other.join()
        return opened(name)

    monkeypatch.setattr(tifffile, "TiffFile", open_beside_another)
    assert_masks(read(path), [BENT])


def test_frames_that_lie_in_other_files_are_refused(tmp_path):
    need("tifffile")
    names = [f"{n}.ome.tif" for n in range(2)]
    data = "".join(
        f'<TiffData FirstT="{n}" IFD="0" PlaneCount="1"><UUID FileName="{name}">urn:uuid:{n}</UUID>'
        "</TiffData>"
        for n, name in enumerate(names)
    )
    for n, name in enumerate(names):
        xml = (
            f'<?xml version="1.0"?><OME xmlns="{OME}" UUID="urn:uuid:{n}"><Image ID="Image:0">'
            '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="4" SizeY="3" '
            f'SizeC="1" SizeZ="1" SizeT="2">{data}</Pixels></Image></OME>'
        )
        save_tiff(tmp_path / name, WIDE, description=xml, metadata=None)
    refused(tmp_path / names[0], "frames in other files", "Save them in one")


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros(4), "shape (4,); (y, x) or (t, y, x) is needed"),
        (np.zeros((1, 2, 3, 4)), "shape (1, 2, 3, 4)"),
        (np.zeros((0, 3, 4)), "shape (0, 3, 4), and no pixels"),
        (np.zeros((3, 0)), "no pixels"),
        (np.zeros((3, 4), complex), "dtype complex128"),
        (np.full((3, 4), "a"), "dtype <U1"),
        (np.array([[None]]), "allow_pickle=False"),
    ],
)
def test_arrays_that_are_no_images_are_named_by_shape_and_dtype(array, words, tmp_path):
    refused(save_npy(tmp_path / "array.npy", array), words)


def test_an_array_of_an_archive_is_named_by_its_key(tmp_path):
    np.savez(tmp_path / "run.npz", masks=BENT, rate=np.array(25.0))
    refused(tmp_path / "run.npz", "array 'rate' has shape ()")
    np.savez(tmp_path / "run.npz")
    refused(tmp_path / "run.npz", "holds no array")


@pytest.mark.parametrize(
    ("name", "module"),
    [("mask.png", "imageio.v3"), ("mask.png", "PIL.Image"), ("mask.tif", "tifffile")],
)
def test_a_missing_package_is_told_the_extra(name, module, tmp_path, monkeypatch):
    (tmp_path / name).write_bytes(b"")
    for parent in (module.partition(".")[0], module):
        monkeypatch.setitem(sys.modules, parent, None)
    package = module.partition(".")[0]
    with pytest.raises(MissingDependencyError, match=rf"{package}.*install 'stowplan\[masks\]'"):
        read(tmp_path / name)


def test_a_mask_is_told_by_file_frame_and_label(tmp_path):
    first = np.zeros((2, 3, 4), np.uint8)
    first[0, 0, :2] = 7, 3
    first[1, 2, 3] = 7
    np.savez(tmp_path / "a.npz", before=first, after=first[::-1])
    np.save(tmp_path / "b.npy", first[0])
    found = read_with_places([tmp_path / "b.npy", tmp_path / "a.npz"], labels="all")
    places = [(place.file.name, place.frame, place.label) for place, _ in found]
    before, after = [("a.npz", 0, 3), ("a.npz", 0, 7), ("a.npz", 1, 7)], [("a.npz", 2, 7)]
    end = [("a.npz", 3, 3), ("a.npz", 3, 7)]
    assert places == [("b.npy", 0, 3), ("b.npy", 0, 7), *before, *after, *end]
    for place, mask in found:
        frame = [first[0], first[1], first[1], first[0]][place.frame]
        np.testing.assert_array_equal(mask, frame == place.label)


def test_masks_without_labels_have_places_without_them(tmp_path):
    np.save(tmp_path / "a.npy", np.eye(3, dtype=bool)[None].repeat(2, axis=0))
    found = read_with_places(tmp_path / "a.npy")
    assert [place[1:] for place, _ in found] == [(0, None), (1, None)]
