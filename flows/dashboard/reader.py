"""The published database for many requests: opened once, and again when another lies there."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from ...store.database import INBOX, PUBLISHED, Store, open_store
from ...store.errors import StoreError
from ...store.inbox import inbox_names

if TYPE_CHECKING:
    import duckdb


T = TypeVar("T")
_MEMORY = "2GB"


class _Opened:
    """A state of the run, open as long as anybody reads it."""

    def __init__(self, store: Store, state: tuple[object, ...]) -> None:
        self.store = store
        self.state = state
        self.n_readers = 0
        self.is_past = False
        self.remembered: dict[str, object] = {}

    def close_if_done(self) -> None:
        if self.is_past and not self.n_readers:
            self.store.close()


class Reader:
    """Gives each request a connection to the run as it is now; threads may share it."""

    def __init__(self, run: Path) -> None:
        """Reads the run in this folder; opens nothing yet."""
        self.run = run
        self._lock = threading.Lock()
        self._opened: _Opened | None = None
        self._read_by: dict[int, _Opened] = {}

    @contextmanager
    def connection(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection of one's own to the newest published state, what lies in the inbox with it.

        Raises:
            StoreError: there is no database, it is damaged, or an older version published it.
            NewerDatabase: a newer version of Scopenote made it.
        """
        with self._lock:
            opened = self._newest()
            opened.n_readers += 1
        try:
            with opened.store.cursor() as connection:
                self._read_by[id(connection)] = opened
                try:
                    yield connection
                finally:
                    del self._read_by[id(connection)]
        finally:
            with self._lock:
                opened.n_readers -= 1
                opened.close_if_done()

    def remember(
        self, what: str, connection: duckdb.DuckDBPyConnection, read: Callable[..., T]
    ) -> T:
        """What is read from the state of a connection, which is asked once for all of that state.

        Args:
            what: a name of it.
            connection: that this reader gave.
            read: takes the connection.
        """
        opened = self._read_by[id(connection)]
        if what not in opened.remembered:
            # Two requests may work it out at once: that does no harm.
            opened.remembered[what] = read(connection)
        return cast(T, opened.remembered[what])

    def close(self) -> None:
        """Lets the database go as soon as the last request has ended."""
        with self._lock:
            if self._opened is not None:
                self._opened.is_past = True
                self._opened.close_if_done()
            self._opened = None

    def _newest(self) -> _Opened:
        # Before it is opened: what changes meanwhile is seen by the next request.
        state = self._state()
        if self._opened is None or self._opened.state != state:
            store = open_store(self.run)
            if store.is_older:
                store.close()
                raise StoreError(
                    "An older version of Scopenote published this run, and somebody is at work "
                    "on it.",
                    where=str(self.run),
                    mend="wait until that has ended, then start the dashboard again",
                )
            if self._opened is not None:
                self._opened.is_past = True
                self._opened.close_if_done()
            # Sorting a million features takes a tenth of it; the rest keeps what was read.
            store.connection.execute(f"SET memory_limit = '{_MEMORY}'")
            store.connection.execute("SET temp_directory = $1", [tempfile.gettempdir()])
            self._opened = _Opened(store, state)
        return self._opened

    def _state(self) -> tuple[object, ...]:
        file = self.run / PUBLISHED
        try:
            found = os.stat(file)
        except FileNotFoundError:
            return (None,)
        names = tuple(inbox_names(self.run / INBOX))
        return (found.st_ino, found.st_mtime_ns, found.st_size, names)
