"""The windows that a label of a feature is scored on, each once, as one table.

Rows are the active sample, then the silent windows, then those top windows that are not in the
sample. Left out: what is predicted for them.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float32, Int64, UInt64

from ..store.errors import ScopenoteError
from ..store.records import FeatureContexts, Stratum, Windows
from .classic import N_WINDOWS

Rows = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class ScoredWindows:
    """One row a window.

    Attributes:
        windows, truth, is_token: the text, the true activations, where tokens are.
        n_tokens: how many tokens each window has.
        n_active, n_silent: how many rows there are of either stratum.
        top: the rows of the top windows, best first.
    """

    windows: Windows
    truth: Float32[np.ndarray, "W T"]
    is_token: Bool[np.ndarray, "W T"]
    n_tokens: Int64[np.ndarray, " W"]
    n_active: int
    n_silent: int
    top: Rows

    @property
    def strata(self) -> tuple[slice, slice]:
        """The rows of the active and of the silent stratum."""
        return slice(0, self.n_active), slice(self.n_active, self.n_active + self.n_silent)

    @property
    def kept(self) -> Rows:
        """The rows whose predictions are worth keeping: active sample and top windows."""
        others = np.arange(self.n_active + self.n_silent, len(self.windows))
        return np.concatenate([np.arange(self.n_active), others])


def lay_out(contexts: FeatureContexts) -> ScoredWindows:
    """Puts the windows of all kinds into one table."""
    active, silent, top = contexts.active, contexts.silent, contexts.top
    row_of = {name: row for row, name in enumerate(active.windows.window_id.tolist())}
    names = top.windows.window_id.tolist()
    others = [place for place, name in enumerate(names) if name not in row_of]
    first_other = len(active) + len(silent)
    row_of.update({names[place]: first_other + i for i, place in enumerate(others)})
    parts = (active.windows, silent.windows, top.windows.take(np.array(others, dtype=np.intp)))
    windows = Windows.joined(parts)
    is_token = windows.is_token
    truths = (active.activations, silent.activations, top.activations[others])
    return ScoredWindows(
        windows=windows,
        truth=np.concatenate(truths),
        is_token=is_token,
        n_tokens=(is_token @ np.ones(is_token.shape[1])).astype(np.int64),  # faster than sum()
        n_active=len(active),
        n_silent=len(silent),
        top=np.array([row_of[name] for name in names], dtype=np.intp),
    )


def few_windows(contexts: FeatureContexts, n_active: int, n_silent: int) -> FeatureContexts:
    """The contexts with so many windows of either stratum, which still stand for all of it.

    Windows are in an order drawn by hash, so that the first are a uniform sample again. Of the top
    windows those are left that the classic score is taken over.
    """
    return replace(
        contexts,
        active=take_windows(contexts.active, np.arange(min(n_active, len(contexts.active)))),
        silent=take_windows(contexts.silent, np.arange(min(n_silent, len(contexts.silent)))),
        top=take_windows(contexts.top, np.arange(min(N_WINDOWS, len(contexts.top)))),
    )


def only_windows(stratum: Stratum, wanted: Container[int]) -> Stratum:
    """The windows of a stratum with these ids only, which stand for all of it."""
    names = stratum.windows.window_id.tolist()
    rows = [row for row, name in enumerate(names) if name in wanted]
    return take_windows(stratum, np.array(rows, dtype=np.intp))


def take_windows(stratum: Stratum, rows: Rows) -> Stratum:
    """Some windows of a stratum, which stand for all of it."""
    return Stratum(
        stratum.windows.take(rows), stratum.activations[rows], stratum.population_windows
    )


def hash_of_windows(window_ids: UInt64[np.ndarray, " W"]) -> str:
    """A hash of the windows' names, whatever their order."""
    return blake2b(np.sort(window_ids).astype("<u8").tobytes(), digest_size=8).hexdigest()


def require_unseen(explain: FeatureContexts, score: FeatureContexts) -> None:
    """Refuses to score on text that the label may have been written from.

    Raises:
        ScopenoteError: a window's token ids occur in both, or the contexts do not belong together.
    """
    if explain.split != "explain" or score.split == "explain":
        raise ScopenoteError(
            "A label is written from `explain` and scored on another split",
            where=str(score.feature_id),
            found=f"written from `{explain.split}`, to be scored on `{score.split}`",
            expected="written from `explain`, scored on `select` or `score`",
        )
    if explain.feature_id != score.feature_id:
        raise ScopenoteError(
            "The contexts are those of two different features",
            found=f"{explain.feature_id} and {score.feature_id}",
        )
    seen, scored = (
        np.concatenate([part.windows.token_hash for part in (each.active, each.silent, each.top)])
        for each in (explain, score)
    )
    leaked = _count_shared(seen, scored)
    if leaked:
        raise ScopenoteError(
            "Windows to be scored are among those that the label was written from",
            where=str(score.feature_id),
            found=f"{leaked} of {len(scored)} windows of `{score.split}` also in `explain`",
            expected="no text in two splits",
            mend="collect the contexts again into a new run folder: scopenote collect",
        )


def _count_shared(seen: UInt64[np.ndarray, " S"], scored: UInt64[np.ndarray, " W"]) -> int:
    """How many of the scored hashes were seen."""
    if not len(seen):
        return 0
    seen = np.sort(seen)
    place = np.minimum(np.searchsorted(seen, scored), len(seen) - 1)
    return int((seen[place] == scored).sum())
