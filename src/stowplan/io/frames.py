"""Frames of grey values from NumPy arrays, TIFF files and pictures, by what each format says."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import DataError
from stowplan.extras import import_extra

__all__ = ["Frames", "read_frames"]

PNG = b"\x89PNG\r\n\x1a\n"
DIRECT = ("1", "L", "LA", "I", "F", "RGB", "RGBA")  # Pillow's modes of grey, colour and alpha


class Frames(NamedTuple):
    """Images of one canvas that one array or file holds."""

    where: str  # what an error message begins with
    values: NDArray[Any]  # (frames, y, x), of bool, integers or floats
    indexed: bool = False  # indices of a palette that has real colours


def read_frames(path: Path) -> list[Frames]:
    """Read every frame of a file.

    Parameters
    ----------
    path
        ``.npy`` and ``.npz``: arrays (y, x) or (t, y, x). ``.tif`` and ``.tiff``: pages or a
        stack, whose axes the file names. Anything else: a picture, or several in one file, that
        imageio reads through Pillow.

    Returns
    -------
    list of Frames
        One for each array of an ``.npz``, in the order in which they are stored, and for each
        series of a TIFF; else a single one.

    Raises
    ------
    DataError
        For a file that cannot be read whole, with its name and the reader's reason, and for
        images that are no grey values: other axes, real colours, transparency.
    MissingDependencyError
        For pictures without imageio, and TIFF without tifffile.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(Path(folder, "grey.npy"), np.zeros((2, 3, 4), np.uint8))
    ...     [frames.values.shape for frames in read_frames(Path(folder, "grey.npy"))]
    [(2, 3, 4)]
    """
    suffix = path.suffix.lower()
    where = f"read: {os.fspath(path)!r}"
    if suffix in (".npy", ".npz"):
        return _read_numpy(where, path)
    if suffix in (".tif", ".tiff"):
        return _read_tiff(where, path)
    return [_read_picture(where, path)]


@contextmanager
def _reading(where: str, reader: str) -> Iterator[None]:
    """Turn what a reader raises into a DataError with the name of the file and the reason."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # of decoders, which raise anything
        raise DataError(
            f"{where} could not be read by {reader}. {type(error).__name__}: {error}"
        ) from error


def _read_numpy(where: str, path: Path) -> list[Frames]:
    with _reading(where, "NumPy"):
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            arrays = {where: loaded}
        else:
            with loaded as archive:
                arrays = {f"{where}, array {key!r}": archive[key] for key in archive.files}
    if not arrays:
        raise DataError(f"{where} holds no array.")
    for name, array in arrays.items():
        if array.ndim not in (2, 3):
            raise DataError(
                f"{name} has shape {array.shape}; (y, x) or (t, y, x) is needed, a frame each t."
            )
    return [
        _checked(name, array if array.ndim == 3 else array[None]) for name, array in arrays.items()
    ]


def _read_tiff(where: str, path: Path) -> list[Frames]:
    tifffile = import_extra("masks", "tifffile", "read of .tif files")
    with (
        _reading(where, "tifffile"),
        _errors_logged("tifffile") as logged,
        tifffile.TiffFile(path) as file,
    ):
        if any(series.is_multifile for series in file.series):
            raise DataError(f"{where} has frames in other files. Save them in one.")
        found = [(series, series.asarray()) for series in file.series]
        pages = [page.index for series, _ in found for page in series.pages if page is not None]
        if logged:
            raise DataError(f"{where} could not be read whole by tifffile. {logged[0]}")
        if not found:
            raise DataError(f"{where} holds no image.")
        if pages != sorted(pages):
            raise DataError(
                f"{where} has pages of several canvases in turn, which tifffile puts out of order. "
                "Save a file for each."
            )
        return [_frames_of_series(where, series, array) for series, array in found]


@contextmanager
def _errors_logged(name: str) -> Iterator[list[str]]:
    """Collect errors that a package logs and goes on from, such as pages that are cut off."""
    logged: list[str] = []
    reader = threading.get_ident()

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == reader:
                logged.append(record.getMessage())

    collector = Collector(logging.ERROR)
    logger = logging.getLogger(name)
    level, disabled = logger.level, logger.disabled
    logger.addHandler(collector)
    try:
        # A program may have silenced it; a file that is cut off must not pass for all that.
        logger.disabled = False
        if logger.getEffectiveLevel() > logging.ERROR:
            logger.setLevel(logging.ERROR)
        yield logged
    finally:
        logger.setLevel(level)
        logger.disabled = disabled
        logger.removeHandler(collector)


def _frames_of_series(where: str, series: Any, array: NDArray[Any]) -> Frames:
    """Frames of pages that belong together; the file names their axes."""
    page = series.keyframe
    kept = [
        (axis, length)
        for axis, length in zip(series.axes, array.shape, strict=True)
        if axis in "YXS" or length != 1
    ]
    axes = "".join(axis for axis, _ in kept)
    array = array.reshape([length for _, length in kept])
    named = f"axes {axes} of lengths {array.shape}"
    if "S" in axes[:-1]:
        raise DataError(
            f"{where} has {named}, colours in planes: tifffile stores 3 or 4 frames so unless it "
            "is told. Save masks with imwrite(..., photometric='minisblack')."
        )
    leading = axes.removesuffix("S").removesuffix("YX")
    if "YX" not in axes or len(leading) > 1:
        raise DataError(
            f"{where} has {named}; YX is needed, with at most one axis of frames before it. Save "
            "one such stack: imwrite(..., photometric='minisblack', metadata={'axes': 'TYX'})."
        )
    if page.is_reduced:
        raise DataError(f"{where} holds a smaller copy of an image as a page. Save it without.")
    array = array.reshape(-1, *array.shape[len(leading) :])
    kind = getattr(page.photometric, "name", str(page.photometric))
    if kind == "PALETTE":
        colours = np.moveaxis(page.colormap[:, array] >> 8, 0, -1)
        return _through_palette(where, array, colours)
    # tifffile marks bool images so, and yet stores True as it is.
    plain = array.dtype == np.bool_ and series.kind in ("shaped", "ome")
    if kind == "MINISWHITE" and not plain:
        raise DataError(
            f"{where} stores white as 0 (photometric MINISWHITE), so that it is unclear what is "
            "set. Save the numbers of tifffile.imread(path), or their inverse, with "
            "imwrite(..., photometric='minisblack')."
        )
    if kind not in ("MINISBLACK", "MINISWHITE", "RGB"):
        raise DataError(f"{where} has colours in {kind}. Save grey values or labels.")
    return _checked(where, _grey(where, array) if axes.endswith("S") else array)


def _read_picture(where: str, path: Path) -> Frames:
    imageio = import_extra("masks", "imageio.v3", "read of pictures")
    import_extra("masks", "PIL.Image", "read of pictures")
    with _reading(where, "imageio"), path.open("rb") as stream:
        head = stream.read(26)
        if head[:8] == PNG and head[24] == 16 and head[25] != 0:
            raise DataError(
                f"{where} is a PNG of 16 bits with colours or alpha, of which Pillow keeps 8. Save "
                "grey values or labels."
            )
        # Its modes tell colours from frames, whatever the shape; other plugins do not.
        with imageio.imopen(stream, "r", plugin="pillow") as file:
            about = file.metadata(index=0)
            mode, several = about["mode"], file.properties(index=...).n_images > 1
            if mode == "P" and not several:
                indices = file.read(index=..., mode="P")
                colours = file.read(index=..., mode="RGBA")
                return _through_palette(where, indices, _opaque(where, colours))
            if "transparency" in about or mode in ("P", "PA"):
                array = file.read(index=..., mode="RGBA")
            elif mode in DIRECT or mode.startswith("I;16"):
                array = file.read(index=...)
            else:
                array = file.read(index=..., mode="RGB")
    return _checked(where, _grey(where, array) if array.ndim == 4 else array)


def _through_palette(where: str, indices: NDArray[Any], colours: NDArray[Any]) -> Frames:
    """Grey values where the palette is grey; else the indices, which are labels."""
    if (colours == colours[..., :1]).all():
        return _checked(where, colours[..., 0])
    return _checked(where, indices)._replace(indexed=True)


def _grey(where: str, pixels: NDArray[Any]) -> NDArray[Any]:
    """Grey values (frames, y, x) of (frames, y, x, channels), all but alpha being equal."""
    channels = pixels.shape[-1]
    if channels > 4:
        raise DataError(f"{where} has {channels} channels; grey values or labels have one.")
    if channels in (2, 4):
        pixels = _opaque(where, pixels)
    differ = (pixels != pixels[..., :1]).any(axis=-1)
    if differ.any():
        t, y, x = _first(differ)
        raise DataError(
            f"{where} has real colours in {differ.sum()} of {differ.size} pixels, first "
            f"{pixels[t, y, x].tolist()} at y={y}, x={x} of frame {t}. Save grey values or labels; "
            "one channel of a picture is picture[..., 0]."
        )
    return pixels[..., 0]


def _opaque(where: str, pixels: NDArray[Any]) -> NDArray[Any]:
    """Pixels without their alpha, which must be opaque."""
    alpha = pixels[..., -1]
    full = np.iinfo(alpha.dtype).max if alpha.dtype.kind in "iu" else 1
    clear = alpha != full
    if clear.any():
        t, y, x = _first(clear)
        raise DataError(
            f"{where} is transparent in {clear.sum()} of {clear.size} pixels: the first has alpha "
            f"{alpha[t, y, x]} of {full}, at y={y}, x={x} of frame {t}. Save what the mask is as "
            "grey values: picture[..., -1] if it is alpha, picture[..., 0] if it is the grey."
        )
    return pixels[..., :-1]


def _checked(where: str, values: NDArray[Any]) -> Frames:
    if values.dtype.kind not in "biuf":
        raise DataError(f"{where} has dtype {values.dtype}; bool, integers or floats are needed.")
    if values.size == 0:
        raise DataError(f"{where} has shape {values.shape}, and no pixels.")
    wrong = ~np.isfinite(values) if values.dtype.kind == "f" else np.zeros(0, np.bool_)
    if wrong.any():
        t, y, x = _first(wrong)
        raise DataError(
            f"{where} has {wrong.sum()} of {wrong.size} pixels that are not finite, first "
            f"{values[t, y, x]} at y={y}, x={x} of frame {t}. Say what they are: "
            "np.nan_to_num(image)."
        )
    return Frames(where, values)


def _first(places: NDArray[np.bool_]) -> list[int]:
    return [int(n) for n in np.unravel_index(int(places.argmax()), places.shape)]
