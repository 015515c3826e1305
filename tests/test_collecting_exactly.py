"""Collecting, from chunks to tables, against the slow twin that keeps every activation."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scopenote.extract import background_pool, fidelity, part_tables, sketches, windows
from scopenote.extract.collect_job import CollectJob
from scopenote.extract.collector import CollectedPart
from scopenote.extract.corpus import Document
from scopenote.extract.sites import Site
from scopenote.extract.sketches import SketchSizes
from scopenote.extract.windows import Chunk, WindowShape, cut_chunks, tokenize_chunk
from scopenote.store import absorb as absorb_module
from scopenote.store import background
from scopenote.store.absorb import absorb_collected
from scopenote.store.database import open_work
from scopenote.store.errors import PartConflict
from scopenote.store.parts import Part, write_part
from scopenote.store.splits import document_id
from scopenote.store.tables import prepare_tables

from .brute_force import expected_tables, make_job

COLUMNS = {
    "windows": "window_id, doc_id, split, start, token_ids, prefix_token_ids, copies, "
    "is_background",
    "contexts": "sae_id, feature, split, kind, rank, window_id, max_activation, positions, "
    "activations, weight, copies",
    "background": "sae_id, feature, window_id, positions, activations, split",
    "feature_splits": "sae_id, feature, split, n_windows, n_active_windows, n_tokens, n_active, "
    "sum, sum_sq",
    "features": "sae_id, feature, n_active, density, max_activation, mean_activation, histogram",
}

SIZES = SketchSizes(top=(2, 1, 2), sample=(2, 3, 3), background=(3, 2, 4))
SHAPE = WindowShape(window_tokens=3, prefix_tokens=2, sequence_tokens=8, seed=7)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Chunks of two documents, constant ranking and pruning: little text goes through it all."""
    monkeypatch.setattr(windows, "CHUNK_DOCUMENTS", 2)
    monkeypatch.setattr(part_tables, "_SPARE_WINDOWS", 0)
    monkeypatch.setattr(part_tables, "_WINDOWS_AT_ONCE", 3)
    monkeypatch.setattr(background_pool, "_SPARE_WINDOWS", 0)
    monkeypatch.setattr(background, "_BYTES_AT_ONCE", 50)
    monkeypatch.setattr(sketches, "_LEAST_PENDING", 4)
    yield


def as_chunks(texts: list[str]) -> list[Chunk]:
    return list(cut_chunks(Document(text, document_id(text)) for text in texts))


def collect(job: CollectJob, chunks: list[Chunk], parts: Path) -> Part:
    tokenized = [tokenize_chunk(c, job.model.tokenizer, job.model.name, job.shape) for c in chunks]
    *_, part = job.collect(tokenized)
    assert isinstance(part, CollectedPart)
    rows = part.tables["chunks"].to_pylist()
    return write_part(parts, job.part_id(rows), "collect", part.tables, job.manifest(rows))


def no_pieces() -> pa.Table:
    return pa.table({"token_id": [4], "text": ["a"], "bytes": [b"a"]})


def absorb(connection: duckdb.DuckDBPyConnection, parts: Path) -> None:
    absorb_collected(connection, parts, no_pieces)


def read_tables(connection: duckdb.DuckDBPyConnection) -> dict[str, list[tuple[Any, ...]]]:
    return {
        table: connection.execute(f"SELECT {columns} FROM {table}").fetchall()
        for table, columns in COLUMNS.items()
    }


def in_order(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return sorted(rows, key=repr)


def collect_in(
    job: CollectJob, groups: list[list[list[Chunk]]]
) -> dict[str, list[tuple[Any, ...]]]:
    """The tables, where each inner list of chunks is a part and each outer one an absorption."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        with open_work(run) as work:
            for group in groups:
                for chunks in group:
                    collect(job, chunks, run / "parts")
                absorb(work, run / "parts")
            return read_tables(work)


# Few letters and short texts: windows repeat within and across documents and splits.
texts = st.lists(
    st.text("abc", min_size=0, max_size=14).map(lambda t: t or "a"), min_size=1, max_size=14
)


def with_examples(n: int) -> settings:
    return settings(
        max_examples=n,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


@st.composite
def collections(draw: st.DrawFn) -> tuple[CollectJob, list[Chunk]]:
    widths = draw(st.sampled_from([(4,), (3, 2)]))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    job = make_job(draw(st.integers(0, 10_000)), widths, SHAPE, SIZES, dtype)
    return job, as_chunks(draw(texts))


def check_one_part(job: CollectJob, chunks: list[Chunk]) -> None:
    assert_same(collect_in(job, [[chunks]]), expected_tables(job, chunks))


def assert_same(
    found: dict[str, list[tuple[Any, ...]]], expected: dict[str, list[tuple[Any, ...]]]
) -> None:
    for table in COLUMNS:
        assert in_order(found[table]) == in_order(expected[table]), table


def check_any_cutting(job: CollectJob, chunks: list[Chunk], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(chunks))
    part_of = [data.draw(st.integers(0, 3)) for _ in shuffled]
    parts = [[c for c, p in zip(shuffled, part_of, strict=True) if p == n] for n in range(4)]
    parts = [part for part in parts if part]
    # Some are offered again: at once, or when they have long been absorbed.
    again = data.draw(st.lists(st.sampled_from(parts), max_size=2))
    parts = [part for part in parts if data.draw(st.booleans()) or part not in again] + again
    cut = data.draw(st.integers(0, len(parts)))
    groups = [group for group in (parts[:cut], parts[cut:], again) if group]
    assert_same(collect_in(job, groups), expected_tables(job, chunks))


@with_examples(5)
@given(drawn=collections())
def test_one_part_gives_the_tables_of_the_brute_force_reference(
    drawn: tuple[CollectJob, list[Chunk]],
) -> None:
    check_one_part(*drawn)


@pytest.mark.slow
@with_examples(50)
@given(drawn=collections())
def test_one_part_gives_the_tables_of_the_brute_force_reference_in_many_cases(
    drawn: tuple[CollectJob, list[Chunk]],
) -> None:
    check_one_part(*drawn)


@with_examples(5)
@given(drawn=collections(), data=st.data())
def test_any_cutting_into_parts_absorbed_in_any_order_gives_the_same_tables(
    drawn: tuple[CollectJob, list[Chunk]], data: st.DataObject
) -> None:
    check_any_cutting(*drawn, data)


@pytest.mark.long
@with_examples(50)
@given(drawn=collections(), data=st.data())
def test_any_cutting_into_parts_gives_the_same_tables_in_many_cases(
    drawn: tuple[CollectJob, list[Chunk]], data: st.DataObject
) -> None:
    check_any_cutting(*drawn, data)


@with_examples(5)
@given(drawn=collections())
def test_no_score_or_select_window_shares_document_or_tokens_with_an_earlier_split(
    drawn: tuple[CollectJob, list[Chunk]],
) -> None:
    job, chunks = drawn
    rows = collect_in(job, [[chunks]])["windows"]
    documents: dict[str, set[str]] = {}
    tokens: dict[tuple[int, ...], set[str]] = {}
    for _, doc_id, split, _, token_ids, *_ in rows:
        documents.setdefault(doc_id, set()).add(split)
        tokens.setdefault(tuple(token_ids), set()).add(split)
    assert all(len(splits) == 1 for splits in documents.values())
    assert all(len(splits) == 1 for splits in tokens.values())


def test_repeated_windows_across_splits_do_occur_in_what_the_properties_draw() -> None:
    chunks = as_chunks(["abcabc", "abcab", "abc", "abcb", "abca", "abcc", "abcaa", "abcbb"])
    job = make_job(0, (4,), SHAPE, SIZES)
    from .brute_force import list_occurrences

    splits_of: dict[int, set[int]] = {}
    for occurrence in list_occurrences(job, chunks):
        splits_of.setdefault(occurrence.token_hash, set()).add(occurrence.split)
    assert any(len(splits) > 1 for splits in splits_of.values())


def test_sums_do_not_depend_on_the_cutting_where_floating_point_would() -> None:
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcdefgh"), 60)) for _ in range(12)]
    job, chunks = make_job(1, (6,), SHAPE, SIZES), as_chunks(texts)
    for sae in job.saes:
        sae.encoder.mul_(0.1)  # no longer whole numbers
    one = collect_in(job, [[chunks]])
    many = collect_in(job, [[[c] for c in reversed(chunks)]])
    assert one["feature_splits"] == many["feature_splits"]
    assert in_order(one["features"]) == in_order(many["features"])


def test_a_part_offered_twice_is_absorbed_once(tmp_path: Path) -> None:
    job, chunks = make_job(3, (4,), SHAPE, SIZES), as_chunks(["abcab", "cab", "bbac", "acac"])
    with open_work(tmp_path) as work:
        collect(job, chunks, tmp_path / "parts")
        absorb(work, tmp_path / "parts")
        before = read_tables(work)
        collect(job, chunks, tmp_path / "parts")
        absorb(work, tmp_path / "parts")
        assert read_tables(work) == before


def test_chunks_cut_another_way_are_refused(tmp_path: Path) -> None:
    job, chunks = make_job(3, (4,), SHAPE, SIZES), as_chunks(["abcab", "cab", "bbac", "acac"])
    with open_work(tmp_path) as work:
        collect(job, chunks, tmp_path / "parts")
        absorb(work, tmp_path / "parts")
        before = read_tables(work)
        collect(job, chunks[:1], tmp_path / "parts")
        with pytest.raises(PartConflict, match="cut in another way"):
            absorb(work, tmp_path / "parts")
        assert read_tables(work) == before


def test_parts_of_another_configuration_are_refused_and_the_difference_is_named(
    tmp_path: Path,
) -> None:
    chunks = as_chunks(["abcab", "cab", "bbac", "acac"])
    other = WindowShape(window_tokens=3, prefix_tokens=2, sequence_tokens=8, seed=8)
    with open_work(tmp_path) as work:
        collect(make_job(3, (4,), SHAPE, SIZES), chunks[:1], tmp_path / "parts")
        absorb(work, tmp_path / "parts")
        collect(make_job(3, (4,), other, SIZES), chunks[1:], tmp_path / "parts")
        with pytest.raises(PartConflict, match="seed = 8"):
            absorb(work, tmp_path / "parts")


def test_an_absorption_that_dies_before_its_commit_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, chunks = make_job(3, (4,), SHAPE, SIZES), as_chunks(["abcab", "cab", "bbac", "acac"])
    with open_work(tmp_path) as work:
        collect(job, chunks[:1], tmp_path / "parts")
        absorb(work, tmp_path / "parts")
        before = read_tables(work)
        collect(job, chunks[1:], tmp_path / "parts")
        from scopenote.store import absorb as absorbing

        def die(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(absorbing, "_add_pieces", die)
            with pytest.raises(KeyboardInterrupt):
                absorb(work, tmp_path / "parts")
        assert read_tables(work) == before
        absorb(work, tmp_path / "parts")
        for table, rows in expected_tables(job, chunks).items():
            assert in_order(read_tables(work)[table]) == in_order(rows)


def test_where_little_memory_is_too_little_absorbing_takes_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, chunks = make_job(3, (4,), SHAPE, SIZES), as_chunks(["abcabc", "bca", "ccab", "aab"])
    asked: list[None] = []

    def prepared(*arguments: Any) -> None:
        asked.append(None)
        prepare_tables(*arguments)

    monkeypatch.setattr(absorb_module, "prepare_tables", prepared)
    monkeypatch.setattr(absorb_module, "_MIB_PER_PROCESSOR", 1)
    collect(job, chunks, tmp_path / "parts")
    with open_work(tmp_path) as work:
        before = work.execute("SELECT current_setting('memory_limit')").fetchall()
        absorb(work, tmp_path / "parts")
        assert len(asked) == 2  # the first time DuckDB gave up
        assert_same(read_tables(work), expected_tables(job, chunks))
        assert work.execute("SELECT current_setting('memory_limit')").fetchall() == before


@with_examples(5)
@given(seed=st.integers(0, 10_000), text=texts, shuffled=st.permutations(range(3)))
def test_saes_collected_in_several_passes_give_the_tables_of_one(
    seed: int, text: list[str], shuffled: list[int]
) -> None:
    job, chunks = make_job(seed, (4, 2, 3), SHAPE, SIZES), as_chunks(text)
    passes = (tuple(sorted(shuffled[:2])), tuple(shuffled[2:]))
    assert_same(collect_in(replace(job, passes=passes), [[chunks]]), expected_tables(job, chunks))


@with_examples(5)
@given(drawn=collections(), room=st.integers(9, 24))
def test_batches_for_which_the_device_has_no_room_are_halved_and_nothing_else_changes(
    drawn: tuple[CollectJob, list[Chunk]], room: int
) -> None:
    job, chunks = drawn
    read = job.model.read_sites

    def read_if_there_is_room(
        ids: torch.Tensor, sites: list[Site], position_ids: torch.Tensor
    ) -> dict[Site, torch.Tensor]:
        if ids.numel() > room:
            raise torch.OutOfMemoryError("no room")
        return read(ids, sites, position_ids)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job.model, "read_sites", read_if_there_is_room)
        found = collect_in(job, [[chunks]])
    assert_same(found, expected_tables(job, chunks))


def test_reconstruction_error_and_mean_are_those_of_the_dense_arithmetic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fidelity, "FIDELITY_STRIDE", 1)
    job, chunks = make_job(5, (6,), SHAPE, SIZES), as_chunks(["abcabfgh", "cabdde", "hbbac"])
    collect(job, chunks, tmp_path / "parts")
    with open_work(tmp_path) as work:
        absorb(work, tmp_path / "parts")
        ((found, mean),) = work.execute("SELECT fvu, mean_vector FROM saes").fetchall()
    from .brute_force import SITE, torch

    sae, xs = job.saes[0], []
    for chunk in chunks:
        for document in chunk.documents:
            ids = job.model.tokenizer([document.text])["input_ids"][0]
            for begin in range(0, len(ids), 6):
                inputs = torch.tensor([[2, *ids[begin : begin + 6]]])
                xs.append(job.model.read_sites(inputs, [SITE])[SITE][0, 1:])
    x = torch.cat(xs).double()
    error = x - sae.decode(sae.encode(x.float())).double()
    expected = error.square().sum() / (x - x.mean(0)).square().sum()
    assert found == pytest.approx(float(expected), rel=1e-9)
    assert mean == pytest.approx(x.mean(0).tolist(), rel=1e-6, abs=1e-9)


@with_examples(2)
@given(seed=st.integers(0, 10_000), more=st.lists(st.text("abc", min_size=3, max_size=14)))
def test_windows_that_labels_were_shown_stay_and_their_text_is_never_scored(
    seed: int, more: list[str]
) -> None:
    job = make_job(seed, (4,), SHAPE, SIZES)
    # The same windows again in other documents, which fall into all splits.
    copies = [f"abcabc{end}" for end in ("", "a", "b", "c", "aa", "bb", "cc")]
    chunks = as_chunks(["abcabcab", "cabbac", "bbcab", "caab", *copies, *more])
    shown = "SELECT w.* EXCLUDE (copies, is_background) FROM windows w SEMI JOIN label_contexts"
    with tempfile.TemporaryDirectory() as folder, open_work(Path(folder)) as work:
        for number, chunk in enumerate(chunks):
            collect(job, [chunk], Path(folder) / "parts")
            absorb(work, Path(folder) / "parts")
            if number == 3:
                work.execute(
                    "INSERT INTO label_contexts SELECT 'label', window_id FROM windows "
                    "WHERE split = 'explain'"
                )
                before = work.execute(f"{shown} USING (window_id)").fetchall()
                assert before
        assert in_order(work.execute(f"{shown} USING (window_id)").fetchall()) == in_order(before)
        scored = work.execute(
            f"SELECT count(*) FROM windows WHERE split <> 'explain' AND token_ids IN "
            f"(SELECT token_ids FROM ({shown} USING (window_id)))"
        ).fetchall()
        assert scored == [(0,)]
