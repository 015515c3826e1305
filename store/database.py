"""The database: one writer's working copy, and the published copy that everyone reads.

DuckDB lets one process write *or* many read. So the coordinator writes `work.duckdb` and,
after each batch, publishes it: checkpoint, copy, rename onto `scopenote.duckdb`. A reader keeps
the copy it opened; the next one it opens is newer and just as whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import duckdb

from .current_features import refresh_current_features
from .errors import NewerDatabase, StoreError, UserMistake
from .facts import REVISION, get_meta, set_meta, transaction
from .inbox import InboxFile, read_inbox
from .inbox_rows import lay_over, use_catalogs
from .schema import MIGRATIONS, SCHEMA_VERSION
from .text_ranking import labels_that_match
from .unit_names import unit_name, unit_number

PUBLISHED = "scopenote.duckdb"
WORK = "work.duckdb"
INBOX = "inbox"

# What a published copy has in common with the working one.
_STATE = (REVISION, "schema_version")
# What the published copy is called in queries, as if it had been opened by itself.
_CATALOG = "scopenote"


class Store:
    """A read-only view of a run: tables as DuckDB relations (`.df()`, `.pl()`, `.arrow()`).

    Use it as a context manager, or call `close`.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, catalogs: Sequence[str] = ()) -> None:
        self._connection: duckdb.DuckDBPyConnection | None = connection
        self._catalogs = catalogs

    @property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """For queries.

        Raises:
            StoreError: the store was closed.
        """
        if self._connection is None:
            raise StoreError("This store is closed.", mend="open it again")
        return self._connection

    @property
    def is_older(self) -> bool:
        """Whether it was published by an older version, whose tables lack columns."""
        return int(get_meta(self.connection, "schema_version") or 0) < SCHEMA_VERSION

    def labels(self) -> duckdb.DuckDBPyRelation:
        """The label in force of each labelled feature, with its headline score."""
        return self.connection.sql("SELECT * FROM current_labels ORDER BY sae_id, feature")

    def scores(self) -> duckdb.DuckDBPyRelation:
        """Every score of every label, with the feature and the label's text."""
        return self.connection.sql(
            """
            SELECT l.sae_id, l.feature, l.text, l.explainer, s.*
            FROM scores s JOIN labels l USING (label_id)
            ORDER BY l.sae_id, l.feature, s.label_id, s.scorer, s.simulator, s.metric, s.split
            """
        )

    def contexts(self, sae: str, feature: int | str) -> duckdb.DuckDBPyRelation:
        """One feature's kept windows with their tokens as text.

        `tokens` and `prefix` are lists of strings; `positions` points into `tokens`, from 0.

        Args:
            sae: its id.
            feature: its number, or what people call it, as `1393+` in a neuron basis.

        Raises:
            UserMistake: this SAE's features are not called so.
        """
        number = unit_number(sae, feature) if isinstance(feature, str) else feature
        if number is None:
            raise UserMistake(
                "This is not a feature's name.",
                where=sae,
                found=str(feature),
                expected=f"such as {unit_name(sae, 2)}",
            )
        return self.connection.sql(
            """
            WITH kept AS (
                SELECT c.*, w.doc_id, w.start, w.token_ids, w.prefix_token_ids, w.tokenizer
                FROM contexts c JOIN windows w USING (window_id)
                WHERE c.sae_id = $sae AND c.feature = $feature
            ),
            needed AS (
                SELECT DISTINCT tokenizer, unnest(token_ids || prefix_token_ids) AS token_id
                FROM kept
            ),
            texts AS (
                SELECT map(list(token_id), list(text)) AS text_of
                FROM pieces SEMI JOIN needed USING (tokenizer, token_id)
            )
            SELECT
                k.split, k.kind, k.rank, k.max_activation, k.weight, k.copies,
                list_transform(k.token_ids, lambda t: text_of[t]) AS tokens,
                k.positions, k.activations,
                list_transform(k.prefix_token_ids, lambda t: text_of[t]) AS prefix,
                k.doc_id, k.start, k.window_id
            FROM kept k, texts
            ORDER BY k.split, k.kind DESC, k.rank
            """,
            params={"sae": sae, "feature": number},
        )

    def search(self, text: str) -> duckdb.DuckDBPyRelation:
        """The labels in force whose text or explanation matches, best match first.

        By words in any order and however they end, as `text_ranking` says; `scopenote search` also
        ranks by meaning.
        """
        return labels_that_match(self.connection, text)

    def sql(self, query: str, **params: Any) -> duckdb.DuckDBPyRelation:
        """Any query over the tables of the contract."""
        return self.connection.sql(query, params=params or None)

    @property
    def revision(self) -> str:
        """The state that this is: another one after each absorption."""
        return get_meta(self.connection, REVISION) or ""

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of its own to the same state, for another thread; a context manager."""
        cursor = self.connection.cursor()
        draw_no_bar(cursor)
        # Which of the attached databases names are looked for in, each connection has to be told.
        if self._catalogs:
            use_catalogs(cursor, self._catalogs)
        return cursor

    def token_texts(self) -> dict[int, str]:
        """The text of every token of the run's tokenizer."""
        rows = self.connection.execute("SELECT token_id, text FROM pieces").fetchall()
        return dict(rows)

    def close(self) -> None:
        """Lets the file go; calling twice does no harm."""
        if self._connection is not None:
            self._connection.close()
        # Prefect's threads may hold what a task was given until the interpreter ends, and DuckDB
        # prints a page of warnings about any connection that is still there by then.
        self._connection = None

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_store(path: str | Path) -> Store:
    """Opens a run folder, or its `scopenote.duckdb`, for reading.

    What people have written and no run has absorbed yet is seen as if it were in the tables.

    Raises:
        StoreError: there is no database, or it is damaged.
        NewerDatabase: a newer version of Scopenote made it.
    """
    file = Path(path)
    file = file / PUBLISHED if file.is_dir() else file
    # Before the database is opened: what is absorbed and removed meanwhile stands in there.
    written = read_inbox(file.parent / INBOX) if file.name == PUBLISHED else []
    return _open(file, written)


def open_published(file: Path) -> Store:
    """Opens a published database without what lies in the inbox beside it.

    Raises:
        StoreError: there is no database, or it is damaged.
        NewerDatabase: a newer version of Scopenote made it.
    """
    return _open(file, [])


def _open(file: Path, written: Sequence[InboxFile]) -> Store:
    if not file.is_file():
        raise StoreError(
            "There is no Scopenote database here.",
            where=str(file.parent if file.name == PUBLISHED else file),
            expected=f"a run folder with {PUBLISHED}",
            mend="make one: scopenote demo, or scopenote run CONFIG --out RUN",
        )
    # Attached to a memory of the reader's own: opened by itself, DuckDB gives the file of this name
    # that the process has open already, although a newer one lies there by now.
    connection = duckdb.connect()
    quoted = str(file).replace("'", "''")
    try:
        draw_no_bar(connection)
        with _clear_refusals(file):
            connection.execute(f"ATTACH '{quoted}' AS {_CATALOG} (READ_ONLY, TYPE duckdb)")
        use_catalogs(connection, [_CATALOG])
        check_version(connection, file)
        catalogs = lay_over(connection, _CATALOG, written) if written else [_CATALOG]
    except BaseException:
        connection.close()
        raise
    return Store(connection, catalogs)


@contextmanager
def open_work(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """The working copy for its one writer, brought to the newest schema."""
    file = folder / WORK
    with _clear_refusals(file):
        connection = duckdb.connect(str(file))
        draw_no_bar(connection)
    try:
        migrate(connection, file)
        yield connection
    finally:
        connection.close()


def migrate(connection: duckdb.DuckDBPyConnection, file: Path) -> None:
    """Applies the migrations that the database lacks, each with its number in one transaction."""
    applied = check_version(connection, file)
    for number, migration in enumerate(MIGRATIONS, start=1):
        if number > applied:
            with transaction(connection):
                connection.execute(migration.sql)
                set_meta(connection, "schema_version", str(number))


def check_version(connection: duckdb.DuckDBPyConnection, file: Path) -> int:
    """How many migrations the database has had.

    Raises:
        NewerDatabase: more than this version of Scopenote knows.
        StoreError: it is a DuckDB database, but not one of ours.
    """
    tables = {name for (name,) in connection.execute("SHOW TABLES").fetchall()}
    if not tables:
        return 0
    if "meta" not in tables:
        raise StoreError(
            "This DuckDB file is not a Scopenote database.",
            where=str(file),
            found="tables " + ", ".join(sorted(tables)),
            expected="a table meta",
        )
    version = int(get_meta(connection, "schema_version") or 0)
    if version > SCHEMA_VERSION:
        raise NewerDatabase(
            "The database was made by a newer version of Scopenote.",
            where=str(file),
            found=f"schema version {version}",
            expected=f"at most {SCHEMA_VERSION}",
            mend="upgrade Scopenote, or work in another folder with --out",
        )
    return version


def publish(connection: duckdb.DuckDBPyConnection, folder: Path) -> None:
    """Gives readers the state as committed, whole: they see the old copy or the new one."""
    refresh_current_features(connection)
    # Without the checkpoint the file lacks what still stands in the write-ahead log.
    connection.execute("FORCE CHECKPOINT")
    unfinished = folder / f".{PUBLISHED}.unfinished"
    shutil.copyfile(folder / WORK, unfinished)
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.replace(folder / PUBLISHED)


def publish_if_behind(connection: duckdb.DuckDBPyConnection, folder: Path) -> None:
    """Publishes where a run died before it did, or the schema is newer by now."""
    if (folder / PUBLISHED).is_file():
        with open_published(folder / PUBLISHED) as store:
            published = [get_meta(store.connection, fact) for fact in _STATE]
        if published == [get_meta(connection, fact) for fact in _STATE]:
            return
    publish(connection, folder)


def now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


def draw_no_bar(connection: duckdb.DuckDBPyConnection) -> None:
    """Keeps DuckDB from drawing a bar on standard output for what takes longer than two seconds."""
    # In a notebook without ipywidgets it draws none, and refuses to be told so.
    with suppress(duckdb.InvalidInputException):
        connection.execute("SET enable_progress_bar = false")


@contextmanager
def _clear_refusals(file: Path) -> Iterator[None]:
    try:
        yield
    except duckdb.IOException as error:
        locked = "lock" in str(error)
        raise StoreError(
            "The database is in use by another program."
            if locked
            else "The database cannot be opened.",
            where=str(file),
            found=str(error).splitlines()[0],
            mend="end that program; to read while a run works, open the run folder's "
            f"{PUBLISHED}, read-only"
            if locked
            else None,
        ) from error
