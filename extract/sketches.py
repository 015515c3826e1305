"""What a feature remembers: mergeable sketches of bounded size.

For each feature and split: the exact top-k windows by peak, the windows with the smallest k
hashes among those in which it fires (a uniform sample of distinct windows), and additive
counts. Beside them what it does in the background pool (`background_pool.py`). Memory depends on
features times k, never on the corpus.

Two windows with the same token ids are copies of one. Of copies, the top keeps the largest
peak, then the earliest occurrence; the sample and the background keep the earliest occurrence
in which the feature fires, and count the others. Every choice has a total order, so sketches
of any partition of the corpus merge to the same result in any order (`store/absorb.py` merges
those of different parts).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from jaxtyping import Int64

from ..store.splits import SPLITS
from .activations import Firings
from .background_pool import BackgroundPool, PoolFirings
from .firing_passes import (
    BatchWindows,
    EntryLevels,
    FeatureCounts,
    count_and_select,
)
from .kept_windows import KeptRows, KeptWindows
from .ranking import choose_staying

# Rows gathered before they are ranked against those kept.
_LEAST_PENDING = 1 << 18


@dataclass(frozen=True, slots=True)
class SketchSizes:
    """How many windows are kept, by split in the order of SPLITS.

    A window whose token ids are kept in an earlier split is dropped from the later when the
    tables are built, so sketches keep a quarter more than the tables will.
    """

    top: tuple[int, int, int] = (20, 10, 20)
    sample: tuple[int, int, int] = (20, 30, 60)
    background: tuple[int, int, int] = (1024, 1024, 4096)

    @property
    def kept_top(self) -> Int64[np.ndarray, " 3"]:
        """Top windows in the sketch."""
        return _with_reserve(self.top)

    @property
    def kept_sample(self) -> Int64[np.ndarray, " 3"]:
        """Sampled windows in the sketch."""
        return _with_reserve(self.sample)

    @property
    def kept_background(self) -> Int64[np.ndarray, " 3"]:
        """Background windows in the pool."""
        return _with_reserve(self.background)


class FeatureSketch:
    """The sketches of all features of one SAE.

    `add` takes the batches, in any order and from any thread; `finish` ranks what is kept.

    Args:
        n_features: of the SAE.
        sizes: how many windows are kept for each.
        pool: the background's windows.
        folder: on whose disk their firings lie.
    """

    def __init__(
        self,
        n_features: int,
        sizes: SketchSizes,
        pool: BackgroundPool,
        folder: Path | None = None,
    ) -> None:
        n_slots = n_features * len(SPLITS)
        self.counts = FeatureCounts.zeros(n_features, len(SPLITS))
        self.background = PoolFirings(pool, folder)
        self._kept_top = np.tile(sizes.kept_top, n_features)
        self._kept_sample = np.tile(sizes.kept_sample, n_features)
        self._levels = EntryLevels(
            # Where nothing is kept nothing enters.
            least_peak=np.where(self._kept_top > 0, 0, np.inf).astype(np.float32),
            largest_hash=np.full(n_slots, np.iinfo(np.uint64).max, np.uint64),
        )
        self._rows = KeptRows()
        self._n_ranked = 0
        self._lock = Lock()

    def add(self, firings: Firings, batch: BatchWindows) -> None:
        """Takes in one batch: only what enters a sketch is touched beyond counting."""
        with self._lock:
            entering = count_and_select(
                firings.feature,
                firings.token,
                firings.value,
                batch,
                len(SPLITS),
                self._levels,
                self.counts,
            )
            self.background.add(firings, batch)
            self._rows.append(firings, batch, entering)
            if len(self._rows) - self._n_ranked > max(_LEAST_PENDING, self._n_ranked // 2):
                self._rank()

    def finish(self) -> KeptWindows:
        """The contexts that are kept, by slot and hash."""
        self._rank()
        return self._rows.windows

    @property
    def occurrences(self) -> list[Int64[np.ndarray, " K"]]:
        """Occurrences of windows that are kept or may be."""
        with self._lock:
            return [np.unique(self._rows.windows.occurrence), self.background.occurrences]

    def _rank(self) -> None:
        stays = choose_staying(self._rows.windows, self._kept_top, self._kept_sample, self._levels)
        self._rows.choose(stays)
        self._n_ranked = len(self._rows)


def _with_reserve(sizes: Sequence[int]) -> Int64[np.ndarray, " 3"]:
    return np.array([size + max(4, size // 4) if size else 0 for size in sizes], np.int64)
