"""What all pages have in common: templates, words in them, and how errors are shown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from starlette.exceptions import HTTPException

from ... import __version__
from ...store.errors import ScopenoteError, UserMistake
from ...store.records import FeatureId
from ...store.unit_names import unit_name
from ..progress import duration
from ..show_feature import figure, interval, percentage
from ..visible_text import visible
from .reader import Reader
from .site import Site

if TYPE_CHECKING:
    import duckdb

TEMPLATES = Path(__file__).parent / "templates"


def site_of(request: Request) -> Site:
    """What is served."""
    found: Site = request.app.state.site
    return found


def reader_of(request: Request) -> Reader:
    """What opens the run for requests."""
    found: Reader = request.app.state.reader
    return found


def _connected(request: Request) -> Iterator[duckdb.DuckDBPyConnection]:
    with reader_of(request).connection() as connection:
        yield connection


if TYPE_CHECKING:
    Connection = Annotated[duckdb.DuckDBPyConnection, Depends(_connected)]
else:
    Connection = Annotated[Any, Depends(_connected)]
"""A connection to the run as it is published now, for one request."""


def render(request: Request, template: str, *, status: int = 200, **content: Any) -> HTMLResponse:
    """A page of a template."""
    site = site_of(request)
    page = _environment().get_template(template)
    shared = {
        "site": site,
        "run_name": site.run.resolve().name,
        "version": __version__,
        "path": request.url.path,
        "query": dict(request.query_params),
    }
    return HTMLResponse(page.render({**shared, **content}), status_code=status)


def feature_path(feature_id: FeatureId) -> str:
    """The address of a feature's page: its id, as Neuronpedia's is."""
    name = unit_name(feature_id.sae_id, feature_id.feature)
    return "/" + quote(f"{feature_id.sae_id}/{name}", safe="/+")


def with_query(path: str, query: Mapping[str, Any]) -> str:
    """An address with these parameters, those without a value left out."""
    given = {
        # A limit of 0 is a value, though it equals False.
        name: value
        for name, value in query.items()
        if value is not None and value is not False and value != ""
    }
    return f"{path}?{urlencode(given)}" if given else path


def is_api(request: Request) -> bool:
    """Whether a program asks, who wants JSON also where it went wrong."""
    return request.url.path.startswith("/api/")


async def show_error(request: Request, error: Exception) -> Response:
    """An error as a page, or as JSON for programs."""
    status, what, found, expected, mend = _described(error)
    if is_api(request):
        content = {"error": what, "found": found, "expected": expected, "mend": mend}
        return JSONResponse(content, status_code=status)
    words = {"what": what, "found": found, "expected": expected, "mend": mend}
    title = HTTPStatus(status).phrase
    return render(request, "error.html", status=status, title=title, error=words)


def _described(error: Exception) -> tuple[int, str, str | None, str | None, str | None]:
    if isinstance(error, UserMistake):
        return 404, error.what, error.found, error.expected, error.mend
    if isinstance(error, ScopenoteError):
        return 503, error.what, error.found or error.where, error.expected, error.mend
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where = " ".join(map(str, first["loc"][1:]))
        return (
            422,
            f"The address asks for something that there is not: {where}.",
            str(first.get("input"))[:200],
            first["msg"],
            None,
        )
    if isinstance(error, HTTPException):
        return error.status_code, str(error.detail), None, None, None
    raise error


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        figure=figure,
        share=percentage,
        visible=visible,
        moment=moment,
        count=lambda n: "–" if n is None else f"{n:,}",
        feature_path=feature_path,
        duration=duration,
        short=short,
    )
    environment.globals.update(interval=interval, with_query=with_query)
    return environment


def moment(when: datetime | None) -> str:
    """A time, to the minute, in UTC: who reads may sit anywhere."""
    return "–" if when is None else f"{when.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def short(value: float | None) -> str:
    """A number of any size with three digits that count."""
    if value is None:
        return "–"
    if value == 0 or 0.001 <= abs(value) < 10_000:
        digits = 0 if abs(value) >= 1000 else max(0, 2 - math.floor(math.log10(abs(value) or 1)))
        return f"{value:,.{min(digits, 4)}f}".replace("-", "−")
    return f"{value:.2g}".replace("-", "−")
