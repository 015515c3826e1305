"""The step of the flow that measures what SAEs cost: once, when asked, and on the first text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pytest
from scopenote.extract import windows
from scopenote.extract.collect_job import CollectJob
from scopenote.extract.corpus import RowCounts, read_documents
from scopenote.extract.models import load_model
from scopenote.extract.next_token_loss import (
    LossText,
    loss_text,
    own_loss,
    spliced_loss,
    zeroed_loss,
)
from scopenote.extract.sae_sources import SaeSource
from scopenote.extract.saes import load_sae
from scopenote.extract.windows import Chunk, cut_chunks, tokenize_chunk
from scopenote.flows import measure_losses as flow
from scopenote.flows.collect_setup import corpus_source, sae_sources, window_shape
from scopenote.flows.config import Config, differing_keys, load_config
from scopenote.flows.measure_losses import MeasuredLosses, measure_losses, measure_sae
from scopenote.store.database import open_work
from scopenote.store.errors import CorpusError, SaeError
from scopenote.store.losses import MissingLosses, SaeLosses, missing_losses, write_losses
from scopenote.store.run_folder import RunFolder
from scopenote.store.status import read_status

from .brute_force import make_job
from .test_decoder_effects import SHAPE, SIZES, collect_and_absorb, quiet
from .tiny_gemma import save_tiny_gemma, save_tiny_sae

TEXTS = ["the thing in a ring", "an anthem, then another", "in the end the ant ran", "then the man"]
LOSSES = "SELECT sae_id, loss, loss_spliced, loss_zeroed, n_loss_tokens FROM saes ORDER BY sae_id"
# Fewer than the first two of four chunks have.
ENOUGH = 20


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    save_tiny_gemma(folder / "tiny-gemma-2")
    save_tiny_sae(folder, "res", 1, 40, 16)
    save_tiny_sae(folder, "mlp", 1, 30, 16)
    save_tiny_sae(folder, "mlp", 1, 20, 16, seed=1)
    return folder


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "CHUNK_DOCUMENTS", 1)
    monkeypatch.setattr(flow, "LOSS_TOKENS", ENOUGH)
    # The task itself: Prefect's engine has nothing to do with what is measured.
    monkeypatch.setattr(flow, "measure_sae", measure_sae.fn)
    monkeypatch.setattr(flow, "as_is", lambda value: value)


@pytest.fixture
def config(weights: Path, tmp_path: Path) -> Config:
    rows = [json.dumps({"text": text}) for text in TEXTS]
    (tmp_path / "corpus.jsonl").write_text("\n".join(rows))
    saes = sorted(str(file) for file in weights.rglob("params.npz"))
    (tmp_path / "config.toml").write_text(
        f"""
        [model]
        name = "{weights / "tiny-gemma-2"}"
        device = "cpu"
        [saes]
        paths = {json.dumps(saes)}
        [corpus]
        path = "corpus.jsonl"
        [collect]
        loss_increase = true
        """
    )
    return load_config(tmp_path / "config.toml")


@pytest.fixture
def folder(config: Config, tmp_path: Path) -> RunFolder:
    """A run whose text has been collected, as far as this step looks."""
    run = RunFolder(tmp_path)
    add_chunks(run, chunks_of(config, run))
    model = load_model(config.model.name, [], "cpu")
    with open_work(run.path) as work:
        for source in sae_sources(config):
            hashed = load_sae(source, model.config).content_hash
            work.execute(
                "INSERT INTO saes (sae_id, content_hash) VALUES (?, ?)", [source.sae_id, hashed]
            )
    return run


def chunks_of(config: Config, folder: RunFolder) -> list[Chunk]:
    return list(cut_chunks(read_documents(corpus_source(config, folder), RowCounts())))


def add_chunks(run: RunFolder, chunks: list[Chunk]) -> None:
    with open_work(run.path) as work:
        for chunk in chunks:
            # In some 15 tokens each; what counts is that two of them are enough.
            work.execute(
                "INSERT INTO chunks (chunk, chunk_id, n_documents, n_tokens) VALUES (?, ?, ?, 15)",
                [chunk.index, chunk.chunk_id, len(chunk.documents)],
            )


def measure(config: Config, folder: RunFolder) -> MeasuredLosses:
    return measure_losses(config, folder, sae_sources(config), quiet())


def read(folder: RunFolder, query: str = LOSSES) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(folder.path / "work.duckdb"), read_only=True) as connection:
        return connection.execute(query).fetchall()


def forbid_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(flow, "load_model", refuse)


def test_nobody_who_did_not_ask_waits_for_it(
    config: Config, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_loading(monkeypatch)
    collect = config.collect.model_copy(update={"loss_increase": False})
    assert measure(config.model_copy(update={"collect": collect}), folder) == MeasuredLosses()
    assert {row[1:] for row in read(folder)} == {(None,) * 4}


def test_it_may_be_asked_for_later(config: Config) -> None:
    collect = config.collect.model_copy(update={"loss_increase": False})
    assert differing_keys(config, config.model_copy(update={"collect": collect})) == {}


def first_text(config: Config, run: RunFolder) -> tuple[Any, LossText]:
    model = load_model(config.model.name, [], "cpu")
    shape = window_shape(config)
    first = [
        tokenize_chunk(chunk, model.tokenizer, model.name, shape)
        for chunk in chunks_of(config, run)[:2]
    ]
    return model, loss_text(first, model, config.model.max_batch_tokens, n_tokens=ENOUGH)


def test_each_sae_gets_its_losses_on_the_first_text_and_only_once(
    config: Config, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = measure(config, folder)
    model, text = first_text(config, folder)
    sources: dict[str, SaeSource] = {source.sae_id: source for source in sae_sources(config)}
    rows = read(folder)
    assert len(rows) == 3
    for sae_id, own, spliced, zeroed, n_tokens in rows:
        sae = load_sae(sources[sae_id], model.config)
        assert own == own_loss(model, text)
        assert spliced == spliced_loss(model, text, sae)
        assert zeroed == zeroed_loss(model, text, sae.target)
        assert n_tokens == text.n_predictions
    assert len({spliced for _, _, spliced, *_ in rows}) == 3
    (note,) = measured.notes
    increases = sorted(row[2] - row[1] for row in rows)
    low, high = (f"{value:+.4f}".replace("-", "−") for value in (increases[0], increases[-1]))
    assert f"{rows[0][1]:.4f} nats over {rows[0][4]} tokens" in note
    assert f"{low} to {high} with" in note

    forbid_loading(monkeypatch)
    assert measure(config, folder) == MeasuredLosses()
    assert read(folder) == rows


def test_what_a_run_that_died_had_measured_is_not_measured_again(
    config: Config, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def dies(bench: Any, sae: Any) -> SaeLosses:
        seen.append(sae.sae_id)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return measure_sae.fn(bench, sae)

    monkeypatch.setattr(flow, "measure_sae", dies)
    with pytest.raises(KeyboardInterrupt):
        measure(config, folder)
    measure(config, folder)
    assert sorted(seen[2:]) == sorted({source.sae_id for source in sae_sources(config)} - {seen[0]})
    resumed = read(folder)
    with open_work(folder.path) as work:
        work.execute("DELETE FROM meta WHERE key LIKE 'losses %'")
    monkeypatch.setattr(flow, "measure_sae", measure_sae.fn)
    assert measure(config, folder).has_changed
    assert read(folder) == resumed


def test_an_sae_whose_file_has_changed_is_refused(config: Config, folder: RunFolder) -> None:
    with open_work(folder.path) as work:
        work.execute("UPDATE saes SET content_hash = 'another' WHERE sae_id LIKE '%res%'")
    with pytest.raises(SaeError, match="no longer the one"):
        measure(config, folder)


def test_text_that_has_changed_is_refused(config: Config, folder: RunFolder) -> None:
    file = Path(str(config.corpus.path))
    file.write_text(file.read_text().replace("anthem", "anther"))
    with pytest.raises(CorpusError, match="has changed"):
        measure(config, folder)


# --- when more text comes -----------------------------------------------------------------


@pytest.mark.parametrize("n_tokens", [10, 10**6])
def test_losses_stay_when_text_comes_and_are_missing_again_only_if_the_first_text_was_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_tokens: int
) -> None:
    monkeypatch.setattr(windows, "CHUNK_DOCUMENTS", 2)
    job: CollectJob = make_job(3, (4, 3), SHAPE, SIZES)
    folder = RunFolder(tmp_path)
    collect_and_absorb(job, folder, slice(0, 2))
    expected = [MissingLosses(sae.sae_id, sae.content_hash) for sae in job.saes]
    with open_work(folder.path) as work:
        assert missing_losses(work, n_tokens) == expected
        for number, each in enumerate(expected):
            write_losses(work, each, n_tokens, SaeLosses(1.5, 2.0 + number, 3.0, 7))
        assert missing_losses(work, n_tokens) == []
    before = read(folder)
    assert [row[1:] for row in before] == [(1.5, 2.0, 3.0, 7), (1.5, 3.0, 3.0, 7)]
    collect_and_absorb(job, folder, slice(2, None))
    assert read(folder) == before
    with open_work(folder.path) as work:
        assert missing_losses(work, n_tokens) == ([] if n_tokens == 10 else expected)


def test_the_status_works_out_what_was_recovered(tmp_path: Path) -> None:
    with open_work(tmp_path) as work:
        for name, losses in (
            ("a", (3.0, 3.5, 8.0, 99)),
            ("b", (3.0, 3.5, 2.0, 99)),
            ("c", (None, None, None, 0)),
        ):
            work.execute("INSERT INTO saes (sae_id, model) VALUES (?, 'm')", [name])
            write_losses(work, MissingLosses(name, "0"), 1, SaeLosses(*losses))
        a, b, c = read_status(work, tmp_path / "none").saes
        work.execute("ALTER TABLE saes DROP COLUMN loss_zeroed")
        assert read_status(work, tmp_path / "none").saes[0].loss is None
    assert a.loss is not None
    assert b.loss is not None
    assert (a.loss.increase, a.loss.recovered, a.loss.n_tokens) == (0.5, 0.9, 99)
    assert (b.loss.increase, b.loss.recovered) == (0.5, None)
    assert c.loss is None
