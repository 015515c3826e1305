"""How good a judge is: its predictions for features of which all is known (`gold_items`).

Each item is simulated with its own label and with another item's. A judge that understands gets
about 1 from the first and about 0 from the second, or nothing at all because it predicts nothing.
What comes of it over time is in `store/gold.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32

from ..label.chat import ChatRequest
from ..label.labelling import Ask
from ..store.gold import GoldScore
from ..store.records import Call, FeatureId, Label, Windows
from .correlation import NOTHING_SIMULATED, Correlation, ev_correlation
from .gold_items import GoldItem, gold_items, gold_version
from .simulators import Simulated, Simulator, simulate_blind

MakeSimulator = Callable[[Callable[[int], str], Callable[[int], Sequence[int]]], Simulator]
"""Makes a judge that reads gold windows: how tokens are spelled, and what stands before windows."""

# An item gets the label of the one so many places further on: none of these pairs has to do with
# each other (the text of one holds little that the rule of the other is about).
_PLACES_ON = 3


@dataclass(frozen=True, slots=True)
class _GoldText:
    """All windows of the items as token ids, in a vocabulary of their own.

    Attributes:
        words: the vocabulary.
        windows: of each item.
        truth: likewise; 0 at padding.
    """

    words: tuple[str, ...]
    windows: tuple[Windows, ...]
    truth: tuple[Float32[np.ndarray, "W T"], ...]


def judge_gold(make: MakeSimulator, seed: int = 0) -> tuple[GoldScore, ...]:
    """What a judge makes of every gold item, under its own label and under another's.

    Args:
        make: makes the judge, which must read words.
        seed: of the windows' order, for a judge whose predictions may depend on it.
    """
    items = gold_items()
    text = _lay_out(items)
    judge = make(text.words.__getitem__, lambda window_id: ())
    scores = []
    for place, item in enumerate(items):
        other = items[(place + _PLACES_ON) % len(items)]
        windows = text.windows[place]
        own, wrong = (
            simulate_blind(judge, _label(place, each), windows, seed) for each in (item, other)
        )
        scores.append(_score(judge, item, own, wrong, windows.is_token, text.truth[place]))
    return tuple(scores)


def drawn(ask: Ask, draw: int) -> Ask:
    """Asks for another draw of each request, so that what is on record does not answer it."""

    async def ask_anew(request: ChatRequest, n_static: int) -> Call:
        return await ask(replace(request, draw=draw), n_static)

    return ask_anew


def _label(number: int, item: GoldItem) -> Label:
    return Label(
        feature_id=FeatureId("gold", number),
        text=item.label,
        explanation=None,
        explainer="gold",
        prompt_version=gold_version(),
        window_ids=(),
        source="human",
        author="gold",
    )


def _score(
    judge: Simulator,
    item: GoldItem,
    own: Simulated,
    wrong: Simulated,
    is_token: Bool[np.ndarray, "W T"],
    truth: Float32[np.ndarray, "W T"],
) -> GoldScore:
    of_own, of_wrong = (_agreement(each, truth, is_token) for each in (own, wrong))
    failures = Counter([*own.failures.values(), *wrong.failures.values()])
    masses = [*own.captured_mass.values(), *wrong.captured_mass.values()]
    is_silent = is_token & (truth == 0)
    is_silent[list(own.failures)] = False
    predicted = own.predicted[is_silent] / (judge.full_scale or 1.0)
    return GoldScore(
        simulator=judge.name,
        gold_version=gold_version(),
        item=item.name,
        value=of_own.value,
        reason=of_own.reason,
        wrong_value=of_wrong.value,
        wrong_reason=of_wrong.reason,
        n_windows=2 * len(item.windows),
        n_failed=failures.total(),
        failures=dict(failures),
        silent_mean=float(predicted.mean()) if len(predicted) else None,
        captured_mass=float(np.mean(masses)) if masses else None,
    )


def _agreement(
    simulated: Simulated, truth: Float32[np.ndarray, "W T"], is_token: Bool[np.ndarray, "W T"]
) -> Correlation:
    """The correlation over the tokens of those windows that were simulated."""
    rows = np.array([row for row in range(len(truth)) if row not in simulated.failures], np.intp)
    if not len(rows):
        reasons = ", ".join(sorted(set(simulated.failures.values())))
        return Correlation(None, f"{NOTHING_SIMULATED}: {reasons}")
    return ev_correlation(simulated.predicted[rows], truth[rows], is_token[rows])


def _lay_out(items: Sequence[GoldItem]) -> _GoldText:
    words = tuple(sorted({token for item in items for each in item.windows for token in each}))
    id_of = {word: number for number, word in enumerate(words)}
    laid_out = [_lay_out_item(place, item, id_of) for place, item in enumerate(items)]
    windows, truth = zip(*laid_out, strict=True)
    return _GoldText(words, tuple(windows), tuple(truth))


def _lay_out_item(
    place: int, item: GoldItem, id_of: Mapping[str, int]
) -> tuple[Windows, Float32[np.ndarray, "W T"]]:
    n_windows, n_tokens = len(item.windows), max(map(len, item.windows))
    token_ids = np.full((n_windows, n_tokens), -1, np.int32)
    truth = np.zeros((n_windows, n_tokens), np.float32)
    for row, (tokens, fires) in enumerate(zip(item.windows, item.truth, strict=True)):
        token_ids[row, : len(tokens)] = [id_of[token] for token in tokens]
        truth[row, : len(tokens)] = fires
    names = np.arange(n_windows, dtype=np.uint64) + np.uint64(place * n_windows)
    windows = Windows(
        window_id=names,
        token_hash=names,
        document=np.arange(n_windows, dtype=np.int64),
        token_ids=token_ids,
        copies=np.ones(n_windows, np.int64),
    )
    return windows, truth
