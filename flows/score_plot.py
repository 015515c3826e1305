"""A picture of how scores are spread beside what they would be by chance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..store.card_facts import SPREAD_BINS, ScoreSpread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Told apart also without colour, by fill and dashes; the colours by people who see few of them.
_OWN, _NULL, _SHUFFLED = "#3b6fb6", "#c2571a", "#555555"
_MOST = 6


def draw_spreads(spreads: Sequence[ScoreSpread], file: Path) -> None:
    """Draws a histogram for each explainer and simulator, those with most labels first.

    The same scores give the same bytes.

    Args:
        spreads: at least one; of more than six the rest is left out.
        file: a PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = sorted(spreads, key=lambda each: (-sum(each.own), each.explainer, each.simulator))
    shown = shown[:_MOST]
    figure = Figure(figsize=(8, 0.7 + 2.1 * len(shown)), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(len(shown), sharex=True, squeeze=False)[:, 0]
    for axes, spread in zip(all_axes, shown, strict=True):
        _draw(axes, spread)
    first, last = _limits(shown)
    all_axes[-1].set_xlim(first, last)
    all_axes[-1].set_xlabel("correlation of simulated and true activations, split score")
    # Otherwise the version of matplotlib and the like stand in the file.
    figure.savefig(file, metadata={"Software": None})


def _draw(axes: Axes, spread: ScoreSpread) -> None:
    edges = [2 * at / SPREAD_BINS - 1 for at in range(SPREAD_BINS + 1)]
    n = sum(spread.own)
    axes.stairs(_shares(spread.own), edges, fill=True, color=_OWN, alpha=0.75,
                label=f"labels ({n:,})")  # fmt: skip
    others = (
        (spread.null, _NULL, "-", "token lookup, same windows"),
        (spread.shuffled, _SHUFFLED, "--", "another feature's label"),
    )
    for counts, colour, dashes, words in others:
        if sum(counts):
            axes.stairs(_shares(counts), edges, color=colour, linestyle=dashes, linewidth=1.6,
                        label=f"{words} ({sum(counts):,})")  # fmt: skip
    axes.axvline(0, color="#999999", linewidth=0.8)
    axes.set_title(f"{spread.explainer}, judged by {spread.simulator}", loc="left", fontsize=10,
                   parse_math=False)  # fmt: skip
    axes.set_ylabel("share")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper right")


def _shares(counts: Sequence[int]) -> list[float]:
    return [count / max(1, sum(counts)) for count in counts]


def _limits(spreads: Sequence[ScoreSpread]) -> tuple[float, float]:
    """From a little below the lowest score, and 0, to 1."""
    lowest = min(
        (at for each in spreads for counts in (each.own, each.null, each.shuffled)
         for at, count in enumerate(counts) if count),
        default=0,
    )  # fmt: skip
    return min(-0.1, 2 * lowest / SPREAD_BINS - 1), 1.0
