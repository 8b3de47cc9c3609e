"""Masks of silhouettes: images, stacks and label images in, bool arrays (y, x) out."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import DataError
from stowplan.io.file_lists import list_files
from stowplan.io.frames import Frames, read_frames

__all__ = ["MaskPlace", "read", "read_with_places"]

SHOWN = 8  # values or labels that a message lists

Mask = NDArray[np.bool_]
Labels = Literal["all"] | Sequence[int]


class MaskPlace(NamedTuple):
    """Where a mask was found."""

    file: Path
    frame: int  # of the file, from 0
    label: int | None  # None where the values are no labels


def read(
    path: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    labels: Labels | None = None,
    threshold: float | None = None,
) -> list[Mask]:
    """Read masks from files.

    An image of bool is a mask. So is one that holds 0 and 1, or 0 and 255 (or the largest number of
    its dtype): what is not 0 is in the mask. Anything else is refused until ``labels`` or
    ``threshold`` says what the values are. A mask may be empty.

    Parameters
    ----------
    path
        A file, a folder, a pattern such as ``"run/*.png"``, or an iterable of these. Files of one
        folder or pattern are in natural order (``frame2`` before ``frame10``), those of a list in
        its own; see `list_files`. What a file holds follows from its suffix: ``.npy`` and
        ``.npz`` arrays (y, x) or (t, y, x), an ``.npz`` in the order of its arrays; ``.tif`` and
        ``.tiff`` pages or a stack (t, y, x); anything else a picture that imageio reads through
        Pillow, such as PNG. A picture in equal red, green and blue is grey, opaque alpha counts
        for nothing, and so does a grey palette; the indices of a palette of colours are labels.
    labels
        The values are labels, 0 being background: ``"all"`` gives a mask for each label of a
        frame, in ascending order; a sequence of labels gives one for each of them in each frame,
        in its order.
    threshold
        The values are grey: a mask is where they are above this number.

    Returns
    -------
    list of bool array (y, x)
        By file, then frame, then label. Canvases may differ.

    Raises
    ------
    DataError
        For no file, a file that cannot be read whole, colours, transparency, values that are not
        finite, values that are neither said to be labels nor grey, and a label that is in no pixel
        of a frame: with the file, what was found there and the cure.
    MissingDependencyError
        For pictures without imageio, and TIFF without tifffile.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(Path(folder, "cells.npy"), np.array([[0, 3, 3], [7, 0, 3]]))
    ...     three, seven = read(Path(folder, "cells.npy"), labels="all")
    ...     (above,) = read(Path(folder, "cells.npy"), threshold=5)
    >>> three.astype(int).tolist(), seven.astype(int).tolist()
    ([[0, 1, 1], [0, 0, 1]], [[0, 0, 0], [1, 0, 0]])
    >>> (above == seven).all()
    np.True_
    """
    return [mask for _, mask in read_with_places(path, labels=labels, threshold=threshold)]


def read_with_places(
    path: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    labels: Labels | None = None,
    threshold: float | None = None,
) -> list[tuple[MaskPlace, Mask]]:
    """Read masks as `read` does, each with its file, frame and label.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(Path(folder, "cells.npy"), np.array([[[3, 7]], [[7, 0]]]))
    ...     found = read_with_places(Path(folder, "cells.npy"), labels="all")
    >>> [(place.file.name, place.frame, place.label) for place, _ in found]
    [('cells.npy', 0, 3), ('cells.npy', 0, 7), ('cells.npy', 1, 7)]
    """
    wanted = _wanted(labels)
    _check_threshold(threshold, labels)
    found = []
    for file in list_files(path):
        frame = 0
        for frames in read_frames(file):
            masks = _masks(frames, wanted, threshold)
            found += [(MaskPlace(file, frame + t, label), mask) for t, label, mask in masks]
            frame += len(frames.values)
    return found


def _wanted(labels: Any) -> Literal["all"] | list[int] | None:
    if labels is None:
        return None
    if isinstance(labels, str) and labels == "all":
        return "all"
    if isinstance(labels, (str, bytes)) or not isinstance(labels, Iterable):
        raise DataError(f"read: labels={labels!r}; 'all' or a sequence is allowed: labels=[3, 7].")
    found = list(labels)
    for label in found:
        if not isinstance(label, Integral) or isinstance(label, bool) or label <= 0:
            raise DataError(
                f"read: labels={found!r} holds {label!r}; labels are whole numbers above 0, which "
                "is background."
            )
    numbers = [int(label) for label in found]
    if not numbers or len(set(numbers)) < len(numbers):
        raise DataError(f"read: labels={numbers}; give at least one, and each once.")
    return numbers


def _check_threshold(threshold: Any, labels: Any) -> None:
    if threshold is None:
        return
    if labels is not None:
        raise DataError(
            f"read: labels={labels!r} and threshold={threshold!r} exclude one another: values are "
            "labels, or grey."
        )
    number = isinstance(threshold, Real) and not isinstance(threshold, bool)
    if not number or not math.isfinite(threshold):
        raise DataError(f"read: threshold={threshold!r}; a finite number is needed.")


def _masks(
    frames: Frames, wanted: Literal["all"] | list[int] | None, threshold: float | None
) -> list[tuple[int, int | None, Mask]]:
    """Give frame, label and mask of each."""
    values = frames.values
    if wanted is not None and values.dtype != np.bool_:
        return [found for t in range(len(values)) for found in _by_label(frames, t, wanted)]
    return [(t, None, mask) for t, mask in enumerate(_unlabelled(frames, wanted, threshold))]


def _unlabelled(
    frames: Frames, wanted: Literal["all"] | list[int] | None, threshold: float | None
) -> Mask:
    """Give masks, (t, y, x)."""
    values = frames.values
    if values.dtype == np.bool_:
        if wanted is not None or threshold is not None:
            given = "labels" if wanted is not None else "threshold"
            raise DataError(f"{frames.where} holds bool: it is a mask already. Leave {given}= out.")
        return values
    if threshold is None:
        return _two_valued(frames)
    if frames.indexed:
        raise DataError(
            f"{frames.where} has a palette of colours, whose indices are labels and have no "
            "threshold. Give labels='all', or save grey values."
        )
    above: Mask = values > float(threshold)
    return above


def _two_valued(frames: Frames) -> Mask:
    values = frames.values
    most = values.max()
    tops = {0, 1, 255}
    if values.dtype.kind in "iu":
        tops.add(int(np.iinfo(values.dtype).max))
    mask: Mask = values != 0
    if not frames.indexed and most in tops and not (mask & (values != most)).any():
        return mask
    found = np.unique(values)
    holds = f"{frames.where} holds {_listed('value', found)} in {_size(values)}"
    if frames.indexed:
        raise DataError(
            f"{holds}, indices of a palette of colours. Say that they are labels: labels='all', or "
            "labels=[...] for some."
        )
    middle = (float(values.min()) + float(most)) / 2
    raise DataError(
        f"{holds}; a mask holds 0 and 1, or 0 and 255. Say what they are: labels='all' gives a "
        f"mask for each value but 0, threshold={middle:g} one of the pixels above it."
    )


def _by_label(
    frames: Frames, t: int, wanted: Literal["all"] | list[int]
) -> list[tuple[int, int | None, Mask]]:
    frame = frames.values[t]
    where = f"{frames.where}, frame {t} of {_size(frames.values)},"
    found = np.unique(frame)
    wrong = found[(found < 0) | (found != np.rint(found))]
    if len(wrong):
        raise DataError(
            f"{where} holds {_listed('value', wrong)} that are no labels: whole numbers, 0 for "
            "background. For grey values give threshold=."
        )
    present = [int(label) for label in found if label != 0]
    if wanted == "all":
        if not present:
            raise DataError(f"{where} has no label: every pixel is 0. Leave it out.")
        wanted = present
    missing = sorted(set(wanted) - set(present))
    if missing:
        raise DataError(
            f"{where} lacks {_listed('label', missing)}; it holds {_listed('label', present)}. "
            "Leave them out, or read the frames that hold them."
        )
    return [(t, label, frame == label) for label in wanted]


def _size(values: NDArray[Any]) -> str:
    t, y, x = values.shape
    return f"{t} frame{'s' * (t > 1)} of {y} × {x}"


def _listed(noun: str, values: Sequence[Any] | NDArray[Any]) -> str:
    """Such as ``3 labels (1, 3, 7)``."""
    if not len(values):
        return f"no {noun}"
    text = ", ".join(str(value) for value in values[:SHOWN])
    dots = ", ..." * (len(values) > SHOWN)
    return f"{len(values)} {noun}{'s' * (len(values) > 1)} ({text}{dots})"
