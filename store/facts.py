"""Facts of a database, by name in its table `meta`; and all of a change or none of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

# The fact that changes with every absorption.
REVISION = "revision"


def get_meta(connection: duckdb.DuckDBPyConnection, key: str) -> str | None:
    """A fact of the database, or None."""
    # `fetchall`: a result that is not read to its end blocks the connection.
    rows = connection.execute("SELECT value FROM meta WHERE key = ?", [key]).fetchall()
    return rows[0][0] if rows else None


def set_meta(connection: duckdb.DuckDBPyConnection, key: str, value: str) -> None:
    """Writes a fact of the database."""
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", [key, value])


@contextmanager
def transaction(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """All of it, or none."""
    connection.execute("BEGIN")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
