"""The same data as JSON, for programs. Reads only."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field

from ...store.feature_list import Queue, count_queues, read_feature_list
from ...store.feature_page import find_feature, read_feature_page
from ...store.label_scores import read_label_scores
from ...store.neuronpedia_shape import neuronpedia_feature
from ...store.null_ladder import LadderRow
from ...store.overview import Bars, Coverage, OverviewQuery, SaeHealth, read_overview
from ...store.runs import read_runs
from ...store.score_spread import read_ladder
from .list_page import ListQuery
from .pages import Connection

router = APIRouter(prefix="/api")


class Mistake(BaseModel):
    """What is wrong with a request, and how to mend it."""

    error: str
    found: str | None
    expected: str | None
    mend: str | None


class Feature(BaseModel):
    """A feature as lists have it: statistics, the label in force, and what that was scored.

    Undefined figures are null; `score_reason` and `failure` say why.
    """

    id: str = Field(description="{model}/{source}/{index}, as on Neuronpedia.")
    sae_id: str
    index: str
    n_active: int = Field(description="Tokens on which it is active.")
    density: float = Field(description="The share of tokens on which it is active.")
    max_activation: float | None
    label_id: str | None
    label: str | None
    explainer: str | None
    model: str | None
    source: str | None = Field(description="auto, human or imported.")
    author: str | None
    created_at: datetime | None
    simulator: str | None
    score: float | None = Field(
        description="Correlation of simulated and true activations on `score`."
    )
    score_reason: str | None
    ci_low: float | None
    ci_high: float | None
    null_value: float | None = Field(description="The token lookup's score, on the same windows.")
    lift: float | None
    lift_ci_low: float | None
    lift_ci_high: float | None
    score_stale_since: datetime | None
    disagreement: float | None = Field(description="Between scorers, 0 to 1.")
    n_labels: int
    n_failed: int
    failure: str | None
    n_up: int
    n_down: int
    n_same: int = Field(description="Other features of the SAE whose label says the same.")


class Features(BaseModel):
    """A page of a list."""

    n: int
    page: int
    n_pages: int
    features: list[Feature]


class Quality(BaseModel):
    """A run's labels at a glance: what is covered, the SAEs, and where the scores stand."""

    coverage: Coverage
    saes: tuple[SaeHealth, ...]
    bars: tuple[Bars, ...] = Field(description="Scores of labels in force, by twentieths.")
    ladder: tuple[LadderRow, ...] = Field(description="Scores beside the null's and shuffled ones.")


class Run(BaseModel):
    """One invocation that worked on the run's folder."""

    run_id: str
    command: str | None
    status: str | None
    version: str | None
    started_at: datetime | None
    finished_at: datetime | None
    stages: list[dict[str, Any]] = Field(description="What it did, stage by stage.")
    report: dict[str, Any] | None = Field(description="What it changed; null while it runs.")


_MISTAKES: dict[int | str, dict[str, Any]] = {
    422: {"model": Mistake, "description": "No such parameter, or not such a value."},
    503: {"model": Mistake, "description": "The database cannot be read now."},
}
_NOT_FOUND: dict[int | str, dict[str, Any]] = {
    404: {"model": Mistake, "description": "There is no such feature."}
}
_Name = Annotated[str, Path(min_length=1, max_length=200)]


@router.get("/features", responses=_MISTAKES)
def features(connection: Connection, asked: Annotated[ListQuery, Query()]) -> Features:
    """Features: searched, filtered, sorted, 50 a page."""
    found = read_feature_list(connection, asked.as_query())
    return Features(
        n=found.n,
        page=asked.page,
        n_pages=found.n_pages,
        features=[
            Feature(
                id=str(row.feature_id),
                index=row.name,
                label=row.text,
                **{name: getattr(row, name) for name in Feature.model_fields if hasattr(row, name)},
            )
            for row in found.rows
        ],
    )


@router.get("/queues", responses=_MISTAKES)
def queues(connection: Connection) -> Mapping[Queue, int]:
    """How many features wait in each queue of those to look at first."""
    return count_queues(connection)


@router.get("/feature/{model}/{layer}/{index}", responses={**_MISTAKES, **_NOT_FOUND})
def feature(
    connection: Connection,
    model: _Name,
    layer: Annotated[str, Path(min_length=1, max_length=200, description="The source.")],
    index: _Name,
    split: Literal["explain", "select", "score"] = "explain",
    kind: Literal["top", "sample"] = "top",
    n: Annotated[int, Query(ge=0, le=200, description="How many contexts.")] = 20,
) -> dict[str, Any]:
    """A feature with contexts and labels, in the shape of Neuronpedia's API."""
    feature_id = find_feature(connection, f"{model}/{layer}/{index}")
    page = read_feature_page(connection, feature_id, split, kind, n)
    labels = [*([page.label] if page.label else []), *page.other_labels]
    scores = read_label_scores(connection, [each.label_id for each in labels])
    return neuronpedia_feature(page, scores)


@router.get("/overview", responses=_MISTAKES)
def overview(
    connection: Connection,
    sae: Annotated[str, Query(max_length=200)] = "",
    site: Annotated[str, Query(max_length=40)] = "",
    layer: Annotated[int | None, Query(ge=0, le=10_000)] = None,
    explainer: Annotated[str, Query(max_length=100)] = "",
) -> Quality:
    """How much is labelled and scored, and how well, of all features or of some SAEs."""
    query = OverviewQuery(sae=sae, site=site, layer=layer, explainer=explainer)
    found = read_overview(connection, query)
    return Quality(
        coverage=found.coverage,
        saes=found.saes,
        bars=found.bars,
        ladder=read_ladder(connection, found.sae_ids, explainer) if found.saes else (),
    )


@router.get("/runs", responses=_MISTAKES)
def runs(
    connection: Connection, n: Annotated[int, Query(ge=1, le=1000, description="How many.")] = 20
) -> list[Run]:
    """The invocations that worked on the run, the latest first."""
    found = read_runs(connection, n)
    return [
        Run(
            run_id=each.run_id,
            command=each.command,
            status=each.status,
            version=each.version,
            started_at=each.started_at,
            finished_at=each.finished_at,
            stages=list(each.stages),
            report=None if each.summary is None else each.summary.as_dict(),
        )
        for each in found
    ]
