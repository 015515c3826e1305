"""The tables of an export as Arrow, each in a fixed order, in batches of bounded size.

Columns are as in the database where they are the same thing; `feature_id` names a feature as
Neuronpedia does. A window's id is written in hexadecimal digits, because readers of JSON take
numbers beyond 2^53 for others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from .export_contexts import CONTEXTS_QUERY, CONTEXTS_SCHEMA, context_batches
from .unit_names import FEATURE_ID_SQL

if TYPE_CHECKING:
    import duckdb

_ROWS = 65_536

_QUERIES = {
    "labels": f"""
        SELECT {FEATURE_ID_SQL.format("l")} AS feature_id, l.sae_id, l.feature, l.label_id,
            l.text, l.explanation, c.in_force, c.score, c.score_reason, c.ci_low, c.ci_high,
            c.null_value, c.lift, c.lift_ci_low, c.lift_ci_high, c.simulator,
            l.explainer, l.prompt_version, l.model, l.draw, l.source, l.author, l.status, l.reason,
            c.n_up, c.n_down, l.created_at, l.run_id
        FROM labels l JOIN chosen_labels c USING (label_id)
        ORDER BY l.sae_id, l.feature, l.label_id
    """,
    "features": f"""
        WITH near AS (
            SELECT sae_id, feature,
                list(neighbour ORDER BY rank) FILTER (kind = 'cosine') AS cosine_neighbours,
                list(value ORDER BY rank) FILTER (kind = 'cosine') AS cosine_values,
                list(neighbour ORDER BY rank) FILTER (kind = 'cofiring') AS cofiring_neighbours,
                list(value ORDER BY rank) FILTER (kind = 'cofiring') AS cofiring_values
            FROM neighbours SEMI JOIN chosen_features USING (sae_id, feature) GROUP BY ALL
        )
        SELECT {FEATURE_ID_SQL.format("f")} AS feature_id, f.sae_id, f.feature, s.model, s.site,
            s.layer, f.n_active, f.density, f.max_activation, f.mean_activation, f.histogram,
            f.top_tokens, f.top_token_means, f.top_token_counts,
            f.top_tokens_positive, f.top_logits_positive,
            f.top_tokens_negative, f.top_logits_negative,
            n.cosine_neighbours, n.cosine_values, n.cofiring_neighbours, n.cofiring_values
        FROM (FROM features SEMI JOIN chosen_features USING (sae_id, feature)) f
        LEFT JOIN saes s USING (sae_id)
        LEFT JOIN near n USING (sae_id, feature)
        ORDER BY f.sae_id, f.feature
    """,
    "scores": f"""
        SELECT {FEATURE_ID_SQL.format("c")} AS feature_id, c.sae_id, c.feature, s.label_id,
            s.scorer, s.simulator, s.metric, s.split::VARCHAR AS split, s.value, s.reason,
            s.ci_low, s.ci_high, s.null_value, s.lift, s.lift_ci_low, s.lift_ci_high,
            s.lift_reason, s.n_windows, s.n_tokens, s.design::VARCHAR AS design, s.contexts_hash,
            s.stale_since, s.run_id
        FROM scores s JOIN chosen_labels c USING (label_id)
        ORDER BY c.sae_id, c.feature, s.label_id, s.scorer, s.simulator, s.metric, s.split
    """,
}


@dataclass(frozen=True, slots=True)
class ExportedTable:
    """A table of an export; its batches can be taken once.

    Attributes:
        query: that its rows are the answer to, over the database.
        schema: of its batches.
    """

    name: str
    query: str
    schema: pa.Schema
    batches: Iterator[pa.Table]


def read_table(connection: duckdb.DuckDBPyConnection, name: str) -> ExportedTable:
    """One of `TABLES`, of what `choose` chose.

    Args:
        connection: that `choose` was given; nothing else may be asked of it until the batches are
            taken.
        name: of the table.
    """
    if name == "contexts":
        query = _one_line(CONTEXTS_QUERY)
        return ExportedTable(name, query, CONTEXTS_SCHEMA, context_batches(connection))
    # Times are told with a zone, which is otherwise the machine's.
    connection.execute("SET TimeZone = 'UTC'")
    reader = connection.sql(_QUERIES[name]).to_arrow_reader(_ROWS)
    batches = (pa.Table.from_batches([batch]) for batch in reader)
    return ExportedTable(name, _one_line(_QUERIES[name]), reader.schema, batches)


def _one_line(query: str) -> str:
    return " ".join(query.split())
