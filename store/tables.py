"""Building the tables of a collected corpus from its merged sketch.

The tables are a function of the text absorbed, and of the windows that labels were shown, which
stay for ever. A window whose token ids are kept in an earlier split is left out of the later ones:
a label is never scored on text that it was written from, also where text repeats.
"""

from __future__ import annotations

from typing import Any

import duckdb

from .background_table import PoolIds, insert_background
from .merging import per_split
from .parts import Part
from .splits import SPLITS
from .stale_scores import mark_stale, note_windows


def _split_name(column: str) -> str:
    cases = " ".join(f"WHEN {number} THEN '{split}'" for number, split in enumerate(SPLITS))
    return f"CASE {column} {cases} END"


def prepare_tables(connection: duckdb.DuckDBPyConnection, merged: Part) -> None:
    """Chooses the windows to keep, and fills a table that will become the new background.

    Outside of a transaction: the background is by far the largest table, and DuckDB holds in
    memory what is not committed. Until `build_tables` nothing that anyone reads is changed.
    """
    n_saes = len(merged.manifest["saes"])
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE banned (token_hash UBIGINT, window_split UTINYINT)"
    )
    _cut_pool(connection, merged)
    for number in range(n_saes):
        connection.execute(f"CREATE OR REPLACE TEMP TABLE kept_{number} AS {_NO_CONTEXTS}")
    for split in range(len(SPLITS)):
        _keep_split(connection, merged, split)
    drop_prepared(connection)
    # Numbers for the ids, as for the splits: millions of equal strings take long to write.
    quoted = [sae["sae_id"].replace("'", "''") for sae in merged.manifest["saes"]]
    ids = ", ".join(f"'{sae_id}'" for sae_id in quoted)
    connection.execute(
        "CREATE TABLE next_background AS "
        f"SELECT * REPLACE (sae_id::ENUM ({ids}) AS sae_id) FROM background LIMIT 0"
    )
    pool = PoolIds.read(connection)
    for number, sae in enumerate(merged.manifest["saes"]):
        insert_background(connection, merged, number, sae["sae_id"], pool)


def drop_prepared(connection: duckdb.DuckDBPyConnection) -> None:
    """Removes what a process that died had prepared."""
    connection.execute("DROP TABLE IF EXISTS next_background")


def build_tables(connection: duckdb.DuckDBPyConnection, merged: Part) -> None:
    """The tables of a collected corpus, from its merged sketch, once they are prepared."""
    # What follows from the weights alone stays as it is; what followed from the old pool is gone.
    connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE shown_before AS {_SHOWN};
        CREATE OR REPLACE TEMP TABLE effects_before AS
        SELECT sae_id, feature, top_tokens_positive, top_tokens_negative, top_logits_positive,
               top_logits_negative
        FROM features WHERE top_tokens_positive IS NOT NULL;
        CREATE OR REPLACE TEMP TABLE losses_before AS
        SELECT sae_id, loss, loss_spliced, loss_zeroed, n_loss_tokens FROM saes;
        DELETE FROM neighbours WHERE kind = 'cofiring';
        """
    )
    note_windows(connection)
    for table in ("saes", "features", "feature_splits", "windows", "contexts"):
        connection.execute(f"DELETE FROM {table}")
    connection.execute("DROP TABLE background; ALTER TABLE next_background RENAME TO background")
    saes = merged.manifest["saes"]
    for number, sae in enumerate(saes):
        _insert_contexts(connection, merged, number, sae["sae_id"])
        _insert_features(connection, merged, number, sae)
    _insert_windows(connection, merged)
    connection.execute(
        """
        INSERT INTO windows
        SELECT * REPLACE (NULL AS copies, false AS is_background)
        FROM shown_before ANTI JOIN windows USING (window_id)
        """
    )
    mark_stale(connection)
    for number in range(len(saes)):
        connection.execute(f"DROP TABLE kept_{number}")
    connection.execute("DROP TABLE banned; DROP TABLE pool_windows")
    connection.execute(
        "DROP TABLE effects_before; DROP TABLE losses_before; DROP TABLE shown_before"
    )


# The windows that labels were shown, as the database has them.
_SHOWN = "SELECT * FROM windows SEMI JOIN label_contexts USING (window_id)"

_NO_CONTEXTS = """
    SELECT NULL::BIGINT AS file_row_number, NULL::UTINYINT AS split, NULL::VARCHAR AS kind,
           NULL::INTEGER AS rank, NULL::DOUBLE AS weight_share, NULL::BIGINT AS occurrence
    WHERE false
"""


def _cut_pool(connection: duckdb.DuckDBPyConnection, merged: Part) -> None:
    connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE pool_windows AS
        SELECT p.*, w.window_id FROM read_parquet('{merged.file("pool")}') p
        JOIN read_parquet('{merged.file("windows")}') w USING (occurrence)
        """
    )


def _keep_split(connection: duckdb.DuckDBPyConnection, merged: Part, split: int) -> None:
    """Ranks one split's windows without those that an earlier split keeps, and cuts the reserve."""
    sizes = merged.manifest["sizes"]
    connection.execute(
        f"""
        DELETE FROM pool_windows WHERE split = {split} AND (
            token_hash IN (SELECT token_hash FROM banned)
        );
        DELETE FROM pool_windows WHERE split = {split} AND token_hash NOT IN (
            SELECT token_hash FROM pool_windows WHERE split = {split}
            ORDER BY token_hash LIMIT {sizes["background"][split]}
        );
        """
    )
    for number in range(len(merged.manifest["saes"])):
        connection.execute(
            f"""
            INSERT INTO kept_{number}
            WITH allowed AS (
                SELECT file_row_number, feature, split, token_hash, occurrence, peak, copies,
                       in_top, in_sample
                FROM read_parquet('{merged.file(f"contexts-{number}")}', file_row_number = true)
                WHERE split = {split} AND token_hash NOT IN (SELECT token_hash FROM banned)
            ),
            ranked AS (
                SELECT file_row_number, feature, split, 'top' AS kind, NULL::BIGINT AS copies,
                       occurrence,
                       row_number() OVER (
                           PARTITION BY feature ORDER BY peak DESC, occurrence) AS rank
                FROM allowed WHERE in_top
                QUALIFY rank <= {sizes["top"][split]}
                UNION ALL
                SELECT file_row_number, feature, split, 'sample', copies, occurrence,
                       row_number() OVER (PARTITION BY feature ORDER BY token_hash) AS rank
                FROM allowed WHERE in_sample
                QUALIFY rank <= {sizes["sample"][split]}
            )
            SELECT file_row_number, split, kind, rank,
                   copies / sum(copies) OVER (PARTITION BY feature, kind), occurrence
            FROM ranked
            """
        )
    kept = " UNION ".join(
        f"SELECT occurrence FROM kept_{number} WHERE split = {split}"
        for number in range(len(merged.manifest["saes"]))
    )
    connection.execute(
        f"""
        INSERT INTO banned
        SELECT token_hash, {split} FROM read_parquet('{merged.file("windows")}')
        WHERE occurrence IN ({kept})
        UNION
        SELECT token_hash, {split} FROM pool_windows WHERE split = {split}
        UNION
        SELECT token_hash, {split} FROM ({_SHOWN}) WHERE split = '{SPLITS[split]}'
        """
    )


def _insert_contexts(
    connection: duckdb.DuckDBPyConnection, merged: Part, number: int, sae_id: str
) -> None:
    connection.execute(
        f"""
        INSERT INTO contexts
        SELECT $sae, c.feature, {_split_name("c.split")}, k.kind, k.rank,
               w.window_id, c.peak, c.positions, c.activations,
               k.weight_share * n.n_active_windows,
               CASE WHEN k.kind = 'sample' THEN c.copies END
        FROM read_parquet('{merged.file(f"contexts-{number}")}', file_row_number = true) c
        JOIN kept_{number} k USING (file_row_number)
        JOIN (SELECT occurrence, window_id FROM read_parquet('{merged.file("windows")}')) w
            ON w.occurrence = c.occurrence
        JOIN read_parquet('{merged.file(f"counts-{number}")}') n
            ON n.feature = c.feature AND n.split = c.split
        ORDER BY c.feature, c.split, k.kind DESC, k.rank
        """,
        {"sae": sae_id},
    )


def _insert_features(
    connection: duckdb.DuckDBPyConnection, merged: Part, number: int, sae: dict[str, Any]
) -> None:
    counts, totals = merged.file(f"counts-{number}"), merged.file("totals")
    exact = "({0}_whole + {0}_fraction / 4294967296.0)"
    sample = merged.manifest["kept"]["sample"]
    connection.execute(
        f"""
        INSERT INTO feature_splits
        SELECT $sae, f.feature, {_split_name("t.split")}, t.n_windows,
               coalesce(c.n_active_windows, 0), t.n_tokens, coalesce(c.n_active, 0),
               coalesce({exact.format("sum")}, 0), coalesce({exact.format("sum_sq")}, 0),
               coalesce(s.threshold, 1)
        FROM range({sae["width"]}) f(feature)
        CROSS JOIN read_parquet('{totals}') t
        LEFT JOIN read_parquet('{counts}') c ON c.feature = f.feature AND c.split = t.split
        LEFT JOIN (
            SELECT feature, split, max(token_hash) / 18446744073709551616.0 AS threshold
            FROM read_parquet('{merged.file(f"contexts-{number}")}') WHERE in_sample
            GROUP BY feature, split HAVING count(*) >= {per_split(sample)}
        ) s ON s.feature = f.feature AND s.split = t.split
        ORDER BY f.feature, t.split
        """,
        {"sae": sae["sae_id"]},
    )
    connection.execute(
        f"""
        INSERT INTO features (
            sae_id, feature, n_active, density, max_activation, mean_activation, histogram,
            top_tokens_positive, top_tokens_negative, top_logits_positive, top_logits_negative
        )
        WITH counted AS (
            SELECT feature, sum(n_active) AS n_active, sum(n_tokens) AS n_tokens,
                   sum(sum ORDER BY split) AS sum
            FROM feature_splits WHERE sae_id = $sae GROUP BY feature
        )
        SELECT $sae, s.feature, s.n_active, s.n_active / s.n_tokens,
               coalesce(f.max_activation, 0), s.sum / nullif(s.n_active, 0), f.histogram,
               e.top_tokens_positive, e.top_tokens_negative, e.top_logits_positive,
               e.top_logits_negative
        FROM counted s
        LEFT JOIN read_parquet('{merged.file(f"features-{number}")}') f USING (feature)
        LEFT JOIN effects_before e ON e.sae_id = $sae AND e.feature = s.feature
        ORDER BY s.feature
        """,
        {"sae": sae["sae_id"]},
    )
    connection.execute(
        f"""
        INSERT INTO saes (
            sae_id, model, site, layer, width, source, content_hash, mean_l0, fvu, n_tokens,
            loss, loss_spliced, loss_zeroed, n_loss_tokens, mean_vector
        )
        WITH fidelity AS (
            SELECT * FROM read_parquet('{merged.file("fidelity")}') WHERE sae = {number}
        ),
        coordinates AS (
            SELECT chunk, unnest(sum_x) AS x, generate_subscripts(sum_x, 1) AS d FROM fidelity
        ),
        means AS (SELECT d, sum(x ORDER BY chunk) AS x FROM coordinates GROUP BY d),
        sums AS (
            SELECT sum(n_tokens) AS n, sum(sum_x_sq ORDER BY chunk) AS xx,
                   sum(sum_error_sq ORDER BY chunk) AS ee
            FROM fidelity
        ),
        variance AS (
            SELECT xx - (SELECT sum(x * x ORDER BY d) FROM means) / n AS v, ee FROM sums
        )
        SELECT $sae, $model, $site, $layer, $width, $source, $content_hash,
               (SELECT sum(n_active) FROM features WHERE sae_id = $sae)
                   / (SELECT sum(n_tokens) FROM read_parquet('{totals}')),
               (SELECT CASE WHEN v > 0 THEN ee / v END FROM variance),
               (SELECT sum(n_tokens) FROM read_parquet('{totals}')), b.* EXCLUDE (sae_id),
               (SELECT list(x / n ORDER BY d) FROM means, sums WHERE n > 0)
        FROM (SELECT $sae AS sae_id) LEFT JOIN losses_before b USING (sae_id)
        """,
        {
            "sae": sae["sae_id"],
            **{k: sae[k] for k in ("model", "site", "layer", "width", "source", "content_hash")},
        },
    )


def _insert_windows(connection: duckdb.DuckDBPyConnection, merged: Part) -> None:
    kept = " UNION ".join(
        f"SELECT occurrence FROM kept_{number}" for number in range(len(merged.manifest["saes"]))
    )
    connection.execute(
        f"""
        INSERT INTO windows
        SELECT w.window_id, $tokenizer, w.doc_id, {_split_name("w.split")},
               w.start, w.token_ids, w.prefix_token_ids, p.copies, p.copies IS NOT NULL,
               w.token_hash
        FROM read_parquet('{merged.file("windows")}') w
        LEFT JOIN pool_windows p USING (occurrence)
        WHERE p.occurrence IS NOT NULL OR w.occurrence IN ({kept})
        ORDER BY w.occurrence
        """,
        {"tokenizer": merged.manifest["identity"]["model"]},
    )
