"""Masks of files in pairs: by place, and labelled ones by their label."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from stowplan.errors import DataError
from stowplan.io.masks import Labels, Mask, MaskPlace, read_with_places

__all__ = ["MaskPairs", "mask_names", "read_pairs"]

SHOWN = 5  # masks that a message lists


@dataclass(frozen=True, eq=False)
class MaskPairs:
    """Masks, each held once, and which of them are source and target of each pair."""

    masks: list[Mask]
    places: list[MaskPlace]
    pairs: list[tuple[int, int]]
    names: list[str]  # of masks, for messages and titles
    alone: list[int]  # masks whose label the other frame lacks

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, pair: int) -> str:
        """Give the names of a pair."""
        source, target = self.pairs[pair]
        return f"{self.names[source]} → {self.names[target]}"

    def listed(self, chosen: list[int]) -> str:
        """Give names of masks in a line."""
        dots = ", ..." * (len(chosen) > SHOWN)
        return ", ".join(self.names[place] for place in chosen[:SHOWN]) + dots


def read_pairs(
    source: str, target: str | None, *, labels: Labels | None, threshold: float | None
) -> MaskPairs:
    """Read the pairs of two sets of files, or the consecutive ones of one set.

    The n-th frame of one set belongs to the n-th of the other. Within two frames, masks of the same
    label are a pair.

    Raises
    ------
    DataError
        For numbers of frames that differ, no pair, and empty masks: all of them by name.
    """
    read = {"labels": labels, "threshold": threshold}
    found = read_with_places(source, **read)  # type: ignore[arg-type]  # each has its own type
    frames = _frames(found, 0)
    if target is None:
        couples = list(pairwise(frames))
    else:
        others = read_with_places(target, **read)  # type: ignore[arg-type]  # as above
        after = _frames(others, len(found))
        if len(frames) != len(after):
            raise DataError(
                f"transport: {source!r} has {len(frames)} frames, but {target!r} has {len(after)}; "
                "give one target for each source."
            )
        couples = list(zip(frames, after, strict=True))
        found = found + others
    pairs = [(a[label], b[label]) for a, b in couples for label in a if label in b]
    alone = {
        one[label]
        for a, b in couples
        for one, other in ((a, b), (b, a))
        for label in one.keys() - other
    }
    places = [place for place, _ in found]
    made = MaskPairs([mask for _, mask in found], places, pairs, mask_names(places), sorted(alone))
    if not pairs:
        reason = f"there is one frame in {source!r}" if not couples else "no label is in two frames"
        raise DataError(f"transport: there is no pair: {reason}. Give frames that follow another.")
    empty = [place for place in sorted({*sum(pairs, ())}) if not made.masks[place].any()]
    if empty:
        raise DataError(
            f"transport: {len(empty)} of {len(found)} masks are empty, so that there is nothing to "
            f"transport: {made.listed(empty)}. Leave them out."
        )
    return made


def _frames(found: list[tuple[MaskPlace, Mask]], start: int) -> list[dict[int | None, int]]:
    """Give where the masks of each frame are, by label."""
    frames = []
    for _, group in groupby(enumerate(found, start), key=lambda entry: entry[1][0][:2]):
        frames.append({place.label: number for number, (place, _) in group})
    return frames


def mask_names(places: list[MaskPlace]) -> list[str]:
    """Name files, frames where a file has several, and labels."""
    frames = Counter[Any]()
    for file, frame, _ in places:
        frames[file] = max(frames[file], frame)
    return [
        place.file.name
        + f" frame {place.frame}" * (frames[place.file] > 0)
        + (f" label {place.label}" if place.label is not None else "")
        for place in places
    ]
