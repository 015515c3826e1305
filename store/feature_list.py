"""Features as a list that is searched, filtered, sorted and paged by the database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from .records import FeatureId
from .unit_names import unit_name

if TYPE_CHECKING:
    import duckdb

PAGE_SIZE = 50
LAST_PAGE = 10_000_000


class Order(StrEnum):
    """What a list is sorted by."""

    FEATURE = "feature"
    SCORE = "score"
    LIFT = "lift"
    DENSITY = "density"
    PEAK = "peak"
    LABEL = "label"
    DISAGREEMENT = "disagreement"
    SAME = "same"
    VOTES = "votes"
    CREATED = "created"


class Labelled(StrEnum):
    """Whose label is in force."""

    ANY = "any"
    YES = "yes"
    NO = "no"
    AUTO = "auto"
    HUMAN = "human"
    IMPORTED = "imported"


class Scored(StrEnum):
    """Whether the label in force has a headline."""

    ANY = "any"
    YES = "yes"
    UNDEFINED = "undefined"
    NO = "no"


class Queue(StrEnum):
    """Features that somebody should look at first, and why."""

    WORST = "worst"
    LIFT = "lift"
    UNLABELLED = "unlabelled"
    DISAGREEING = "disagreeing"
    COLLIDING = "colliding"
    STALE = "stale"


_ORDERS: Mapping[Order, tuple[str, bool]] = {
    # The column, and whether its largest values come first.
    Order.FEATURE: ("place", False),
    Order.SCORE: ("score", True),
    Order.LIFT: ("lift", True),
    Order.DENSITY: ("density", True),
    Order.PEAK: ("max_activation", True),
    Order.LABEL: ("lower(text)", False),
    Order.DISAGREEMENT: ("disagreement", True),
    Order.SAME: ("n_same", True),
    Order.VOTES: ("n_up - n_down", True),
    Order.CREATED: ("created_at", True),
}

_QUEUES: Mapping[Queue, tuple[str, str]] = {
    # What is in it, and in which order.
    Queue.WORST: ("score IS NOT NULL", "score, place"),
    Queue.LIFT: ("lift IS NOT NULL", "lift DESC, place"),
    Queue.UNLABELLED: ("label_id IS NULL AND n_active > 0", "n_active DESC, place"),
    Queue.DISAGREEING: ("disagreement IS NOT NULL", "disagreement DESC, place"),
    # Those of one text stand together.
    Queue.COLLIDING: ("n_same > 0", "n_same DESC, sae_id, lower(trim(text)), place"),
    Queue.STALE: ("score_stale_since IS NOT NULL", "score_stale_since, place"),
}

_SCORED: Mapping[Scored, str] = {
    Scored.YES: "score IS NOT NULL",
    Scored.UNDEFINED: "score IS NULL AND score_reason IS NOT NULL",
    Scored.NO: "label_id IS NOT NULL AND score IS NULL AND score_reason IS NULL",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureQuery:
    """Which features, in which order, and which page of them.

    Attributes:
        text: what the label contains, all words of it, in any case.
        sae: an SAE's id, or how it begins.
        site, layer: of the SAEs.
        explainer: who wrote the label in force.
        reason: why its score is undefined.
        failure: why there is no label.
        failed: only those whose labelling failed.
        min_score, max_score, min_lift, min_density, max_density: limits, inclusive.
        queue: those of this queue only, in its order unless another is asked for.
        reverse: the other way round.
        page: from 1.
    """

    text: str = ""
    sae: str = ""
    site: str = ""
    layer: int | None = None
    explainer: str = ""
    labelled: Labelled = Labelled.ANY
    scored: Scored = Scored.ANY
    reason: str = ""
    failure: str = ""
    failed: bool = False
    min_score: float | None = None
    max_score: float | None = None
    min_lift: float | None = None
    min_density: float | None = None
    max_density: float | None = None
    min_disagreement: float | None = None
    queue: Queue | None = None
    order: Order | None = None
    reverse: bool = False
    page: int = 1


@dataclass(frozen=True, slots=True)
class FeatureRow:
    """A feature as lists show it; what is in force, and what it was scored.

    Attributes:
        label_id: None where no label is in force; `failure` may then say why.
        disagreement: between scorers, 0 to 1; see `current_features` in the schema.
        n_same: other features of the SAE whose label says the same.
    """

    sae_id: str
    feature: int
    n_active: int
    density: float
    max_activation: float | None
    label_id: str | None
    text: str | None
    explainer: str | None
    model: str | None
    source: str | None
    author: str | None
    created_at: datetime | None
    simulator: str | None
    score: float | None
    score_reason: str | None
    ci_low: float | None
    ci_high: float | None
    null_value: float | None
    lift: float | None
    lift_ci_low: float | None
    lift_ci_high: float | None
    score_stale_since: datetime | None
    disagreement: float | None
    n_labels: int
    n_failed: int
    failure: str | None
    n_up: int
    n_down: int
    n_same: int

    @property
    def feature_id(self) -> FeatureId:
        """Its id."""
        return FeatureId(self.sae_id, self.feature)

    @property
    def name(self) -> str:
        """What people call it within its SAE."""
        return unit_name(self.sae_id, self.feature)


@dataclass(frozen=True, slots=True)
class FeatureList:
    """A page of a list.

    Attributes:
        n: how many features the whole list has.
        n_pages: at least 1.
    """

    query: FeatureQuery
    n: int
    n_pages: int
    rows: tuple[FeatureRow, ...]


def read_feature_list(connection: duckdb.DuckDBPyConnection, query: FeatureQuery) -> FeatureList:
    """The page of features that a query asks for."""
    where, parameters = conditions(query)
    ((n,),) = connection.execute(
        f"SELECT count(*) FROM current_features WHERE {where}", parameters
    ).fetchall()
    n_pages = max(1, -(-n // PAGE_SIZE))
    # First which, then what: sorted with all their columns, a million rows take ten times as long.
    places = connection.execute(
        f"SELECT place FROM current_features WHERE {where} "
        f"ORDER BY {_order_by(query)} LIMIT {PAGE_SIZE} OFFSET {PAGE_SIZE * (query.page - 1)}",
        parameters,
    ).fetchall()
    found = read_rows_at(connection, [place for (place,) in places])
    return FeatureList(query, n, n_pages, tuple(found.values()))


def read_rows_at(
    connection: duckdb.DuckDBPyConnection, places: Sequence[int]
) -> dict[int, FeatureRow]:
    """Features by their places in `current_features`, in the order of these."""
    columns = ", ".join(field.name for field in fields(FeatureRow))
    found = connection.execute(
        f"SELECT place, {columns} FROM current_features WHERE place IN (SELECT unnest($places))",
        {"places": list(places)},
    ).fetchall()
    rows = {place: FeatureRow(*row) for place, *row in found}
    return {place: rows[place] for place in places}


def read_feature_row(
    connection: duckdb.DuckDBPyConnection, feature_id: FeatureId
) -> FeatureRow | None:
    """One feature as lists show it; None if there is none."""
    columns = ", ".join(field.name for field in fields(FeatureRow))
    rows = connection.execute(
        f"SELECT {columns} FROM current_features WHERE sae_id = $1 AND feature = $2",
        [feature_id.sae_id, feature_id.feature],
    ).fetchall()
    return FeatureRow(*rows[0]) if rows else None


@dataclass(frozen=True, slots=True)
class Choices:
    """What lists can be filtered by."""

    sae_ids: tuple[str, ...]
    explainers: tuple[str, ...]


def read_choices(connection: duckdb.DuckDBPyConnection) -> Choices:
    """The SAEs there are, and who wrote labels that are in force."""
    saes = connection.execute("SELECT sae_id FROM saes ORDER BY layer, sae_id").fetchall()
    explainers = connection.execute(
        "SELECT DISTINCT explainer FROM current_features WHERE explainer IS NOT NULL ORDER BY ALL"
    ).fetchall()
    return Choices(tuple(each for (each,) in saes), tuple(each for (each,) in explainers))


def count_queues(connection: duckdb.DuckDBPyConnection) -> dict[Queue, int]:
    """How many features are in each queue."""
    counts = ", ".join(f"count(*) FILTER ({where})" for where, _ in _QUEUES.values())
    ((*found,),) = connection.execute(f"SELECT {counts} FROM current_features").fetchall()
    return dict(zip(_QUEUES, found, strict=True))


@dataclass(frozen=True, slots=True)
class ChosenLabels:
    """The labels in force that filters let through, as a query of its own.

    Attributes:
        sql: gives `place`, `label_id` and `score`.
        parameters: of that query.
    """

    sql: str
    parameters: Mapping[str, Any]

    @classmethod
    def by(cls, filters: FeatureQuery) -> ChosenLabels:
        """Those of these features; what lists are searched for and sorted by does not count."""
        where, parameters = conditions(replace(filters, text=""))
        rows = f"FROM current_features WHERE label_id IS NOT NULL AND {where}"
        return cls(f"SELECT place, label_id, score {rows}", parameters)

    def count(self, connection: duckdb.DuckDBPyConnection) -> int:
        """How many they are."""
        query = f"SELECT count(*) FROM ({self.sql})"
        ((n,),) = connection.execute(query, dict(self.parameters)).fetchall()
        return int(n)


def conditions(query: FeatureQuery) -> tuple[str, dict[str, Any]]:
    """The condition on rows of `current_features`, and its parameters."""
    clauses: list[str] = []
    parameters: dict[str, Any] = {}

    def require(clause: str, **values: Any) -> None:
        clauses.append(clause)
        parameters.update(values)

    for number, word in enumerate(query.text.split()):
        name = f"word_{number}"
        require(f"contains(lower(text), lower(${name}))", **{name: word})
    if query.sae:
        require("(sae_id = $sae OR starts_with(sae_id, $sae))", sae=query.sae)
    if query.explainer:
        require("explainer = $explainer", explainer=query.explainer)
    match query.labelled:
        case Labelled.ANY:
            pass
        case Labelled.YES:
            require("label_id IS NOT NULL")
        case Labelled.NO:
            require("label_id IS NULL")
        case source:
            require("source = $source", source=str(source))
    if query.site:
        require("sae_id IN (SELECT sae_id FROM saes WHERE site = $site)", site=query.site)
    if query.layer is not None:
        require("sae_id IN (SELECT sae_id FROM saes WHERE layer = $layer)", layer=query.layer)
    if query.scored != Scored.ANY:
        require(_SCORED[query.scored])
    if query.reason:
        require("score IS NULL AND score_reason = $reason", reason=query.reason)
    if query.failure:
        require("failure = $failure", failure=query.failure)
    if query.failed:
        require("failure IS NOT NULL")
    limits: Sequence[tuple[str, str, float | None]] = (
        ("score >=", "min_score", query.min_score),
        ("score <=", "max_score", query.max_score),
        ("lift >=", "min_lift", query.min_lift),
        ("density >=", "min_density", query.min_density),
        ("density <=", "max_density", query.max_density),
        ("disagreement >=", "min_disagreement", query.min_disagreement),
    )
    for comparison, name, value in limits:
        if value is not None:
            require(f"{comparison} ${name}", **{name: value})
    if query.queue is not None:
        require(_QUEUES[query.queue][0])
    return " AND ".join(clauses) or "true", parameters


def _order_by(query: FeatureQuery) -> str:
    if query.order is None and query.queue is not None and not query.reverse:
        return _QUEUES[query.queue][1]
    column, is_falling = _ORDERS[query.order or Order.FEATURE]
    direction = "DESC" if is_falling != query.reverse else "ASC"
    return f"{column} {direction} NULLS LAST, place"
