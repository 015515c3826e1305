"""Made-up splits whose true correlation is known, and samples of them as a run would draw them.

Documents differ in how often the feature fires in them and how often the label errs; most windows
are silent. Windows are made once with their moments, and a sample takes rows of those: so a draw
costs no token, and a correlation does not depend on the units its moments are in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from zlib import crc32

import numpy as np
from scopenote.evaluate.correlation import WindowMoments, correlation_of, window_moments
from scopenote.evaluate.intervals import Design, Interval, draw_resamples, guarded_interval
from scopenote.evaluate.looks import Looks
from scopenote.evaluate.resampling import resample
from scopenote.evaluate.screening import FirstPhase, silent_weights

T = 16
POOL = 4096
FIRES_WITHOUT_CAUSE = 0.02  # the share of other silent windows in which a screen fires


@dataclass(frozen=True, slots=True)
class Kind:
    """What a population is like.

    Attributes:
        density: the share of tokens at which the feature fires.
        false_share: the share of silent windows in which the label fires, or of silent tokens.
        of_tokens: whether `false_share` is one of tokens.
    """

    density: float
    false_share: float
    of_tokens: bool = False


@dataclass(frozen=True, slots=True)
class Drawn:
    """Windows drawn from a population, as far as an interval needs them."""

    moments: WindowMoments
    design: Design


class Population:
    """The windows of a split, feature and label alike in all but how documents lean."""

    def __init__(self, kind: Kind, seed: int = 1, n_documents: int = 20_000) -> None:
        rng = np.random.default_rng([seed, n_documents])
        self.document = np.repeat(np.arange(n_documents), 10)
        n = len(self.document)

        def windows_with(share: float) -> np.ndarray:
            leaning = rng.gamma(0.3, 1 / 0.3, n_documents)
            for scale in np.geomspace(share, 50, 500):
                chance = np.minimum(scale * leaning, 0.8)
                if chance.mean() >= share:
                    break
            return rng.random(n) < chance[self.document]

        def tokens_of(is_window: np.ndarray) -> np.ndarray:
            """So many tokens in each of these windows on average, at least one."""
            tokens = is_window[:, None] & (rng.random((n, T)) < (self.run - 1) / T)
            tokens[np.arange(n), rng.integers(0, T, n)] |= is_window
            return tokens

        # A dense feature fires at more tokens of a window, not in nearly every window.
        self.run = 2.0 if kind.density < 0.03 else 4.0
        per_window = self.run - (self.run - 1) / T
        self.is_active = windows_with(kind.density * T / per_window)
        false_share = kind.false_share * (T / per_window if kind.of_tokens else 1)
        self.is_false = windows_with(false_share) & ~self.is_active
        height = rng.exponential(1, (n, T))
        truth = np.where(tokens_of(self.is_active), height, 0).astype(np.float32)
        said = height + rng.normal(0, 0.3, (n, T))
        skill = rng.normal(1, 0.3, n_documents).clip(0)[self.document, None]
        fires = (truth > 0) & (rng.random(n) < 0.8)[:, None] | tokens_of(self.is_false)
        predicted = np.abs(rng.normal(0, 0.02, (n, T)))
        predicted += np.where(fires, (skill * said).clip(0), 0)
        moments = window_moments(
            predicted.astype(np.float32), truth, np.ones((n, T), bool), np.ones(n)
        )
        assert isinstance(moments, WindowMoments)
        self.moments, self.density = moments, float((truth > 0).mean())
        self.correlation = correlation_of(moments).value or 0.0
        self.active, self.silent = np.flatnonzero(self.is_active), np.flatnonzero(~self.is_active)
        # A screen fires in the same windows whenever it is asked.
        self._luck = rng.random(n)

    def draw(
        self, rng: np.random.Generator, n_active: int, n_silent: int, recall: float | None = None
    ) -> Order:
        """Windows in the order in which they are to be rated."""
        active = rng.choice(self.active, n_active, False)
        if recall is None:
            return Order(self, active, rng.choice(self.silent, n_silent, False), None, None)
        pool = rng.choice(self.silent, POOL, False)
        fires = self._luck[pool] < np.where(self.is_false[pool], recall, FIRES_WITHOUT_CAUSE)
        suspects = pool[fires][: n_silent // 2]
        others = pool[~fires][: n_silent - len(suspects)]
        screened = FirstPhase(self.document[pool], np.ones(POOL), fires)
        return Order(self, active, others, suspects, screened)


@dataclass(frozen=True, slots=True)
class Order:
    """Windows of a population, by number, in the order in which they are to be rated."""

    population: Population
    active: np.ndarray
    silent: np.ndarray
    suspects: np.ndarray | None
    screened: FirstPhase | None

    def of(self, other: Population) -> Order:
        """The same windows with the predictions of another label."""
        return replace(self, population=other)

    def all(self) -> Drawn:
        return self.at(Looks((1.0,)), 1)

    def at(self, looks: Looks, look_number: int) -> Drawn:
        """What is rated by a look."""
        active = self.active[: looks.n_of(look_number, len(self.active))]
        silent = self.silent[: looks.n_of(look_number, len(self.silent))]
        n_active, population = len(active), len(self.population.silent)
        is_suspect = None
        if self.screened is None or self.suspects is None:
            rows = np.concatenate([active, silent])
            of_silent = np.full(len(silent), population / len(silent))
        else:
            suspects = self.suspects[: looks.n_of(look_number, len(self.suspects))]
            rows = np.concatenate([active, silent, suspects])
            is_suspect = np.arange(len(rows)) >= n_active + len(silent)
            found = silent_weights(
                np.ones(len(rows) - n_active), is_suspect[n_active:], self.screened, population
            )
            assert isinstance(found, np.ndarray)
            of_silent = found
        of_active = np.full(n_active, len(self.population.active) / n_active)
        whole = self.population.moments
        moments = WindowMoments(
            np.concatenate([of_active, of_silent]),
            whole.sums[:, rows],
            whole.predicted,
            whole.true,
        )
        is_silent = np.arange(len(rows)) >= n_active
        design = Design(self.population.document[rows], is_silent, is_suspect, self.screened)
        return Drawn(moments, design)


@cache
def population(kind: Kind) -> Population:
    """The population of this kind; made once a process, and not to be changed."""
    return Population(kind)


RECALLS = (None, 0.5, 0.75, 0.95)
RESAMPLES = draw_resamples(seed=7, n_resamples=400)
SHARES, NARROW = (0.25, 0.5, 1.0), 0.2
NEAR = -0.2  # the looks' threshold, from the truth


@dataclass(frozen=True, slots=True)
class Cell:
    """A population and what is drawn of it; without a recall there is no screen."""

    kind: Kind
    n_active: int
    n_silent: int
    recall: float | None


@dataclass(frozen=True, slots=True)
class Covered:
    """How often intervals held the truth, how wide they were, and what looks saved.

    Attributes:
        fixed, looks, plain: the shares of draws that were covered: by the interval of all
            windows, by that of the look which stopped, and by the plain bootstrap of all.
        width, width_of_looks, width_of_plain: means of each.
        used: the mean share of windows that looks used.
    """

    fixed: float
    looks: float
    plain: float
    width: float
    width_of_looks: float
    width_of_plain: float
    used: float


def cover(cell: Cell, n_draws: int, threshold: float = NEAR, seed: int = 0) -> Covered:
    """Draws samples, takes their intervals and counts; the threshold is given from the truth."""
    split = population(cell.kind)
    truth = split.correlation
    looks = Looks(SHARES, NARROW, min(max(truth + threshold, -1.0), 1.0))
    rng = np.random.default_rng([seed, crc32(repr(cell).encode())])
    limits, used = np.empty((n_draws, 3, 2)), np.empty(n_draws)
    for number in range(n_draws):
        order = split.draw(rng, cell.n_active, cell.n_silent, cell.recall)
        whole = order.all()
        fixed = guarded_interval(whole.moments, whole.design, RESAMPLES)
        assert fixed is not None
        plain = resample(whole.moments, whole.design, RESAMPLES).plain
        stopped, n_used = stop(order, looks)
        limits[number] = (
            (fixed.low, fixed.high),
            (stopped.low, stopped.high),
            np.nanquantile(plain, [0.025, 0.975]),
        )
        used[number] = n_used / len(whole.moments.weight)
    low, high = limits[..., 0], limits[..., 1]
    holds = ((low <= truth) & (truth <= high)).mean(axis=0)
    widths = (high - low).mean(axis=0)
    return Covered(*(float(x) for x in (*holds, *widths, used.mean())))


def stop(order: Order, looks: Looks) -> tuple[Interval, int]:
    """The interval of the look that stops, and how many windows it used."""
    level = looks.level_of_each(0.95)
    for look_number in range(1, len(looks) + 1):
        drawn = order.at(looks, look_number)
        found = guarded_interval(drawn.moments, drawn.design, RESAMPLES, level)
        if looks.why_stop(look_number, found):
            break
    assert found is not None
    return found, len(drawn.moments.weight)
