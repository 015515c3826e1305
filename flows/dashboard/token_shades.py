"""A context as stretches of text, each with a shade for what the feature does there.

Shades are levels from 0 to 10: of true activations by the feature's peak, of simulated ones by
what stands for that peak in the simulator's units. What is off, and is thought to be off, needs
no stretch of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from ...evaluate.token_ratings import HIGHEST
from ...label.token_lookup import EXPLAINER as TOKEN_LOOKUP
from ...store.byte_pieces import join_bytes
from ...store.feature_contexts import ShownContext
from ...store.shown_simulations import ShownSimulation
from ..show_feature import figure

LEVELS = 10
PREFIX_TOKENS = 24
_LONGEST_TITLE = 40
_BOUNDS = (0.75, 0.5, 0.25, 0.0)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Some text of one shade.

    Attributes:
        level: of the true activation, 0 where the feature is off.
        simulated: likewise; 0 also where nothing was simulated.
        title: the token and its values; empty for what is off.
    """

    text: str
    level: int = 0
    simulated: int = 0
    title: str = ""

    @property
    def classes(self) -> str:
        """What the style sheet knows it by."""
        levels = (("a", self.level), ("s", self.simulated))
        return " ".join(["k", *(f"{name}{level}" for name, level in levels if level)])


@dataclass(frozen=True, slots=True)
class ShadedContext:
    """A window kept for the feature, as it is shown.

    Attributes:
        before: what stands before it, never scored.
        is_cut: whether there is more before that.
        failure: why nothing is simulated here though elsewhere it is; None: no failure.
    """

    context: ShownContext
    before: str
    is_cut: bool
    stretches: tuple[Stretch, ...]
    is_simulated: bool
    failure: str | None

    @property
    def strongest(self) -> str | None:
        """Where the peak is, in words for those who do not see shades."""
        return max(self.stretches, key=lambda each: each.level, default=Stretch("")).text or None


@dataclass(frozen=True, slots=True)
class PeakInterval:
    """Contexts whose peaks lie in one quarter of the feature's range.

    Attributes:
        low, high: the quarter's bounds, as shares of the feature's peak.
        n_windows: of the split, that the contexts stand for; None for top windows.
    """

    low: float
    high: float
    contexts: tuple[ShadedContext, ...]
    n_windows: float | None


def level(value: float, full: float) -> int:
    """The shade of a value, 0 to 10; whatever is above 0 but small gets none."""
    if value <= 0 or full <= 0 or not math.isfinite(value):
        return 0
    return min(LEVELS, int(LEVELS * value / full + 0.5))


def full_scale(simulator: str) -> float | None:
    """The prediction that stands for the feature's peak; None: it is in the activation's units."""
    return None if simulator == TOKEN_LOOKUP else float(HIGHEST)


def shade_contexts(
    contexts: Sequence[ShownContext], peak: float, simulation: ShownSimulation | None = None
) -> tuple[PeakInterval, ...]:
    """The contexts by how strong they are, the strongest quarter first.

    Args:
        contexts: of a split and kind.
        peak: the feature's largest activation, of all splits.
        simulation: what is laid over it.
    """

    def quarter(context: ShownContext) -> float:
        share = context.peak / peak if peak > 0 else 1.0
        return next((bound for bound in _BOUNDS if share >= bound), 0.0)

    ordered = sorted(contexts, key=lambda each: (-quarter(each), -each.peak, each.rank))
    return tuple(
        _interval(low, list(some), peak, simulation) for low, some in groupby(ordered, quarter)
    )


def _interval(
    low: float, contexts: list[ShownContext], peak: float, simulation: ShownSimulation | None
) -> PeakInterval:
    weights = [each.weight for each in contexts if each.weight is not None]
    return PeakInterval(
        low=low,
        high=low + 0.25,
        contexts=tuple(_shaded(each, peak, simulation) for each in contexts),
        n_windows=sum(weights) if weights else None,
    )


def _shaded(
    context: ShownContext, peak: float, simulation: ShownSimulation | None
) -> ShadedContext:
    prefix = context.prefix[-PREFIX_TOKENS:]
    before, _ = join_bytes(prefix, [0.0] * len(prefix))
    predicted = None if simulation is None else simulation.predicted.get(context.window_id)
    # A window that was cut otherwise since is not what was simulated.
    if predicted is not None and len(predicted) != len(context.tokens):
        predicted = None
    scale = None if simulation is None else full_scale(simulation.simulator)
    return ShadedContext(
        context=context,
        before="".join(before),
        is_cut=len(prefix) < len(context.prefix) or context.start > len(context.prefix),
        stretches=tuple(_stretches(context, peak, predicted, scale)),
        is_simulated=predicted is not None,
        failure=None if simulation is None else simulation.failures.get(context.window_id),
    )


def _stretches(
    context: ShownContext,
    peak: float,
    predicted: Sequence[float] | None,
    scale: float | None,
) -> Iterator[Stretch]:
    tokens, activations = join_bytes(context.tokens, context.activations)
    simulated: Sequence[float] = ()
    if predicted is not None:
        # The same tokens join, whatever their values.
        _, simulated = join_bytes(context.tokens, predicted)
    plain: list[str] = []
    for place, (token, activation) in enumerate(zip(tokens, activations, strict=True)):
        own = simulated[place] if simulated else 0.0
        # The faintest activation is one: never shown as none.
        shade = max(1, level(activation, peak)) if activation > 0 else 0
        other = level(own, scale or peak)
        if not shade and not other:
            plain.append(token)
            continue
        if plain:
            yield Stretch("".join(plain))
            plain = []
        title = _title(token, activation, own if simulated else None, scale)
        yield Stretch(token, shade, other, title)
    if plain:
        yield Stretch("".join(plain))


def _title(token: str, activation: float, simulated: float | None, scale: float | None) -> str:
    shown = token if len(token) <= _LONGEST_TITLE else f"{token[:_LONGEST_TITLE]}…"
    true = f"“{shown}” true {figure(activation)}"
    if simulated is None:
        return true
    of = "" if scale is None else f" of {scale:.0f}"
    return f"{true}, simulated {figure(simulated)}{of}"
