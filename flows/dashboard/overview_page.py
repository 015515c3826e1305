"""The overview: a whole run's label quality at a glance, and the way to what is worst."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ...store.null_ladder import LadderRow
from ...store.overview import Overview, OverviewQuery, read_overview
from ...store.runs import read_runs
from ...store.score_spread import DensityPlot, WorstRow, read_density_plot, read_ladder, read_worst
from .health_grid import Measure, lay_out_health
from .list_page import ListQuery
from .overview_charts import density_chart, score_charts
from .page_templates import with_query
from .pages import Connection, reader_of, render, site_of
from .recent import Recent
from .runs_page import RunLine, run_line

if TYPE_CHECKING:
    import duckdb

router = APIRouter()

_RUNS = 5
# A feature that was active at all is so on more tokens than this share of them.
_ALIVE = 1e-12
_EMPTY = BeforeValidator(lambda value: None if value == "" else value)


class OverviewFilters(BaseModel):
    """What the overview's address may ask for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sae: Annotated[str, Field(max_length=200)] = ""
    site: Annotated[str, Field(max_length=40)] = ""
    layer: Annotated[int | None, Field(ge=0, le=10_000), _EMPTY] = None
    explainer: Annotated[str, Field(max_length=100)] = ""
    show: Annotated[Measure | None, _EMPTY] = None

    def as_query(self) -> OverviewQuery:
        """For the store."""
        return OverviewQuery(**self.model_dump(exclude={"show"}))


class Lack(StrEnum):
    """What a run, or what is asked for of it, does not have."""

    TEXT = "text"
    MATCH = "match"
    LABELS = "labels"
    SCORES = "scores"


@dataclass(frozen=True, slots=True)
class OverviewContent:
    """All that the page shows, as read."""

    overview: Overview
    ladder: tuple[LadderRow, ...]
    plot: DensityPlot | None
    worst: tuple[WorstRow, ...]
    runs: tuple[RunLine, ...]

    @property
    def lack(self) -> Lack | None:
        """The first thing that is not there."""
        coverage = self.overview.coverage
        if not self.overview.all_saes:
            return Lack.TEXT
        if not self.overview.saes:
            return Lack.MATCH
        if not coverage.n_labelled:
            return Lack.MATCH if self.overview.explainers else Lack.LABELS
        return None if coverage.n_scored else Lack.SCORES


class KeptOverviews:
    """What was read and shown of a state: of a million features that takes a third of a second.

    A page is the same for everybody, and a megabyte at most.
    """

    def __init__(self) -> None:
        """Of nothing yet."""
        self.contents: Recent[OverviewContent] = Recent(8)
        self.pages: Recent[bytes | memoryview] = Recent(16)


@router.get("/")
def overview(
    request: Request, connection: Connection, asked: Annotated[OverviewFilters, Query()]
) -> HTMLResponse:
    """The overview of what is asked for."""
    kept = reader_of(request).remember("overviews", connection, lambda _: KeptOverviews())
    query = asked.as_query()

    def page() -> bytes | memoryview:
        content = kept.contents.get(query, lambda: _read(connection, query))
        return _render(request, asked, content).body

    return HTMLResponse(kept.pages.get(asked, page))


def _render(request: Request, asked: OverviewFilters, content: OverviewContent) -> HTMLResponse:
    found = content.overview
    return render(
        request,
        "overview.html",
        title="Overview",
        asked=asked,
        links=Links(asked, found),
        content=content,
        found=found,
        coverage=found.coverage,
        charts=score_charts(found.bars, content.ladder),
        density=None if content.plot is None else density_chart(content.plot),
        health=lay_out_health(found.saes, asked.show, has_scores=found.coverage.n_scored > 0),
        run_command=shlex.quote(str(site_of(request).run)),
        alive=_ALIVE,
    )


def _read(connection: duckdb.DuckDBPyConnection, query: OverviewQuery) -> OverviewContent:
    found = read_overview(connection, query)
    runs = tuple(run_line(record) for record in read_runs(connection, _RUNS))
    if not found.coverage.n_scored:
        return OverviewContent(found, (), None, (), runs)
    which = (found.sae_ids, query.explainer)
    return OverviewContent(
        found,
        read_ladder(connection, *which),
        read_density_plot(connection, *which),
        read_worst(connection, *which),
        runs,
    )


@dataclass(frozen=True, slots=True)
class Links:
    """Addresses of what the overview leads to, with its own filters kept."""

    asked: OverviewFilters
    found: Overview

    def overview(self, **changes: Any) -> str:
        """The overview with other filters."""
        now = self.asked.model_dump(mode="json")
        return with_query("/", {**now, **changes})

    def features(self, **filters: Any) -> str | None:
        """The list of these features; None where the list has no such filter.

        Args:
            filters: as the list's address has them; `explainer` is that of the overview unless
                another is given, and None for whoever wrote them.
        """
        filters = {"explainer": self.asked.explainer, **self._scope(), **filters}
        given = {name: value for name, value in filters.items() if value not in (None, "")}
        if not given.keys() <= ListQuery.model_fields.keys():
            return None
        return with_query("/features", given)

    def _scope(self) -> dict[str, Any]:
        saes = self.found.sae_ids
        if saes is None:
            return {}
        if len(saes) == 1:
            return {"sae": saes[0]}
        return {"sae": self.asked.sae, "site": self.asked.site, "layer": self.asked.layer}
