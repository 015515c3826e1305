"""A database with neighbours, firings in a background and labels, made up by chance."""

from __future__ import annotations

import random
from collections import defaultdict

import duckdb
import pyarrow as pa
from scopenote.store.schema import MIGRATIONS

SAE, OTHER = "toy/9-res", "toy/3-mlp"
N_FEATURES, N_WINDOWS, LONELY, SILENT = 40, 60, 11, 12
SPLITS = ("explain", "select", "score")


def make_neighbours(seed: int) -> duckdb.DuckDBPyConnection:
    """Two SAEs of 40 features; of each, five neighbours and firings in 60 windows of each split.

    Feature `LONELY` has no neighbours, `SILENT` never fires.
    """
    draw = random.Random(seed)
    connection = duckdb.connect()
    for migration in MIGRATIONS:
        connection.execute(migration.sql)
    rows: dict[str, list[dict]] = defaultdict(list)
    for split in SPLITS:
        for number in range(N_WINDOWS):
            rows["windows"].append(
                {
                    "window_id": draw.getrandbits(63),
                    "tokenizer": "toy",
                    "doc_id": f"{draw.getrandbits(64):016x}",
                    "split": split,
                    "start": number,
                    "token_ids": [draw.randrange(99) for _ in range(draw.randrange(1, 9))],
                    "copies": 1,
                    "is_background": True,
                    "token_hash": draw.getrandbits(64),
                }
            )
    for sae_id in (SAE, OTHER):
        for feature in range(N_FEATURES):
            _add_feature(rows, draw, sae_id, feature)
    for table, of_table in rows.items():
        _insert(connection, table, of_table)
    return connection


def _add_feature(
    rows: dict[str, list[dict]], draw: random.Random, sae_id: str, feature: int
) -> None:
    others = draw.sample([each for each in range(N_FEATURES) if each != feature], 5)
    for kind in ("cosine", "cofiring"):
        for rank, other in enumerate(draw.sample(others, 5) if feature != LONELY else [], start=1):
            rows["neighbours"].append(
                {
                    "sae_id": sae_id,
                    "feature": feature,
                    "kind": kind,
                    "rank": rank,
                    "neighbour": other,
                    "value": 1 - rank / 10,
                }
            )
    share = draw.choice([0.02, 0.1, 0.5])
    for window in rows["windows"]:
        if feature != SILENT and draw.random() < share:
            fired = {"sae_id": sae_id, "feature": feature, "split": window["split"]}
            values = {"window_id": window["window_id"], "positions": [0], "activations": [1.0]}
            rows["background"].append(fired | values)


def _insert(connection: duckdb.DuckDBPyConnection, table: str, rows: list[dict]) -> None:
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    if "token_hash" in columns:  # beyond what pyarrow takes for an integer
        columns["token_hash"] = pa.array(columns["token_hash"], pa.uint64())
    connection.register("new_rows", pa.table(columns))
    connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM new_rows")
    connection.unregister("new_rows")


def add_label(
    connection: duckdb.DuckDBPyConnection,
    feature: int,
    text: str | None,
    *,
    sae_id: str = SAE,
    explainer: str = "highlighted",
    source: str = "auto",
    select: float | None = None,
    label_id: str | None = None,
) -> None:
    """A label; one without a text has failed."""
    name = label_id or f"{sae_id}/{feature}/{explainer}/{text}"
    status = "failed" if text is None else "done"
    connection.execute(
        """
        INSERT INTO labels BY NAME SELECT $name AS label_id, $sae AS sae_id, $feature AS feature,
            $text AS text, $explainer AS explainer, $source AS source, $status AS status, 0 AS draw
        """,
        {
            "name": name,
            "sae": sae_id,
            "feature": feature,
            "text": text,
            "explainer": explainer,
            "source": source,
            "status": status,
        },
    )
    if select is not None:
        connection.execute(
            """
            INSERT INTO scores BY NAME SELECT $name AS label_id, 'simulation' AS scorer,
                'chat/m' AS simulator, 'correlation' AS metric, 'select' AS split, $value AS value
            """,
            {"name": name, "value": select},
        )
