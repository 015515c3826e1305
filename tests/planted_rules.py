"""Made-up text and features that follow written rules in it, with an ideal simulator of rules.

The text has words by Zipf's law, stretches in quotation marks and runs of digits. A feature is
active where its rule says so, with strengths of its own; the simulator predicts the rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scopenote.evaluate.simulators import Simulated
from scopenote.store.records import FeatureContexts, FeatureId, Label, Stratum, Windows
from scopenote.store.splits import Split

QUOTE, DIGITS, FIRST_WORD, VOCABULARY = 0, range(1, 11), 11, 3000
WINDOW_TOKENS, WINDOWS_A_DOCUMENT = 64, 10
FEATURE = FeatureId("planted/0-res", 0)


@dataclass(frozen=True)
class Text:
    """Documents of one split, one row each."""

    split: Split
    token_ids: np.ndarray

    @property
    def windows(self) -> np.ndarray:
        """The token ids, a row a window."""
        return self.token_ids.reshape(-1, WINDOW_TOKENS)


def write_text(split: Split, n_documents: int, seed: int) -> Text:
    """Documents of ten windows."""
    rng = np.random.default_rng([seed, len(split)])
    shape = (n_documents, WINDOWS_A_DOCUMENT * WINDOW_TOKENS)
    shares = word_shares()
    ids = FIRST_WORD + rng.choice(len(shares), shape, p=shares)
    for begins, kind in ((0.004, "quote"), (0.006, "digits")):
        for document, place in np.argwhere(rng.random(shape) < begins):
            end = min(place + 2 + rng.geometric(0.15), shape[1] - 1)
            if kind == "quote":
                ids[document, [place, end]] = QUOTE
            else:
                ids[document, place : place + rng.integers(1, 6)] = rng.choice(DIGITS)
    return Text(split, ids.astype(np.int32))


def word_shares() -> np.ndarray:
    """How often each word is, by Zipf's law."""
    shares = 1 / np.arange(2, VOCABULARY - FIRST_WORD + 2)
    return shares / shares.sum()


def in_set(text: Text, tokens: np.ndarray) -> np.ndarray:
    """True where a token is one of these."""
    return np.isin(text.token_ids, tokens)


def after(text: Text, tokens: np.ndarray, before: np.ndarray) -> np.ndarray:
    """True where one of `tokens` follows one of `before`."""
    return in_set(text, tokens) & np.roll(in_set(text, before), 1, axis=1)


def quoted(text: Text) -> np.ndarray:
    """True inside quotation marks."""
    is_quote = text.token_ids == QUOTE
    return (np.cumsum(is_quote, axis=1) % 2 == 1) & ~is_quote


def digit_run(text: Text) -> np.ndarray:
    """True at a digit that follows a digit."""
    is_digit = np.isin(text.token_ids, DIGITS)
    return is_digit & np.roll(is_digit, 1, axis=1)


def activations(is_active: np.ndarray, token_ids: np.ndarray, seed: int) -> np.ndarray:
    """Strengths where the rule holds: each token's own, and a little noise."""
    rng = np.random.default_rng(seed)
    own = np.exp(rng.normal(0.5, 0.15, VOCABULARY))
    noise = np.exp(rng.normal(0, 0.15, token_ids.shape))
    return (is_active * own[token_ids] * noise).astype(np.float32)


@dataclass(frozen=True)
class Planted:
    """What is kept of a feature in one split, and where its windows lie in the text."""

    contexts: FeatureContexts
    first_id: int


def keep(
    text: Text, truth: np.ndarray, seed: int, n_active: int = 60, background: int = 4096
) -> Planted:
    """What a run would keep: a sample of active windows, silent ones of a pool, the top."""
    rng = np.random.default_rng([seed, len(text.split)])
    truth = truth.reshape(-1, WINDOW_TOKENS)
    first_id = 1_000_000 * (1 + len(text.split))
    is_active = truth.any(axis=1)
    active = rng.permutation(np.flatnonzero(is_active))
    pool = rng.permutation(len(truth))[:background]
    top = np.argsort(-truth.max(axis=1), kind="stable")[:20]

    def stratum(rows: np.ndarray, population: int) -> Stratum:
        names = (first_id + rows).astype(np.uint64)
        windows = Windows(
            window_id=names,
            token_hash=names * np.uint64(11400714819323198485),
            document=rows // WINDOWS_A_DOCUMENT + first_id,
            token_ids=text.windows[rows],
            copies=np.ones(len(rows), np.int64),
        )
        return Stratum(windows, truth[rows], population)

    n_windows_active = int(is_active.sum())
    contexts = FeatureContexts(
        feature_id=FEATURE,
        split=text.split,
        active=stratum(active[:n_active], n_windows_active),
        silent=stratum(pool[~is_active[pool]], len(truth) - n_windows_active),
        top=stratum(top, len(top)),
        n_windows=len(truth),
        n_active_windows=n_windows_active,
        n_tokens=truth.size,
        n_active=int(np.count_nonzero(truth)),
    )
    return Planted(contexts, first_id)


@dataclass(frozen=True)
class RuleSimulator:
    """Predicts, from a label's text, the rule of that name, without error."""

    first_id: int
    rules: Mapping[str, np.ndarray]
    name: str = "ideal"
    depends_on_order: bool = False
    full_scale: float | None = 1.0

    def simulate(self, label: Label, windows: Windows) -> Simulated:
        """One where the rule holds."""
        holds = self.rules[label.text or ""].reshape(-1, WINDOW_TOKENS)
        rows = windows.window_id.astype(np.int64) - self.first_id
        return Simulated(holds[rows].astype(np.float32))


@dataclass(frozen=True, slots=True)
class RandomSimulator:
    """Predicts at random, always the same for a label: nothing it says is about the feature."""

    seed: int
    share: float = 0.01
    name: str = "random"
    depends_on_order: bool = False
    full_scale: float | None = 1.0

    def simulate(self, label: Label, windows: Windows) -> Simulated:
        """One at about this share of the tokens."""
        draw = np.random.default_rng([self.seed, int(label.text or 0)])
        return Simulated((draw.random(windows.token_ids.shape) < self.share).astype(np.float32))


def a_label(text: str) -> Label:
    """A label that says this."""
    return Label(FEATURE, text, None, "by-hand", "1", (), source="human", author="test")


def words_of_density(
    density: float, rng: np.random.Generator, n: int = 8, without: tuple[int, ...] = ()
) -> np.ndarray:
    """So many words that make up about this share of all tokens together."""
    shares = word_shares()
    order = rng.permutation(len(shares))
    wanted = density / n
    near = [word for word in order if wanted / 3 < shares[word] < wanted * 3]
    chosen = [word for word in near if FIRST_WORD + word not in without][:n]
    if len(chosen) < n:
        rest = [
            word
            for word in np.argsort(np.abs(np.log(shares / wanted)))
            if word not in chosen and FIRST_WORD + word not in without
        ]
        chosen += rest[: n - len(chosen)]
    return FIRST_WORD + np.array(chosen)
