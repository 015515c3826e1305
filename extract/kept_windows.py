"""Rows of windows kept for features: gathering them, taking some, places within groups."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, UInt8, UInt16, UInt64


@dataclass(frozen=True, slots=True)
class KeptWindows:
    """Windows kept for features, one row each; activations lie one after another.

    Attributes:
        slot: feature times three plus the split's number.
        copies: active occurrences that the row stands for (the sample's rows only).
        length: how many activations the row has in `position` and `value`.
    """

    slot: Int32[np.ndarray, " K"]
    token_hash: UInt64[np.ndarray, " K"]
    occurrence: Int64[np.ndarray, " K"]
    peak: Float32[np.ndarray, " K"]
    copies: Int32[np.ndarray, " K"]
    in_top: Bool[np.ndarray, " K"]
    in_sample: Bool[np.ndarray, " K"]
    length: UInt16[np.ndarray, " K"]
    position: UInt8[np.ndarray, " N"]
    value: Float32[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.slot)

    def take(self, rows: Int64[np.ndarray, " R"], **replaced: np.ndarray) -> KeptWindows:
        """These rows, with some columns replaced."""
        begin = np.cumsum(self.length, dtype=np.int64) - self.length
        places = spans(begin[rows], self.length[rows].astype(np.int64))
        columns = {name: getattr(self, name)[rows] for name in _ROW_COLUMNS}
        columns |= {"position": self.position[places], "value": self.value[places]}
        return KeptWindows(**(columns | replaced))


_ROW_COLUMNS = tuple(f.name for f in fields(KeptWindows) if f.name not in ("position", "value"))


def gather_rows(parts: list[KeptWindows]) -> KeptWindows:
    """All rows, one part after another."""

    def column(name: str, dtype: type) -> np.ndarray:
        return np.concatenate([np.empty(0, dtype), *(getattr(part, name) for part in parts)])

    return KeptWindows(
        slot=column("slot", np.int32),
        token_hash=column("token_hash", np.uint64),
        occurrence=column("occurrence", np.int64),
        peak=column("peak", np.float32),
        copies=column("copies", np.int32),
        in_top=column("in_top", np.bool_),
        in_sample=column("in_sample", np.bool_),
        length=column("length", np.uint16),
        position=column("position", np.uint8),
        value=column("value", np.float32),
    )


def is_first(*keys: np.ndarray) -> Bool[np.ndarray, " K"]:
    """True where a row differs from the one before it in any key."""
    first = np.ones(len(keys[0]), np.bool_)
    if len(first) > 1:
        first[1:] = keys[0][1:] != keys[0][:-1]
        for key in keys[1:]:
            first[1:] |= key[1:] != key[:-1]
    return first


def rank_within(group: np.ndarray) -> Int64[np.ndarray, " K"]:
    """Each row's place among the rows of its group, from 0; groups lie together."""
    starts = np.flatnonzero(is_first(group))
    rank: Int64[np.ndarray, " K"] = np.arange(len(group)) - np.repeat(
        starts, np.diff(starts, append=len(group))
    )
    return rank


def spans(
    starts: Int64[np.ndarray, " R"], lengths: Int64[np.ndarray, " R"]
) -> Int64[np.ndarray, " N"]:
    """The places starts[0], starts[0]+1, … of each span, one span after another."""
    ends = np.cumsum(lengths)
    places: Int64[np.ndarray, " N"] = np.arange(ends[-1] if len(ends) else 0)
    places += np.repeat(starts - (ends - lengths), lengths)
    return places
