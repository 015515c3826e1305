"""Labels as parts, and read back. Which features still need one is said in `wanted_labels`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

import duckdb
import pyarrow as pa

from .errors import UserMistake
from .facts import REVISION, set_meta, transaction
from .inbox import WrittenLabel
from .records import FeatureId, Label, content_hash

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
        "n_dropped_contexts": pa.int32(),
        "created_at": pa.timestamp("us", tz="UTC"),
        "run_id": pa.string(),
        "generation": pa.int32(),
        "why": pa.string(),
        "text_state": pa.string(),
    }
)
_CHECKED = pa.schema({"label_id": pa.string(), "text_state": pa.string()})
_LABEL_CONTEXTS = pa.schema({"label_id": pa.string(), "window_id": pa.uint64()})


def label_tables(
    labels: Iterable[Label],
    run_id: str,
    created_at: datetime,
    text_state: str | None = None,
    checked: Iterable[str] = (),
) -> dict[str, pa.Table]:
    """The tables of a part that holds these labels.

    Args:
        labels: new ones.
        run_id: of the run that made them.
        created_at: when.
        text_state: the text that they were made from, as `wanted_labels.text_state` has it.
        checked: ids of labels that are there, and that this text would not change.
    """
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
                "text_state": text_state,
            }
        )
        shown += [{"label_id": label_id, "window_id": window} for window in label.window_ids]
    return {
        "labels": pa.Table.from_pylist(rows, _LABELS),
        "label_contexts": pa.Table.from_pylist(shown, _LABEL_CONTEXTS),
        "checked": pa.Table.from_pylist(
            [{"label_id": label_id, "text_state": text_state} for label_id in checked], _CHECKED
        ),
    }


def read_labels(
    connection: duckdb.DuckDBPyConnection, sae_id: str, features: range, explainer: str
) -> list[Label]:
    """An explainer's newest labels for consecutive features, failures included."""
    return _read_labels(
        connection,
        "sae_id = $sae AND feature BETWEEN $first AND $last AND explainer = $explainer",
        {
            "sae": sae_id,
            "first": features.start,
            "last": features.stop - 1,
            "explainer": explainer,
        },
        "QUALIFY generation = max(generation) OVER (PARTITION BY feature, prompt_version, model)",
    )


def read_labels_by_id(
    connection: duckdb.DuckDBPyConnection, label_ids: Sequence[str]
) -> list[Label]:
    """The labels with these ids, by feature."""
    return _read_labels(connection, "label_id IN (SELECT unnest($ids))", {"ids": list(label_ids)})


def read_human_labels(
    connection: duckdb.DuckDBPyConnection, feature_id: FeatureId
) -> list[WrittenLabel]:
    """The labels that people wrote for a feature, those they took back included."""
    columns = ", ".join(field.name for field in fields(WrittenLabel))
    rows = connection.execute(
        f"SELECT {columns} FROM labels WHERE sae_id = ? AND feature = ? AND source = 'human' "
        "ORDER BY created_at, label_id",
        [feature_id.sae_id, feature_id.feature],
    ).fetchall()
    return [WrittenLabel(*row) for row in rows]


def find_label(connection: duckdb.DuckDBPyConnection, label_id: str) -> Label:
    """A label by its id, or by how that begins.

    Raises:
        UserMistake: none begins so, or several do.
    """
    (found,) = read_labels_by_id(connection, [find_label_id(connection, label_id)])
    return found


def find_label_id(connection: duckdb.DuckDBPyConnection, label_id: str) -> str:
    """The id of a label by how it begins.

    Raises:
        UserMistake: none begins so, or several do.
    """
    rows = connection.execute(
        """
        SELECT label_id FROM labels WHERE starts_with(label_id, $id)
        ORDER BY label_id = $id DESC, label_id LIMIT 4
        """,
        {"id": label_id},
    ).fetchall()
    if not rows or not label_id:
        raise UserMistake(
            "There is no such label.",
            found=label_id or "nothing",
            expected="a label_id of the table `labels`, or how one begins",
            mend="`scopenote show RUN FEATURE --json` gives the ids of a feature's labels",
        )
    if len(rows) > 1 and rows[0][0] != label_id:
        raise UserMistake(
            "Several labels begin so.",
            found=", ".join(row[0] for row in rows[:3]) + (", …" if len(rows) > 3 else ""),
            expected="one",
        )
    return str(rows[0][0])


def drawn_features(connection: duckdb.DuckDBPyConnection, n: int) -> set[tuple[str, int]]:
    """So many of the features that are active at all, drawn over all SAEs by their names."""
    rows = connection.execute(
        """
        SELECT sae_id, feature FROM features WHERE n_active > 0
        ORDER BY md5(sae_id || '/' || feature) LIMIT $n
        """,
        {"n": n},
    ).fetchall()
    return set(rows)


def forget_failures(
    connection: duckdb.DuckDBPyConnection, explainers: Sequence[str], reason: str
) -> int:
    """Removes the stored failures of these explainers whose reason contains this; how many."""
    found = connection.execute(
        """
        SELECT label_id FROM labels
        WHERE status = 'failed' AND contains(reason, $reason)
            AND explainer IN (SELECT unnest($explainers))
        """,
        {"reason": reason, "explainers": list(explainers)},
    ).fetchall()
    if found:
        names = [label_id for (label_id,) in found]
        with transaction(connection):
            for table in ("labels", "label_contexts"):
                connection.execute(
                    f"DELETE FROM {table} WHERE label_id IN (SELECT unnest(?))", [names]
                )
            set_meta(connection, REVISION, content_hash(names))
    return len(found)


def count_labels(connection: duckdb.DuckDBPyConnection, explainers: Sequence[str]) -> int:
    """Labels of these explainers, failures included."""
    rows = connection.execute(
        "SELECT count(*) FROM labels WHERE explainer IN (SELECT unnest(?))", [list(explainers)]
    ).fetchall()
    return int(rows[0][0])


def explainers_in_words(
    connection: duckdb.DuckDBPyConnection, embedded: Sequence[str]
) -> tuple[str, ...]:
    """Who wrote labels that are there, without the embedded explainers; people and others too."""
    rows = connection.execute(
        """
        SELECT DISTINCT explainer FROM labels
        WHERE status = 'done' AND explainer NOT IN (SELECT unnest(?)) ORDER BY explainer
        """,
        [list(embedded)],
    ).fetchall()
    return tuple(explainer for (explainer,) in rows)


def _read_labels(
    connection: duckdb.DuckDBPyConnection,
    condition: str,
    parameters: dict[str, Any],
    which: str = "",
) -> list[Label]:
    rows = connection.sql(
        f"""
        SELECT l.*, list_sort(list(c.window_id) FILTER (c.window_id IS NOT NULL)) AS window_ids
        FROM (SELECT * FROM labels WHERE {condition} {which}) l
            LEFT JOIN label_contexts c USING (label_id)
        GROUP BY ALL ORDER BY feature, draw, label_id
        """,
        params=parameters,
    )
    names = rows.columns
    return [_label(dict(zip(names, row, strict=True))) for row in rows.fetchall()]


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
        n_dropped_contexts=row["n_dropped_contexts"],
        generation=row["generation"] or 0,
        why=row["why"],
    )
