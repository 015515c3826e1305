"""The dashboard as an application: pages for people, and the same data as JSON for programs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from ... import __version__
from ...store.errors import ScopenoteError
from . import api, feature_forms, feature_view, list_page, overview_page, runs_page, try_page
from .guard import Guard
from .pages import show_error
from .reader import Reader
from .site import Site
from .tried_model import TriedModel

_STATIC = Path(__file__).parent / "static"


def create_app(site: Site) -> FastAPI:
    """The dashboard of a run; opens nothing until it is asked."""

    @asynccontextmanager
    async def closing(app: FastAPI) -> AsyncIterator[None]:
        yield
        app.state.reader.close()

    app = FastAPI(
        title="Scopenote",
        summary="Features of a run, their labels, and how far to trust them.",
        version=__version__,
        openapi_url="/api/openapi.json",
        # Their pages load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        lifespan=closing,
    )
    app.state.site = site
    app.state.reader = Reader(site.run)
    app.state.tried_model = TriedModel(site.run)
    app.add_middleware(Guard, site=site)
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")
    for kind in (ScopenoteError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, show_error)
    app.include_router(api.router)
    app.include_router(list_page.router, include_in_schema=False)
    app.include_router(try_page.router, include_in_schema=False)
    app.include_router(overview_page.router, include_in_schema=False)
    app.include_router(runs_page.router, include_in_schema=False)
    # Last: any three words are an address of theirs.
    app.include_router(feature_forms.router, include_in_schema=False)
    app.include_router(feature_view.router, include_in_schema=False)
    return app
