"""What all pages have in common: what they are asked with, and how errors are shown."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from jinja2 import Environment
from starlette.exceptions import HTTPException

from ... import __version__
from ...store.errors import ScopenoteError, UserMistake
from .page_templates import make_environment
from .reader import Reader
from .site import Site

if TYPE_CHECKING:
    import duckdb


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
    page = _templates().get_template(template)
    shared = {
        "site": site,
        "run_name": site.run.resolve().name,
        "version": __version__,
        "path": request.url.path,
        "query": dict(request.query_params),
    }
    return HTMLResponse(page.render({**shared, **content}), status_code=status)


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
def _templates() -> Environment:
    return make_environment()
