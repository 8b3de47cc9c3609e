"""What a call by hand may leave out: every entry is real, and all are of one item."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from array_api_compat import array_namespace, device

from stowplan.errors import DataError

__all__ = ["all_of_one_item", "all_real"]


def all_real(
    arrays: Sequence[Any], cores: Sequence[Sequence[str | int]], dims: Collection[str]
) -> dict[str, Any]:
    """Give, for each of the dims that arrays of these core shapes have, a mask of true entries."""
    mask: dict[str, Any] = {}
    for array, core in zip(arrays, cores, strict=True):
        lengths = array.shape[array.ndim - len(core) :]
        for dim, length in zip(core, lengths, strict=True):
            if dim in dims and dim not in mask:
                mask[str(dim)] = _true(length, array)
    return mask


def all_of_one_item(
    who: str, mask: Mapping[str, Any], counting: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give a mask with one entry along the dim that counts items, and the segments of that item.

    Raises
    ------
    DataError
        Where the arrays or the mask have several items along that dim.
    """
    mask = {counting: _true(1, next(iter(mask.values()))), **mask}
    count = mask[counting].shape[-1]
    if count != 1:
        raise DataError(
            f"{who}: the arrays have {counting}={count}; which entry belongs to which? "
            "Say so with segments={dim: int (..., entries)}, or join items with sp.join_rows."
        )
    segments = {}
    for dim, real in mask.items():
        if dim != counting:
            xp = array_namespace(real)
            index = xp.arange(1, device=device(real)).dtype
            segments[dim] = xp.astype(real, index) - 1  # 0, and -1 where it is padding
    return mask, segments


def _true(length: int, like: Any) -> Any:
    xp = array_namespace(like)
    return xp.ones((length,), dtype=xp.bool, device=device(like))
