"""How headlines are spread: beside what they would be by chance, and by density.

The same numbers as `null_ladder.py` has for a terminal, but from the table `headlines`, which
is read in a tenth of a second where there are a million and a half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .null_ladder import SHUFFLED, LadderRow
from .overview import SCORE_BINS, among
from .records import FeatureId

if TYPE_CHECKING:
    import duckdb

MOST_DOTS = 1500
DENSITY_BINS = 8
"""Bins of a power of ten of the density."""

# Below it a feature fires once in a hundred million tokens, if at all.
_LEAST_DENSITY = 1e-8
# The texts of a million labels are a third of all that there is to read.
_MOST_WITH_TEXT = 100_000


@dataclass(frozen=True, slots=True)
class Dot:
    """A feature by its density and the headline of its label in force.

    Attributes:
        text: of that label; None where there are too many to read them.
    """

    feature_id: FeatureId
    density: float
    score: float
    text: str | None


@dataclass(frozen=True, slots=True)
class Cell:
    """How many features have a density and a score like that.

    Attributes:
        density_bin: from `10 ** (density_bin / DENSITY_BINS)` to the next one's start.
        score_bin: from `score_bin / SCORE_BINS` to the next one's start.
    """

    density_bin: int
    score_bin: int
    n: int


@dataclass(frozen=True, slots=True)
class DensityPlot:
    """Scores against densities.

    Attributes:
        n: features with both.
        cells: all of them, counted.
        dots: all of them, or a sample by hash: the same whenever the features are the same.
    """

    n: int
    cells: tuple[Cell, ...]
    dots: tuple[Dot, ...]

    @property
    def is_sample(self) -> bool:
        """Whether not all of them have a dot."""
        return len(self.dots) < self.n


@dataclass(frozen=True, slots=True)
class WorstRow:
    """A feature whose label in force scores low."""

    feature_id: FeatureId
    text: str
    score: float
    ci_low: float | None
    ci_high: float | None
    null_value: float | None


def read_ladder(
    connection: duckdb.DuckDBPyConnection,
    sae_ids: Sequence[str] | None = None,
    explainer: str = "",
) -> tuple[LadderRow, ...]:
    """A row for each explainer and simulator with scores, as `read_null_ladder` has them.

    Args:
        connection: to a database whose tables `headlines` is up to date.
        sae_ids: whose features; None for all.
        explainer: whose labels; empty for all.
    """
    where, parameters = _scope(sae_ids, explainer)
    rows = connection.execute(
        f"""
        SELECT explainer, simulator, scorer, count(*), count(value),
            quantile_cont(value, [0.5, 0.95]), median(null_value)
        FROM headlines WHERE {where} GROUP BY ALL ORDER BY explainer, simulator
        """,
        parameters,
    ).fetchall()
    own, shuffled = (
        {(row[0], row[1]): row[3:] for row in rows if row[2] == scorer}
        for scorer in ("simulation", SHUFFLED)
    )
    bounds = {who: quantiles[1] for who, (_, n, quantiles, _) in shuffled.items() if n}
    above = _count_above(connection, bounds, where, parameters)
    ladder = []
    for who, (_, n, quantiles, null_median) in own.items():
        if not n:
            continue
        n_shuffled, n_defined, of_shuffled, _ = shuffled.get(who, (0, 0, None, None))
        row = LadderRow(
            *who,
            n,
            quantiles[0],
            null_median,
            n_shuffled,
            n_shuffled - n_defined,
            of_shuffled[0] if n_defined else None,
            above.get(who, 0) if who in bounds else None,
        )
        ladder.append(row)
    return tuple(ladder)


def read_density_plot(
    connection: duckdb.DuckDBPyConnection,
    sae_ids: Sequence[str] | None = None,
    explainer: str = "",
    most: int = MOST_DOTS,
) -> DensityPlot:
    """Scores against densities of features whose label in force is scored.

    Args:
        connection: to the database.
        sae_ids: whose features; None for all.
        explainer: whose labels; empty for all.
        most: how many dots at most.
    """
    where, parameters = _scope(sae_ids, explainer)
    where += " AND score IS NOT NULL AND density > 0"
    rows = connection.execute(
        f"""
        SELECT floor(log10(greatest(density, {_LEAST_DENSITY})) * {DENSITY_BINS})::INTEGER,
            least(floor(score * {SCORE_BINS})::INTEGER, {SCORE_BINS - 1}), count(*)
        FROM current_features WHERE {where} GROUP BY ALL ORDER BY ALL
        """,
        parameters,
    ).fetchall()
    cells = tuple(Cell(*row) for row in rows)
    n = sum(cell.n for cell in cells)
    text = "text" if n <= _MOST_WITH_TEXT else "NULL"
    drawn = connection.execute(
        f"""
        SELECT sae_id, feature, greatest(density, {_LEAST_DENSITY}), score, {text}
        FROM current_features WHERE {where} ORDER BY hash(sae_id, feature) LIMIT {most:d}
        """,
        parameters,
    ).fetchall()
    dots = tuple(Dot(FeatureId(sae_id, number), *rest) for sae_id, number, *rest in drawn)
    return DensityPlot(n, cells, dots)


def read_worst(
    connection: duckdb.DuckDBPyConnection,
    sae_ids: Sequence[str] | None = None,
    explainer: str = "",
    most: int = 8,
) -> tuple[WorstRow, ...]:
    """The features with the lowest scores, the lowest first.

    Args:
        connection: to the database.
        sae_ids: of which SAEs; None for all.
        explainer: whose labels; empty for all.
        most: so many at most.
    """
    where, parameters = _scope(sae_ids, explainer)
    rows = connection.execute(
        f"""
        SELECT sae_id, feature, coalesce(text, ''), score, ci_low, ci_high, null_value
        FROM current_features WHERE {where} AND score IS NOT NULL
        ORDER BY score, sae_id, feature LIMIT {most:d}
        """,
        parameters,
    ).fetchall()
    return tuple(WorstRow(FeatureId(sae_id, number), *rest) for sae_id, number, *rest in rows)


def _scope(sae_ids: Sequence[str] | None, explainer: str) -> tuple[str, dict[str, Any]]:
    where, parameters = among(sae_ids)
    if not explainer:
        return where, parameters
    return f"{where} AND explainer = $explainer", {**parameters, "explainer": explainer}


def _count_above(
    connection: duckdb.DuckDBPyConnection,
    bounds: dict[tuple[str, str], float],
    where: str,
    parameters: dict[str, Any],
) -> dict[tuple[str, str], int]:
    """How many own scores lie above each pair's bound; with a join this takes twice as long."""
    if not bounds:
        return {}
    each = []
    values: dict[str, Any] = {}
    for at, ((explainer, simulator), bound) in enumerate(bounds.items()):
        each.append(f"(explainer = $by_{at} AND simulator = $judge_{at} AND value > $bound_{at})")
        values |= {f"by_{at}": explainer, f"judge_{at}": simulator, f"bound_{at}": bound}
    rows = connection.execute(
        f"""
        SELECT explainer, simulator, count(*) FROM headlines
        WHERE {where} AND scorer = 'simulation' AND ({" OR ".join(each)}) GROUP BY ALL
        """,
        {**parameters, **values},
    ).fetchall()
    return {(explainer, simulator): n for explainer, simulator, n in rows}
