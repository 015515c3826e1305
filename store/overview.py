"""A whole run at a glance: how far its features are labelled and scored, and how its SAEs do.

Everything is read from `current_features`, which is made for that: at a million features each
scan of it costs some 30 ms, so there are few. What the scores look like is in `score_spread.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import duckdb

SCORE_BINS = 20
"""Bins of a score from 0 to 1; those below 0 go on in the same width."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OverviewQuery:
    """Which features an overview is of.

    Attributes:
        sae: an SAE's id, or how it begins.
        site, layer: of the SAE.
        explainer: who wrote the labels that are counted and whose scores are shown.
    """

    sae: str = ""
    site: str = ""
    layer: int | None = None
    explainer: str = ""


@dataclass(frozen=True, slots=True)
class SaeHealth:
    """An SAE and what became of its features.

    Attributes:
        mean_l0: active features per token.
        fvu: fraction of variance unexplained.
        n_alive: features that were active at least once.
        median: of the headlines of its labels in force.
    """

    sae_id: str
    model: str
    site: str
    layer: int
    width: int
    mean_l0: float | None
    fvu: float | None
    n_features: int = 0
    n_alive: int = 0
    n_labelled: int = 0
    n_scored: int = 0
    median: float | None = None

    @property
    def alive(self) -> float | None:
        """The share of its features that were ever active."""
        return self.n_alive / self.n_features if self.n_features else None

    @property
    def labelled(self) -> float | None:
        """The share of the living that have a label."""
        return min(1.0, self.n_labelled / self.n_alive) if self.n_alive else None


@dataclass(frozen=True, slots=True)
class LabelledBy:
    """Labels in force by the same hand.

    Attributes:
        source: `auto`, `human` or `imported`.
        n_scored: of these, how many have a headline that is defined.
        n_stale: how many of the headlines newer text has overtaken.
    """

    source: str
    explainer: str
    n: int
    n_scored: int
    n_stale: int


@dataclass(frozen=True, slots=True)
class Bars:
    """How many labels in force score how high.

    Attributes:
        explainer: who wrote them.
        simulator: who judged them.
        counts: by bin: bin `b` goes from `b / SCORE_BINS` to the next one's start. The last one
            has 1 itself.
    """

    explainer: str
    simulator: str
    counts: Mapping[int, int]

    @property
    def n(self) -> int:
        """How many there are in all."""
        return sum(self.counts.values())


@dataclass(frozen=True, slots=True)
class Coverage:
    """How far the features are labelled and scored, all counted as features.

    Attributes:
        labelled: with a label in force, by whom.
        undefined: with a score that is none, by reason.
        n_unscored: with a label that was not scored yet.
        failures: without a label, because it came to nothing, by reason.
        n_untried: without one though active, and nobody has tried.
        n_silent: without one because they were never active, and so nobody has tried.
    """

    n_features: int = 0
    n_alive: int = 0
    labelled: tuple[LabelledBy, ...] = ()
    undefined: Mapping[str, int] = field(default_factory=dict)
    n_unscored: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)
    n_untried: int = 0
    n_silent: int = 0

    @property
    def n_labelled(self) -> int:
        """Features with a label in force."""
        return sum(each.n for each in self.labelled)

    @property
    def n_scored(self) -> int:
        """Features whose label in force has a headline that is defined."""
        return sum(each.n_scored for each in self.labelled)

    @property
    def n_undefined(self) -> int:
        """Features whose label in force has a headline that is not."""
        return sum(self.undefined.values())

    @property
    def n_failed(self) -> int:
        """Features without a label because it came to nothing."""
        return sum(self.failures.values())

    @property
    def n_stale(self) -> int:
        """Features whose headline newer text has overtaken."""
        return sum(each.n_stale for each in self.labelled)


@dataclass(frozen=True, slots=True)
class Overview:
    """What is known of the features that were asked for.

    Attributes:
        saes: those asked for, by layer.
        all_saes: every SAE of the run, for who wants to ask for another.
        explainers: whose labels are in force for some feature of these SAEs.
        bars: how the scores are spread, those with most first.
    """

    query: OverviewQuery
    saes: tuple[SaeHealth, ...]
    all_saes: tuple[SaeHealth, ...]
    explainers: tuple[str, ...]
    coverage: Coverage
    bars: tuple[Bars, ...]

    @property
    def sae_ids(self) -> tuple[str, ...] | None:
        """The SAEs asked for; None where that is all of them."""
        if len(self.saes) == len(self.all_saes):
            return None
        return tuple(each.sae_id for each in self.saes)


def read_overview(connection: duckdb.DuckDBPyConnection, query: OverviewQuery) -> Overview:
    """How the features stand that are asked for; of what there is not, there are none."""
    every = _saes(connection)
    # The name of one may be how another's begins.
    named = [s for s in every if s.sae_id == query.sae]
    named = named or [s for s in every if s.sae_id.startswith(query.sae)]
    chosen = tuple(sae for sae in named if _is_asked_for(sae, query))
    if not chosen:
        return Overview(query, (), every, (), Coverage(), ())
    where, parameters = among(None if len(chosen) == len(every) else [s.sae_id for s in chosen])
    saes = _health(connection, chosen, query.explainer, where, parameters)
    groups = _groups(connection, where, parameters)
    explainers = tuple(sorted({row.explainer for row in groups}))
    groups = [row for row in groups if query.explainer in ("", row.explainer)]
    coverage = Coverage(
        n_features=sum(sae.n_features for sae in saes),
        n_alive=sum(sae.n_alive for sae in saes),
        labelled=_labelled(groups),
        **_without_score(connection, query.explainer, where, parameters),
    )
    return Overview(query, saes, every, explainers, coverage, _bars(groups))


def among(sae_ids: Sequence[str] | None) -> tuple[str, dict[str, Any]]:
    """The condition that a row is of one of these SAEs, all if None, and its parameters."""
    if sae_ids is None:
        return "true", {}
    if len(sae_ids) == 1:
        # Rows lie in the order of the SAEs: with one to look for, all others are left unread.
        return "sae_id = $sae", {"sae": sae_ids[0]}
    return "sae_id IN (SELECT unnest($saes))", {"saes": list(sae_ids)}


def _is_asked_for(sae: SaeHealth, query: OverviewQuery) -> bool:
    return query.site in ("", sae.site) and query.layer in (None, sae.layer)


def _saes(connection: duckdb.DuckDBPyConnection) -> tuple[SaeHealth, ...]:
    columns = ("sae_id", "model", "site", "layer", "width", "mean_l0", "fvu")
    rows = connection.execute(
        f"SELECT {', '.join(columns)} FROM saes ORDER BY model, layer, site, sae_id"
    ).fetchall()
    return tuple(SaeHealth(**dict(zip(columns, row, strict=True))) for row in rows)


def _health(
    connection: duckdb.DuckDBPyConnection,
    saes: Sequence[SaeHealth],
    explainer: str,
    where: str,
    parameters: dict[str, Any],
) -> tuple[SaeHealth, ...]:
    by, names = ("", {}) if not explainer else ("FILTER (explainer = $by)", {"by": explainer})
    rows = connection.execute(
        f"""
        SELECT sae_id, count(*), count_if(n_active > 0), count(source) {by}, count(score) {by},
            median(score) {by}
        FROM current_features WHERE {where} GROUP BY sae_id
        """,
        {**parameters, **names},
    ).fetchall()
    found = {sae_id: figures for sae_id, *figures in rows}
    return tuple(
        SaeHealth(
            sae.sae_id, sae.model, sae.site, sae.layer, sae.width, sae.mean_l0, sae.fvu,
            *found.get(sae.sae_id, ()),
        )
        for sae in saes
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Group:
    """Labels in force by one hand, judged by one judge, with scores in one bin, or without."""

    source: str
    explainer: str
    simulator: str | None
    score_bin: int | None
    n: int
    n_stale: int


def _groups(
    connection: duckdb.DuckDBPyConnection, where: str, parameters: dict[str, Any]
) -> list[_Group]:
    rows = connection.execute(
        f"""
        SELECT source, explainer, simulator,
            -- `least` alone makes the last bin of no score at all.
            CASE WHEN score IS NOT NULL
                THEN least(floor(score * {SCORE_BINS})::INTEGER, {SCORE_BINS - 1}) END,
            count(*), count(score_stale_since)
        FROM current_features WHERE {where} GROUP BY ALL
        """,
        parameters,
    ).fetchall()
    return [_Group(*row) for row in rows if row[0] is not None]


def _labelled(groups: Sequence[_Group]) -> tuple[LabelledBy, ...]:
    hands: dict[tuple[str, str], list[_Group]] = {}
    for row in groups:
        hands.setdefault((row.source, row.explainer), []).append(row)
    found = [
        LabelledBy(
            *hand,
            sum(row.n for row in rows),
            sum(row.n for row in rows if row.score_bin is not None),
            sum(row.n_stale for row in rows),
        )
        for hand, rows in hands.items()
    ]
    # What people wrote first: it is in force before all else.
    return tuple(sorted(found, key=lambda each: (each.source != "human", -each.n, each.explainer)))


def _bars(groups: Sequence[_Group]) -> tuple[Bars, ...]:
    counts: dict[tuple[str, str], Counter[int]] = {}
    for row in groups:
        if row.simulator is not None and row.score_bin is not None:
            by = counts.setdefault((row.explainer, row.simulator), Counter())
            by[row.score_bin] += row.n
    found = [Bars(*who, dict(of_them)) for who, of_them in counts.items()]
    return tuple(sorted(found, key=lambda bars: (-bars.n, bars.explainer, bars.simulator)))


def _without_score(
    connection: duckdb.DuckDBPyConnection, explainer: str, where: str, parameters: dict[str, Any]
) -> dict[str, Any]:
    rows = connection.execute(
        f"""
        SELECT explainer, score_reason, failure, n_active > 0, count(*)
        FROM current_features WHERE {where} AND score IS NULL
        GROUP BY ALL ORDER BY count(*) DESC, score_reason, failure
        """,
        parameters,
    ).fetchall()
    undefined: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for by, reason, failure, is_alive, n in rows:
        if by is None and not explainer:
            if failure is not None:
                failures[failure] += n
            else:
                kinds["n_untried" if is_alive else "n_silent"] += n
        elif by is not None and explainer in ("", by):
            if reason is not None:
                undefined[reason] += n
            else:
                kinds["n_unscored"] += n
    return {"undefined": dict(undefined), "failures": dict(failures), **kinds}
