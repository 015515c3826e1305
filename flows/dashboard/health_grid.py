"""How SAEs do, laid out by layer: a row for each kind of SAE, a column for each layer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ...store.overview import SaeHealth
from ..show_feature import figure

MOST_ROWS = 12
"""So many SAEs are best read as a table; more of them as a grid."""

_SHADES = 5
# `20-gemmascope-res-16k-l0-22`: the layer, what it is, and one of several at that place.
_SOURCE = re.compile(r"(?P<layer>\d+)-(?P<kind>.+?)(?:-l0-\d+)?", re.ASCII)


class Measure(StrEnum):
    """What a grid shows."""

    MEDIAN = "median"
    LABELLED = "labelled"
    ALIVE = "alive"
    FVU = "fvu"
    L0 = "l0"


_VALUES: Mapping[Measure, Callable[[SaeHealth], float | None]] = {
    Measure.MEDIAN: lambda sae: sae.median,
    Measure.LABELLED: lambda sae: sae.labelled,
    Measure.ALIVE: lambda sae: sae.alive,
    Measure.FVU: lambda sae: sae.fvu,
    Measure.L0: lambda sae: sae.mean_l0,
}


@dataclass(frozen=True, slots=True)
class Square:
    """One SAE in a grid.

    Attributes:
        words: its value, short.
        shade: 1 for the lowest values shown to 5 for the highest; 0 for none.
    """

    sae: SaeHealth
    words: str
    shade: int


@dataclass(frozen=True, slots=True)
class HealthGrid:
    """SAEs by kind and layer.

    Attributes:
        measure: what is shown of them.
        rows: kinds, each with the SAEs at each layer, most often one.
    """

    measure: Measure
    layers: tuple[int, ...]
    rows: tuple[tuple[str, tuple[tuple[Square, ...], ...]], ...]


def lay_out_health(
    saes: Sequence[SaeHealth], measure: Measure | None, has_scores: bool
) -> HealthGrid | None:
    """A grid of SAEs; None where they are few enough for a table."""
    if len(saes) <= MOST_ROWS:
        return None
    shown = measure or (Measure.MEDIAN if has_scores else Measure.ALIVE)
    value = _VALUES[shown]
    values = [each for sae in saes if (each := value(sae)) is not None]
    low, high = min(values, default=0.0), max(values, default=0.0)
    models = {sae.model for sae in saes}
    layers = tuple(sorted({sae.layer for sae in saes}))
    kinds: dict[str, dict[int, list[Square]]] = {}
    for sae in saes:
        kind = kind_of(sae)
        name = f"{sae.model}/{kind}" if len(models) > 1 else kind
        found = value(sae)
        shade = 0 if found is None else _shade(found, low, high)
        square = Square(sae, _words(shown, found), shade)
        kinds.setdefault(name, {}).setdefault(sae.layer, []).append(square)
    rows = tuple(
        (name, tuple(tuple(by_layer.get(layer, ())) for layer in layers))
        for name, by_layer in sorted(kinds.items())
    )
    return HealthGrid(shown, layers, rows)


def kind_of(sae: SaeHealth) -> str:
    """What an SAE has in common with those at other layers."""
    source = sae.sae_id.removeprefix(f"{sae.model}/")
    named = _SOURCE.fullmatch(source)
    return named["kind"] if named else f"{sae.site}, {sae.width:,} wide"


def _shade(value: float, low: float, high: float) -> int:
    if high <= low:
        return 1
    return min(_SHADES, 1 + int(_SHADES * (value - low) / (high - low)))


def _words(measure: Measure, value: float | None) -> str:
    if value is None:
        return "–"
    if measure in (Measure.LABELLED, Measure.ALIVE):
        return f"{100 * value:.0f}"
    return f"{value:.0f}" if measure == Measure.L0 else figure(value).removeprefix("0")
