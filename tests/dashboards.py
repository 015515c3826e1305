"""A dashboard over made-up rows, as a test client asks it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
from fastapi.testclient import TestClient
from scopenote.flows.config import demo_config
from scopenote.flows.dashboard.app import create_app
from scopenote.flows.dashboard.site import Site
from scopenote.store.database import open_work, publish
from scopenote.store.run_folder import RunFolder

from .made_up_run import make_database

HOME = "http://localhost"


def make_run(folder: Path, *statements: str) -> Path:
    """A run's folder with the made-up rows, changed by these statements, published."""
    run = RunFolder(folder).create()
    run.write_config(demo_config().to_toml())
    make_database(run.work_database).close()
    with open_work(folder) as work:
        work.execute("INSERT OR REPLACE INTO meta VALUES ('revision', 'made up')")
        for statement in statements:
            work.execute(statement)
        publish(work, folder)
    return folder


def client(run: Path, **site: Any) -> TestClient:
    """Asks a dashboard of this run; does not go where it is sent."""
    return TestClient(create_app(Site(run, **site)), base_url=HOME, follow_redirects=False)


def rows(run: Path, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(run / "scopenote.duckdb"), read_only=True) as connection:
        return connection.execute(query).fetchall()
