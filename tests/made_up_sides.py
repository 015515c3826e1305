"""A run's folder with labels and scores that a test gives it, to be compared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
from scopenote.store.database import WORK, publish
from scopenote.store.facts import set_meta
from scopenote.store.schema import SCHEMA_VERSION

from .made_up_run import make_empty_database

SAE, JUDGE, OTHER_JUDGE = "toy-gemma-2/1-res-1k", "chat/judge", "chat/other"
BEGAN = datetime(2026, 11, 21, 5, 0, tzinfo=UTC)


@dataclass
class MadeUpRun:
    """A working copy that is filled row by row."""

    connection: duckdb.DuckDBPyConnection
    n_labels: int = 0

    def label(self, feature: int, explainer: str = "highlighted", **columns: Any) -> str:
        """A label; its id."""
        self.n_labels += 1
        row = {
            "label_id": f"{explainer}:{feature}:{self.n_labels}",
            "sae_id": SAE,
            "feature": feature,
            "text": f"{explainer} on {feature}",
            "explainer": explainer,
            "prompt_version": "1",
            "model": None if explainer == "token_lookup" else "writer",
            "draw": 0,
            "generation": 0,
            "source": "auto",
            "status": "done",
            "created_at": BEGAN + timedelta(seconds=self.n_labels),
            "run_id": "r1",
            **columns,
        }
        if row["status"] == "failed":
            row["text"] = None
        self._insert("labels", row)
        return row["label_id"]

    def score(
        self,
        label_id: str,
        value: float | None,
        split: str = "score",
        half: float | None = 0.05,
        simulator: str = JUDGE,
        design: dict[str, Any] | None = None,
        **columns: Any,
    ) -> None:
        """A score; its interval reaches so far either way."""
        has_interval = value is not None and half is not None
        row = {
            "label_id": label_id,
            "scorer": "simulation",
            "simulator": simulator,
            "metric": "correlation",
            "split": split,
            "value": value,
            "reason": None if value is not None else "too few active tokens",
            "ci_low": value - half if has_interval else None,
            "ci_high": value + half if has_interval else None,
            "n_windows": 90,
            "design": json.dumps(design or {}),
            "contexts_hash": f"w{label_id.split(':')[1]}",
            "run_id": "r1",
            **columns,
        }
        self._insert("scores", row)

    def call(self, request_hash: str, usd: str | None, table: str = "calls") -> None:
        """What a request cost."""
        dollars = None if usd is None else Decimal(usd)
        self._insert(table, {"request_hash": request_hash, "purpose": "explain", "usd": dollars})

    def _insert(self, table: str, row: dict[str, Any]) -> None:
        places = ", ".join("?" * len(row))
        self.connection.execute(
            f"INSERT INTO {table} ({', '.join(row)}) VALUES ({places})", list(row.values())
        )


@contextmanager
def made_up_run(
    folder: Path, n_features: int = 40, sae_id: str = SAE, content_hash: str = "h"
) -> Iterator[MadeUpRun]:
    """A run to be filled, which is published at the end."""
    folder.mkdir(parents=True)
    with make_empty_database(folder / WORK) as connection:
        connection.execute(
            "INSERT INTO saes (sae_id, model, width, content_hash) VALUES (?, 'toy', ?, ?)",
            [sae_id, n_features, content_hash],
        )
        connection.execute(
            "INSERT INTO features (sae_id, feature) SELECT ?, range FROM range(?)",
            [sae_id, n_features],
        )
        yield MadeUpRun(connection)
        set_meta(connection, "schema_version", str(SCHEMA_VERSION))
        set_meta(connection, "revision", str(folder))
        publish(connection, folder)
