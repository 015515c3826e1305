"""The list of features: searched, filtered, sorted, and the queues of those to look at first."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...store.feature_list import (
    LAST_PAGE,
    FeatureQuery,
    Labelled,
    Order,
    Queue,
    Scored,
    count_queues,
    read_choices,
    read_feature_list,
)
from .pages import Connection, reader_of, render

router = APIRouter()


_Limit = Annotated[float | None, Field(ge=-1e9, le=1e9, allow_inf_nan=False)]


class ListQuery(BaseModel):
    """What a list's address may ask for."""

    model_config = ConfigDict(extra="forbid")

    q: Annotated[str, Field(max_length=200)] = ""
    sae: Annotated[str, Field(max_length=200)] = ""
    site: Annotated[str, Field(max_length=50)] = ""
    layer: Annotated[int | None, Field(ge=0, le=10_000)] = None
    explainer: Annotated[str, Field(max_length=100)] = ""
    labelled: Labelled = Labelled.ANY
    scored: Scored = Scored.ANY
    reason: Annotated[str, Field(max_length=300)] = ""
    failure: Annotated[str, Field(max_length=300)] = ""
    failed: bool = False
    min_score: _Limit = None
    max_score: _Limit = None
    min_lift: _Limit = None
    min_density: _Limit = None
    max_density: _Limit = None
    min_disagreement: _Limit = None
    queue: Queue | None = None
    sort: Order | None = None
    reverse: bool = False
    page: Annotated[int, Field(ge=1, le=LAST_PAGE)] = 1

    def as_query(self) -> FeatureQuery:
        """For the store."""
        values = self.model_dump(exclude={"q", "sort"})
        return FeatureQuery(text=self.q, order=self.sort, **values)


class FormQuery(ListQuery):
    """The same as a form sends it: a field that was left empty asks for nothing."""

    @model_validator(mode="before")
    @classmethod
    def _leave_out_empty(cls, given: Any) -> Any:
        if isinstance(given, dict):
            return {name: value for name, value in given.items() if value != ""}
        return given


@router.get("/features")
def features(
    request: Request, connection: Connection, asked: Annotated[FormQuery, Query()]
) -> HTMLResponse:
    """A page of features."""
    found = read_feature_list(connection, asked.as_query())
    reader = reader_of(request)
    return render(
        request,
        "features.html",
        title="Features",
        found=found,
        asked=asked,
        queues=reader.remember("queues", connection, count_queues),
        choices=reader.remember("choices", connection, read_choices),
    )
