"""Images on disk: one array in, one file out, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.adapters import framework_of, get_adapter
from stowplan.errors import DataError
from stowplan.extras import import_extra
from stowplan.io.whole_files import whole_file

__all__ = ["check_suffix", "greyscale", "write"]

Image = NDArray[Any]
PAPER = 0.5  # share of the pixels that a picture leaves nearly white
DECADES = 4.0  # most that it shows between white and black


def write(path: str | os.PathLike[str], image: Any) -> None:
    """Write an image; what the file holds follows from its suffix.

    Parameters
    ----------
    path
        ``.npy``: the array as it is. ``.tif``, ``.tiff``: float32. ``.cbf``: counts, rounded to
        whole numbers (int32), as detectors write them. ``.png``: a picture to look at, one pixel
        for each, as `greyscale` has it.
    image : array (slow, fast)
        Of any framework. The first row is the uppermost one.

    Raises
    ------
    DataError
        For another suffix, an image that has not two axes of real numbers, values that are not
        finite in a CBF file or a picture, and counts beyond int32.
    MissingDependencyError
        Where the package for this kind of file is not installed.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(Path(folder, "image.npy"), np.eye(3))
    ...     np.load(Path(folder, "image.npy")).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    path = Path(path)
    check_suffix(path)
    writer = _WRITERS[path.suffix.lower()]
    host = get_adapter(framework_of([image]) or "numpy").to_host(image)
    where = f"write: {os.fspath(path)!r}"
    if host.ndim != 2 or host.dtype.kind not in "biuf" or 0 in host.shape:
        raise DataError(
            f"{where}: an image of shape {host.shape} and dtype {host.dtype}; give real numbers, "
            "(slow, fast)."
        )
    with whole_file(path) as part:
        writer(where, part, host)


def check_suffix(path: str | os.PathLike[str]) -> None:
    """Refuse a file that `write` could not write, before anything is computed."""
    suffix = Path(path).suffix.lower()
    if suffix not in _WRITERS:
        raise DataError(
            f"write: {os.fspath(path)!r} ends in {suffix or 'no suffix'!r}; an image is written "
            f"as one of {', '.join(_WRITERS)}."
        )
    for package in _PACKAGES.get(suffix, ()):
        import_extra("images", package, f"write of {suffix} files")


def greyscale(image: Image) -> NDArray[np.uint8]:
    """Give a picture of an image: spots are dark on white, on a logarithmic scale.

    The largest value is black. The scale spans at most four decades below it and no more than
    from the median, so that the background stays nearly white. What is negative counts as 0, and
    an image without photons is white.

    >>> greyscale(np.array([[0.0, 0.001, 1.0, 1000.0]])).tolist()
    [[255, 255, 218, 0]]
    """
    values = np.maximum(image.astype(np.float64), 0.0)
    most = float(values.max())
    if most == 0:
        return np.full(values.shape, 255, np.uint8)
    values /= most
    background = float(np.quantile(values, PAPER))
    floor = min(max(background, 10.0**-DECADES), 1.0)
    darkness = np.log1p(values / floor) / np.log1p(1 / floor)
    picture: NDArray[np.uint8] = np.rint(255 * (1 - darkness)).astype(np.uint8)
    return picture


def _write_npy(where: str, part: Path, image: Image) -> None:
    with part.open("wb") as file:
        np.save(file, image)


def _write_tiff(where: str, part: Path, image: Image) -> None:
    import_extra("images", "tifffile", "write of .tif files").imwrite(
        part, image.astype(np.float32)
    )


def _write_cbf(where: str, part: Path, image: Image) -> None:
    fabio = import_extra("images", "fabio.cbfimage", "write of .cbf files")
    _refuse_infinite(where, image, "a CBF file holds counts")
    counts = np.rint(image.astype(np.float64))
    limit = np.iinfo(np.int32).max
    if np.abs(counts).max() > limit:
        raise DataError(
            f"{where}: the largest count is {np.abs(counts).max():.3g}; a CBF file holds up to "
            f"{limit}. Scale the image down, or write .npy or .tif."
        )
    fabio.CbfImage(data=counts.astype(np.int32)).write(os.fspath(part))


def _write_png(where: str, part: Path, image: Image) -> None:
    pillow = import_extra("images", "PIL.Image", "write of .png files")
    _refuse_infinite(where, image, "a picture has no grey for them")
    pillow.fromarray(greyscale(image)).save(part, format="PNG")


def _refuse_infinite(where: str, image: Image, reason: str) -> None:
    wrong = np.argwhere(~np.isfinite(image))
    if len(wrong):
        first = tuple(int(n) for n in wrong[0])
        raise DataError(
            f"{where}: {len(wrong)} of {image.size} pixels are not finite, first {first}; {reason}."
            " Write .npy or .tif, or fill them: np.nan_to_num(image)."
        )


_WRITERS: dict[str, Callable[[str, Path, Image], None]] = {
    ".npy": _write_npy,
    ".tif": _write_tiff,
    ".tiff": _write_tiff,
    ".cbf": _write_cbf,
    ".png": _write_png,
}
_PACKAGES = {
    ".tif": ("tifffile",),
    ".tiff": ("tifffile",),
    ".cbf": ("fabio.cbfimage",),
    ".png": ("PIL.Image",),
}
