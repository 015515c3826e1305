"""Absorbing: the coordinator turns finished parts into tables, each part once."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from .current_features import note_touched
from .database import now
from .errors import PartConflict
from .facts import REVISION, get_meta, set_meta, transaction
from .inbox import inbox_names, read_inbox
from .inbox_rows import merge_rows
from .merging import merge_parts
from .parts import Part, list_parts, read_part
from .records import content_hash
from .tables import build_tables, drop_prepared, prepare_tables

# What DuckDB may hold while it absorbs, beside 10 KiB for a feature.
_MIB_PER_PROCESSOR = 128


@dataclass(frozen=True, slots=True)
class Absorbed:
    """What an absorption added."""

    n_parts: int
    n_chunks: int
    n_tokens: int


def absorb_collected(
    connection: duckdb.DuckDBPyConnection, parts: Path, token_pieces: Callable[[], pa.Table]
) -> Absorbed:
    """Absorbs the collected parts that are not in the database yet.

    Args:
        connection: the working copy.
        parts: the run's folder of parts.
        token_pieces: gives an Arrow table (token_id, text, bytes) of the tokenizer's
            vocabulary; asked once.

    Raises:
        PartConflict: a part was made under another configuration, or cuts text that is
            already absorbed in another way.
    """
    absorbed = absorbed_ids(connection)
    new = [p for p in list_parts(parts) if p.stage == "collect" and p.part_id not in absorbed]
    before = get_meta(connection, "merged_part")
    drop_prepared(connection)
    if not new:
        _remove_spent(connection, parts)
        return Absorbed(0, 0, 0)
    refuse_conflicts(connection, ((str(part.folder), part.manifest) for part in new))
    merged_before = [read_part(parts / before)] if before else []
    pieces = [*merged_before, *new]
    try:
        with _little_memory(connection, new[0]):
            _absorb_new(connection, parts, pieces, new, token_pieces)
    except duckdb.OutOfMemoryException:
        # Nothing is half done: what is prepared is prepared again, the rest is a transaction.
        _absorb_new(connection, parts, pieces, new, token_pieces)
    _remove_spent(connection, parts)
    chunks = [chunk for part in new for chunk in part.manifest["chunks"]]
    return Absorbed(len(new), len(chunks), sum(chunk["n_tokens"] for chunk in chunks))


def _absorb_new(
    connection: duckdb.DuckDBPyConnection,
    parts: Path,
    pieces: Sequence[Part],
    new: Sequence[Part],
    token_pieces: Callable[[], pa.Table],
) -> None:
    merged = merge_parts(connection, parts, pieces)
    prepare_tables(connection, merged)
    with transaction(connection):
        build_tables(connection, merged)
        _add_pieces(connection, merged, token_pieces)
        for part in new:
            _record_part(connection, part)
            connection.execute(
                "INSERT INTO chunks SELECT chunk, chunk_id, n_documents, n_windows, n_tokens, ? "
                f"FROM read_parquet('{part.file('chunks')}')",
                [part.part_id],
            )
        set_meta(connection, "merged_part", merged.part_id)
        set_meta(connection, "collect_identity", _identity(merged))
        set_meta(connection, "histogram_edges", json.dumps(merged.manifest["histogram_edges"]))


@contextmanager
def _little_memory(connection: duckdb.DuckDBPyConnection, part: Part) -> Iterator[None]:
    """Keeps DuckDB from holding what it has written, for as long as there is memory at all."""
    n_features = sum(sae["width"] for sae in part.manifest["saes"])
    limit = _MIB_PER_PROCESSOR * (os.cpu_count() or 1) + n_features // 100
    connection.execute(f"SET memory_limit = '{limit}MiB'")
    try:
        yield
    finally:
        connection.execute("RESET memory_limit")


def absorb_results(connection: duckdb.DuckDBPyConnection, parts: Path, stage: str) -> int:
    """Absorbs the finished parts of a stage that gives results, all in one transaction.

    A row that is there already stays as it is; those of `rescore` take its place, and so do new
    scores that of one that text has overtaken.

    Returns:
        How many parts were absorbed; they are then removed.
    """
    found = [part for part in list_parts(parts) if part.stage == stage]
    absorbed = absorbed_ids(connection)
    new = [part for part in found if part.part_id not in absorbed]
    if new:
        before = get_meta(connection, REVISION)
        with transaction(connection):
            for table, key in _RESULT_TABLES[stage].items():
                files = [str(part.file(table)) for part in new]
                if table == "scores":
                    which = "true" if stage == "rescore" else "stale_since IS NOT NULL"
                    connection.execute(
                        f"DELETE FROM {table} WHERE {which} AND ({key}) IN "
                        f"(SELECT ({key}) FROM read_parquet(?))",
                        [files],
                    )
                connection.execute(
                    # A row that is there already is the same row: ids are content hashes.
                    f"""
                    INSERT INTO {table} BY NAME
                    SELECT * FROM read_parquet(?) ANTI JOIN {table} USING ({key})
                    """,
                    [files],
                )
            for part in new:
                _record_part(connection, part)
            _note_checked(connection, new)
            _note_features(connection, before, new, stage)
    for part in found:
        shutil.rmtree(part.folder)
    return len(new)


def _note_features(
    connection: duckdb.DuckDBPyConnection, before: str | None, parts: Sequence[Part], stage: str
) -> None:
    """Notes whose labels or scores these parts have brought."""
    tables = _RESULT_TABLES[stage]
    keys = "SELECT sae_id, feature FROM labels WHERE false"
    files: list[Any] = []
    if "labels" in tables or "scores" in tables:
        table = "labels" if "labels" in tables else "scores"
        keys = (
            "SELECT sae_id, feature FROM labels "
            "WHERE label_id IN (SELECT label_id FROM read_parquet(?))"
        )
        files = [[str(part.file(table)) for part in parts]]
    note_touched(connection, before, keys, files)


def _note_checked(connection: duckdb.DuckDBPyConnection, parts: Sequence[Part]) -> None:
    """Notes up to which text labels that were there have been looked at."""
    files = [str(part.file("checked")) for part in parts if part.file("checked").exists()]
    if files:
        connection.execute(
            """
            UPDATE labels SET text_state = checked.text_state FROM read_parquet(?) checked
            WHERE labels.label_id = checked.label_id
            """,
            [files],
        )


# Of labels with these ids, as JSON.
_WRITTEN = (
    "SELECT sae_id, feature FROM labels "
    "WHERE label_id IN (SELECT unnest(from_json(?, '[\"VARCHAR\"]')))"
)


def absorb_inbox(connection: duckdb.DuckDBPyConnection, inbox: Path) -> int:
    """Merges what people wrote into the tables, all in one transaction; how many files it was.

    The files stay: until this is published readers have them from there. After that
    `remove_absorbed` takes them away.
    """
    absorbed = absorbed_ids(connection)
    new = [file for file in read_inbox(inbox) if file.name not in absorbed]
    if new:
        names = [file.name for file in new]
        before = get_meta(connection, REVISION)
        rows = [row for file in new for row in (*file.labels, *file.votes)]
        written = [row["label_id"] for row in rows]
        with transaction(connection):
            merge_rows(connection, new)
            connection.execute(
                "INSERT INTO parts SELECT unnest($names), 'inbox', $now",
                {"names": names, "now": now()},
            )
            set_meta(connection, REVISION, content_hash(names))
            note_touched(connection, before, _WRITTEN, [json.dumps(written)])
    return len(new)


def remove_absorbed(connection: duckdb.DuckDBPyConnection, inbox: Path) -> None:
    """Removes the files of the inbox that are in the tables, which have to be published by now."""
    absorbed = absorbed_ids(connection)
    for name in inbox_names(inbox):
        if name in absorbed:
            (inbox / name).unlink(missing_ok=True)


_SCORE_KEY = "label_id, scorer, simulator, metric, split"
_RESULT_TABLES = {
    "explain": {"labels": "label_id", "label_contexts": "label_id, window_id"},
    "score": {
        "scores": _SCORE_KEY,
        "simulations": "label_id, simulator, scorer, window_id",
    },
    "rescore": {"scores": _SCORE_KEY},
    "embed": {"embeddings": "label_id, model"},
    "gold": {"gold_scores": "simulator, item, run_id"},
}


def absorbed_ids(connection: duckdb.DuckDBPyConnection) -> set[str]:
    """The parts that were absorbed."""
    return {row[0] for row in connection.execute("SELECT part_id FROM parts").fetchall()}


def collected_identity(connection: duckdb.DuckDBPyConnection) -> dict[str, Any] | None:
    """What all collected parts here have in common; None where none is absorbed."""
    identity = get_meta(connection, "collect_identity")
    return None if identity is None else dict(json.loads(identity))


def _record_part(connection: duckdb.DuckDBPyConnection, part: Part) -> None:
    set_meta(connection, REVISION, part.part_id)
    connection.execute("INSERT INTO parts VALUES (?, ?, ?)", [part.part_id, part.stage, now()])


def _remove_spent(connection: duckdb.DuckDBPyConnection, parts: Path) -> None:
    """Removes collected parts whose content the merged part holds."""
    kept = get_meta(connection, "merged_part")
    absorbed = absorbed_ids(connection)
    for part in list_parts(parts):
        spent = part.part_id in absorbed if part.stage == "collect" else part.stage == "merged"
        if spent and part.part_id != kept:
            shutil.rmtree(part.folder)


def refuse_conflicts(
    connection: duckdb.DuckDBPyConnection, new: Iterable[tuple[str, Mapping[str, Any]]]
) -> None:
    """Makes sure that these parts can be absorbed beside what is, and beside each other.

    Args:
        connection: the working copy.
        new: where each part lies, and its manifest.

    Raises:
        PartConflict: they cannot.
    """
    identity = collected_identity(connection)
    taken = dict(connection.execute("SELECT chunk, chunk_id FROM chunks").fetchall())
    for where, manifest in new:
        identity = identity or manifest["identity"]
        refuse_other_configuration(where, identity, manifest["identity"])
        for chunk in manifest["chunks"]:
            if chunk["chunk"] in taken:
                raise PartConflict(
                    "A part holds text that is absorbed already, cut in another way.",
                    where=where,
                    found=f"chunk {chunk['chunk']} as {chunk['chunk_id']}",
                    expected="chunks that no other part holds",
                    mend="remove the part",
                )
            taken[chunk["chunk"]] = chunk["chunk_id"]


def refuse_other_configuration(
    where: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> None:
    """Makes sure that a part was collected under this run's configuration.

    Args:
        where: the part lies.
        ours: what this run's parts have in common, as JSON gives it.
        theirs: the same of the part.

    Raises:
        PartConflict: it was not.
    """
    keys = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
    if keys:
        raise PartConflict(
            "A part was collected under another configuration than this run's.",
            where=where,
            found=", ".join(f"{key} = {theirs.get(key)}" for key in keys),
            expected=", ".join(f"{key} = {ours.get(key)}" for key in keys),
            mend="collect into another folder with --out, or remove the part",
        )


def _identity(part: Part) -> str:
    return json.dumps(part.manifest["identity"], sort_keys=True)


def _add_pieces(
    connection: duckdb.DuckDBPyConnection, merged: Part, token_pieces: Callable[[], pa.Table]
) -> None:
    tokenizer = merged.manifest["identity"]["model"]
    known = "SELECT 1 FROM pieces WHERE tokenizer = ? LIMIT 1"
    if connection.execute(known, [tokenizer]).fetchall():
        return
    connection.register("new_pieces", token_pieces())
    connection.execute(
        "INSERT INTO pieces SELECT ?, token_id, text, bytes FROM new_pieces", [tokenizer]
    )
    connection.unregister("new_pieces")
