"""Merging sketches: parts of different text become one part that holds their union's sketch.

The same total orders that made the sketches (`extract/sketches.py`) merge them, in DuckDB, so
that any number of parts of any size fits: keys are ranked first, and only what survives is read
in full. Merging is associative and commutative, so the result depends on the text alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb

from .background import FIRING_ARRAYS, fold_background
from .parts import Part, begin_part, finish_part, read_part
from .records import content_hash

_ARRAYS = ", ".join(FIRING_ARRAYS)


def merge_parts(connection: duckdb.DuckDBPyConnection, parts: Path, pieces: Sequence[Part]) -> Part:
    """One part that holds the merged sketch of these."""
    if len(pieces) == 1:
        return pieces[0]
    chunks = sorted((c for p in pieces for c in p.manifest["chunks"]), key=lambda c: c["chunk"])
    part_id = "merged-" + content_hash([c["chunk_id"] for c in chunks])
    target = parts / part_id
    if not (target / "part.json").exists():
        folder = begin_part(parts)
        for number in range(len(pieces[0].manifest["saes"])):
            _merge_sae(connection, folder, pieces, number)
        _merge_shared(connection, folder, pieces)
        manifest = {**pieces[0].manifest, "chunks": chunks}
        manifest = {k: v for k, v in manifest.items() if k not in ("part_id", "stage")}
        finish_part(folder, target, "merged", manifest)
    return read_part(target)


def _merge_sae(
    connection: duckdb.DuckDBPyConnection, folder: Path, pieces: Sequence[Part], number: int
) -> None:
    sizes = pieces[0].manifest["kept"]
    kept_top, kept_sample = per_split(sizes["top"]), per_split(sizes["sample"])
    contexts = _read(pieces, f"contexts-{number}", "filename = true, file_row_number = true")
    _copy(
        connection,
        folder / f"contexts-{number}.parquet",
        f"""
        WITH keys AS (
            SELECT filename, file_row_number, feature, split, token_hash, occurrence, peak, copies,
                   in_top, in_sample
            FROM {contexts}
        ),
        -- The sample: of each distinct window the first occurrence, with all copies.
        sampled AS (
            SELECT feature, split, token_hash, min(occurrence) AS occurrence, sum(copies) AS copies
            FROM keys WHERE in_sample GROUP BY feature, split, token_hash
            QUALIFY row_number() OVER (PARTITION BY feature, split ORDER BY token_hash)
                <= {kept_sample}
        ),
        -- The top: of each distinct window the highest peak, then the first occurrence.
        best AS (
            SELECT feature, split, occurrence, peak FROM keys WHERE in_top
            QUALIFY row_number() OVER (
                PARTITION BY feature, split, token_hash ORDER BY peak DESC, occurrence) = 1
        ),
        topped AS (
            SELECT feature, split, occurrence FROM best
            QUALIFY row_number() OVER (PARTITION BY feature, split ORDER BY peak DESC, occurrence)
                <= {kept_top}
        ),
        surviving AS (
            SELECT k.filename, k.file_row_number, coalesce(s.copies, 0)::BIGINT AS copies,
                   t.occurrence IS NOT NULL AS in_top, s.occurrence IS NOT NULL AS in_sample
            FROM keys k
            LEFT JOIN sampled s USING (feature, split, occurrence)
            LEFT JOIN topped t USING (feature, split, occurrence)
            WHERE s.occurrence IS NOT NULL OR t.occurrence IS NOT NULL
        )
        SELECT c.feature, c.split, c.token_hash, c.occurrence, c.peak, s.copies, s.in_top,
               s.in_sample, c.positions, c.activations
        FROM {contexts} c JOIN surviving s USING (filename, file_row_number)
        ORDER BY c.feature, c.split, c.token_hash, c.occurrence
        """,
    )
    _merge_background(connection, folder, pieces, number)
    # Sums of BIGINT are HUGEINT in DuckDB: exact.
    _copy(
        connection,
        folder / f"counts-{number}.parquet",
        f"""
        SELECT feature, split,
               sum(n_active_windows)::BIGINT AS n_active_windows, sum(n_active)::BIGINT AS n_active,
               (sum(sum_whole) + (sum(sum_fraction) >> 32))::BIGINT AS sum_whole,
               (sum(sum_fraction) & 4294967295)::BIGINT AS sum_fraction,
               (sum(sum_sq_whole) + (sum(sum_sq_fraction) >> 32))::BIGINT AS sum_sq_whole,
               (sum(sum_sq_fraction) & 4294967295)::BIGINT AS sum_sq_fraction
        FROM {_read(pieces, f"counts-{number}")} GROUP BY feature, split ORDER BY feature, split
        """,
    )
    _copy(
        connection,
        folder / f"features-{number}.parquet",
        f"""
        WITH cells AS (
            SELECT feature, max_activation, unnest(histogram) AS n,
                   generate_subscripts(histogram, 1) AS bin
            FROM {_read(pieces, f"features-{number}")}
        ),
        bins AS (
            SELECT feature, bin, sum(n)::BIGINT AS n, max(max_activation) AS max_activation
            FROM cells GROUP BY ALL
        )
        SELECT feature, max(max_activation) AS max_activation, list(n ORDER BY bin) AS histogram
        FROM bins GROUP BY feature ORDER BY feature
        """,
    )


def _merge_background(
    connection: duckdb.DuckDBPyConnection, folder: Path, pieces: Sequence[Part], number: int
) -> None:
    """The pool's windows; only those of which several parts hold copies are opened."""
    pooled = f"""
        SELECT b.*, count(*) OVER (PARTITION BY split, token_hash) > 1 AS is_copy
        FROM (SELECT * EXCLUDE ({_ARRAYS}), filename, file_row_number FROM {{source}}) b
        SEMI JOIN ({_pool(pieces)}) USING (split, token_hash)
    """
    source = _read(pieces, f"background-{number}", "filename = true, file_row_number = true")
    rows = f"""
        SELECT b.split, b.token_hash, b.occurrence, {_ARRAYS}
        FROM {source} b JOIN ({pooled.format(source=source)}) p USING (filename, file_row_number)
        WHERE {{which}} ORDER BY b.split, b.token_hash, b.occurrence
    """
    copies = connection.sql(rows.format(which="is_copy")).to_arrow_table()
    connection.register("folded", fold_background(copies))
    _copy(
        connection,
        folder / f"background-{number}.parquet",
        f"""
        SELECT * FROM ({rows.format(which="NOT is_copy")}) UNION ALL SELECT * FROM folded
        ORDER BY split, token_hash, occurrence
        """,
        "ROW_GROUP_SIZE 512",  # a row is of some tens of kilobytes
    )
    connection.unregister("folded")


def _merge_shared(
    connection: duckdb.DuckDBPyConnection, folder: Path, pieces: Sequence[Part]
) -> None:
    kept = " UNION ".join(
        f"SELECT occurrence FROM read_parquet('{folder / f'{table}-{number}.parquet'}')"
        for number in range(len(pieces[0].manifest["saes"]))
        for table in ("contexts", "background")
    )
    _copy(connection, folder / "pool.parquet", _pool(pieces) + " ORDER BY split, token_hash")
    _copy(
        connection,
        folder / "windows.parquet",
        f"""
        SELECT * FROM {_read(pieces, "windows")}
        WHERE occurrence IN ({kept}) OR occurrence IN
            (SELECT occurrence FROM read_parquet('{folder / "pool.parquet"}'))
        ORDER BY occurrence
        """,
    )
    _copy(
        connection,
        folder / "totals.parquet",
        f"""
        SELECT split, sum(n_documents)::BIGINT AS n_documents, sum(n_windows)::BIGINT AS n_windows,
               sum(n_tokens)::BIGINT AS n_tokens
        FROM {_read(pieces, "totals")} GROUP BY split ORDER BY split
        """,
    )
    for table, order in (("chunks", "chunk"), ("fidelity", "sae, chunk")):
        query = f"SELECT * FROM {_read(pieces, table)} ORDER BY {order}"
        _copy(connection, folder / f"{table}.parquet", query)


def _pool(pieces: Sequence[Part]) -> str:
    limit = per_split(pieces[0].manifest["kept"]["background"])
    return f"""
        SELECT split, token_hash, min(occurrence) AS occurrence, sum(copies)::BIGINT AS copies
        FROM {_read(pieces, "pool")} GROUP BY split, token_hash
        QUALIFY row_number() OVER (PARTITION BY split ORDER BY token_hash) <= {limit}
    """


def _read(pieces: Sequence[Part], table: str, options: str = "") -> str:
    files = ", ".join(f"'{part.file(table)}'" for part in pieces)
    return f"read_parquet([{files}]{', ' + options if options else ''})"


def _copy(connection: duckdb.DuckDBPyConnection, file: Path, query: str, *options: str) -> None:
    written = ", ".join(("FORMAT parquet", "COMPRESSION lz4_raw", *options))
    connection.execute(f"COPY ({query}) TO '{file}' ({written})")


def per_split(sizes: Sequence[int]) -> str:
    """An SQL expression: the size that belongs to the row's `split`."""
    return "CASE split " + " ".join(f"WHEN {i} THEN {n}" for i, n in enumerate(sizes)) + " END"
