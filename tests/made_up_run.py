"""A small database with made-up rows, for tests of what only reads it."""

from __future__ import annotations

import json
import random
import tempfile
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import duckdb
from scopenote.store.current_features import refresh_current_features
from scopenote.store.schema import MIGRATIONS, SCHEMA_VERSION

RES, MLP = "toy-gemma-2/1-res-1k", "toy-gemma-2/1-mlp-1k"
WIDTH = 40
WORDS = [
    " the", " parser", " returns", " None", ".", "\n", " def", " class", " import", " os", " a",
    " string", "(", ")", ":", "\t", " raise", " ValueError", " if", " not", " [red]", " é", " 日本",
]  # fmt: skip
HOSTILE = ["\x1b[31m", "\u202e", "\x07", "\u200b", "\ud7ff"]
PIECES = WORDS + HOSTILE
Rows = dict[str, list[tuple]]
NEVER_ACTIVE, FAILED, UNDEFINED, NEGATIVE = 5, 6, 7, 8


def make_database(path: Path | str = ":memory:") -> duckdb.DuckDBPyConnection:
    """Two SAEs of 40 features on 30 windows; feature 0 of each looks at every kind of thing."""
    if str(path) == ":memory:":
        return _make(path)
    # Made once and copied: dozens of tests want one.
    Path(path).write_bytes(_made())
    return duckdb.connect(str(path))


@cache
def _made() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "made.duckdb"
        _make(file).close()
        return file.read_bytes()


def make_empty_database(path: Path) -> duckdb.DuckDBPyConnection:
    """All tables and no rows."""
    path.write_bytes(_empty())
    return duckdb.connect(str(path))


@cache
def _empty() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "empty.duckdb"
        with duckdb.connect(str(file)) as connection:
            for migration in MIGRATIONS:
                connection.execute(migration.sql)
        return file.read_bytes()


def _make(path: Path | str) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(str(path))
    for migration in MIGRATIONS:
        connection.execute(migration.sql)
    rows: Rows = defaultdict(list)
    _fill(rows)
    for table, of_table in rows.items():
        # One statement a table: row by row this takes ten seconds.
        places = ", ".join(["(" + ", ".join("?" * len(of_table[0])) + ")"] * len(of_table))
        values = [value for row in of_table for value in row]
        # The first columns: later migrations add some at the end.
        columns = [each[0] for each in connection.execute(f"DESCRIBE {table}").fetchall()]
        named = ", ".join(columns[: len(of_table[0])])
        connection.execute(f"INSERT INTO {table} ({named}) VALUES {places}", values)
    refresh_current_features(connection)
    return connection


def _fill(rows: Rows) -> None:
    draw = random.Random(0)
    edges = [0.5, 1, 2, 4, 8, 16]
    insert(rows, "meta", [("schema_version", str(SCHEMA_VERSION))])
    insert(rows, "meta", [("histogram_edges", json.dumps(edges))])
    insert(rows, "pieces", [("toy", i, text, None) for i, text in enumerate(PIECES)])
    insert(rows, "chunks", [(i, f"c{i}", 256, 5000, 306_017, "p") for i in range(2)])
    _add_windows(rows, draw)
    for sae_id, site, fvu, losses in (
        (RES, "res", 0.213, (3.2104, 3.3354, 8.2104, 8191)),
        (MLP, "mlp", 0.187, (None, None, None, None)),
    ):
        row = (sae_id, "toy-gemma-2", site, 1, WIDTH, "toy", "h", 12.34, fvu, 612_034, *losses)
        insert(rows, "saes", [row])
        for feature in range(WIDTH):
            _add_feature(rows, draw, sae_id, feature)
    began = datetime(2026, 11, 21, 5, 0, tzinfo=UTC)
    insert(
        rows,
        "runs",
        [
            ("r1", "demo", began, None, "interrupted", "{}", "0.1.0", None),
            ("r2", "demo", began + timedelta(minutes=3), began + timedelta(minutes=5, seconds=7),
             "done", "{}", "0.1.0", None),
        ],
    )  # fmt: skip


def insert(rows: Rows, table: str, new: list[tuple]) -> None:
    rows[table] += new


def _add_windows(rows: Rows, draw: random.Random) -> None:
    for number in range(30):
        split = ("explain", "select", "score")[number % 3]
        words = len(WORDS) if number else len(PIECES)
        ids = [draw.randrange(words) for _ in range(64)]
        if number == 0:
            ids[: len(PIECES)] = range(len(PIECES))
        prefix = [draw.randrange(len(WORDS)) for _ in range(30)]
        row = (number, "toy", f"d{number // 2}", split, 128, ids, prefix, 1, number > 20, number)
        insert(rows, "windows", [row])


def _add_feature(rows: Rows, draw: random.Random, sae_id: str, feature: int) -> None:
    is_active = feature != NEVER_ACTIVE
    density = draw.uniform(0.0005, 0.03) if is_active else 0.0
    n_active = int(612_034 * density)
    histogram = [int(n_active * share) for share in (0.3, 0.3, 0.2, 0.12, 0.07, 0.01)]
    insert(
        rows,
        "features",
        [(sae_id, feature, n_active, density, 23.4 if is_active else 0.0,
          4.2 if is_active else None, histogram, [" import", HOSTILE[0]], ["\n", " the"],
          [0.51, 0.4], [-0.62, -0.3], ["(", " def", HOSTILE[0]], [3.25, 1.5, 0.04],
          [7, 1204, 1])],
    )  # fmt: skip
    for rank in range(1, 11):
        other = (feature + rank * rank) % WIDTH
        near = (sae_id, feature, "cosine", rank, other, 1 / (1 + rank), None)
        insert(rows, "neighbours", [near])
        if is_active and rank < 4:
            near = (sae_id, feature, "cofiring", rank, (other + 1) % WIDTH, 0.5 / rank, 40 - rank)
            insert(rows, "neighbours", [near])
    for split, n_tokens in (("explain", 306_000), ("select", 122_034), ("score", 184_000)):
        insert(
            rows,
            "feature_splits",
            [(sae_id, feature, split, n_tokens // 60, 20, n_tokens, n_active // 3, 1.0, 2.0, 0.5)],
        )
    if not is_active:
        return
    for rank in range(1, 13):
        peak = 23.4 / rank
        positions = sorted({0, 3, 11, 12, 22, 24, 40 + rank})
        values = [peak * (1 if at == 12 else draw.uniform(0.05, 0.95)) for at in positions]
        window = 3 * ((rank - 1) % 10)
        row = (sae_id, feature, "explain", "top", rank, window, peak, positions, values, None, None)
        insert(rows, "contexts", [row])
    _add_label(rows, draw, sae_id, feature)


def _add_label(rows: Rows, draw: random.Random, sae_id: str, feature: int) -> None:
    label_id = f"{sae_id}:{feature}"
    failed = feature == FAILED
    text = None if failed else f"“{draw.choice(WORDS).strip() or '⏎'}”, “ import”, “ class”"
    status, reason = ("failed", "never active in explain") if failed else ("done", None)
    created = datetime(2026, 11, 21, 5, 4, tzinfo=UTC)
    insert(
        rows,
        "labels",
        [(label_id, sae_id, feature, text, text, "token_lookup", "1", None, None, 0, "auto", None,
          status, reason, created, "r2", None)],
    )  # fmt: skip
    if failed:
        return
    score = {UNDEFINED: None, NEGATIVE: -0.04}.get(feature, min(0.99, draw.betavariate(2, 2)))
    undefined = None if score is not None else "too few active tokens"
    low, high = (None, None) if score is None else (max(-1, score - 0.06), min(1, score + 0.04))
    own = "the simulator is the null itself"
    insert(
        rows,
        "scores",
        [
            (label_id, "simulation", "token_lookup", "correlation", "score", score, undefined, low,
             high, score, None, None, None, own, 2060, 131_840, "{}", "h", "r2"),
            (label_id, "simulation", "token_lookup", "ev_correlation", "score", 0.7, None, None,
             None, None, None, None, None, None, 25, 1600, "{}", "h", "r2"),
            (label_id, "simulation", "token_lookup", "correlation", "select", 0.3, None, 0.2, 0.4,
             None, None, None, None, None, 1054, 67_000, "{}", "h", "r2"),
        ],
    )  # fmt: skip
