"""Labels as parts, and which features still need one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import duckdb
import pyarrow as pa

from .records import FeatureId, Label

_LABELS = pa.schema(
    {
        "label_id": pa.string(),
        "sae_id": pa.string(),
        "feature": pa.int32(),
        "text": pa.string(),
        "explanation": pa.string(),
        "explainer": pa.string(),
        "prompt_version": pa.string(),
        "model": pa.string(),
        "request_hash": pa.string(),
        "draw": pa.int32(),
        "source": pa.string(),
        "author": pa.string(),
        "status": pa.string(),
        "reason": pa.string(),
        "created_at": pa.timestamp("us", tz="UTC"),
        "run_id": pa.string(),
    }
)
_LABEL_CONTEXTS = pa.schema({"label_id": pa.string(), "window_id": pa.uint64()})


def label_tables(labels: Iterable[Label], run_id: str, created_at: datetime) -> dict[str, pa.Table]:
    """The tables of a part that holds these labels."""
    rows: list[dict[str, Any]] = []
    shown: list[dict[str, Any]] = []
    for label in labels:
        label_id = label.label_id
        rows.append(
            {
                **{name: getattr(label, name, None) for name in _LABELS.names},
                "label_id": label_id,
                "sae_id": label.feature_id.sae_id,
                "feature": label.feature_id.feature,
                "created_at": created_at,
                "run_id": run_id,
            }
        )
        shown += [{"label_id": label_id, "window_id": window} for window in label.window_ids]
    return {
        "labels": pa.Table.from_pylist(rows, _LABELS),
        "label_contexts": pa.Table.from_pylist(shown, _LABEL_CONTEXTS),
    }


def read_labels(
    connection: duckdb.DuckDBPyConnection, sae_id: str, features: range, explainer: str
) -> list[Label]:
    """The labels that an explainer proposed for consecutive features, failures included."""
    rows = connection.sql(
        """
        SELECT l.*, list_sort(list(c.window_id) FILTER (c.window_id IS NOT NULL)) AS window_ids
        FROM labels l LEFT JOIN label_contexts c USING (label_id)
        WHERE sae_id = $sae AND feature BETWEEN $first AND $last AND explainer = $explainer
        GROUP BY ALL ORDER BY feature, draw, label_id
        """,
        params={
            "sae": sae_id,
            "first": features.start,
            "last": features.stop - 1,
            "explainer": explainer,
        },
    )
    names = rows.columns
    return [_label(dict(zip(names, row, strict=True))) for row in rows.fetchall()]


def unlabelled_features(
    connection: duckdb.DuckDBPyConnection, explainer: str, prompt_version: str
) -> dict[str, list[int]]:
    """Per SAE, the features that this version of the explainer has not seen."""
    rows = connection.sql(
        """
        SELECT f.sae_id, f.feature FROM features f ANTI JOIN (
            SELECT sae_id, feature FROM labels
            WHERE explainer = $explainer AND prompt_version = $version
        ) USING (sae_id, feature)
        ORDER BY ALL
        """,
        params={"explainer": explainer, "version": prompt_version},
    ).fetchall()
    missing: dict[str, list[int]] = {}
    for sae_id, feature in rows:
        missing.setdefault(sae_id, []).append(feature)
    return missing


def count_labels(connection: duckdb.DuckDBPyConnection, explainers: Sequence[str]) -> int:
    """Labels of these explainers, failures included."""
    rows = connection.execute(
        "SELECT count(*) FROM labels WHERE explainer IN (SELECT unnest(?))", [list(explainers)]
    ).fetchall()
    return int(rows[0][0])


def _label(row: dict[str, Any]) -> Label:
    return Label(
        feature_id=FeatureId(row["sae_id"], row["feature"]),
        text=row["text"],
        explanation=row["explanation"],
        explainer=row["explainer"],
        prompt_version=row["prompt_version"],
        window_ids=tuple(row["window_ids"] or ()),
        model=row["model"],
        request_hash=row["request_hash"],
        draw=row["draw"],
        source=row["source"],
        author=row["author"],
        status=row["status"],
        reason=row["reason"],
    )
