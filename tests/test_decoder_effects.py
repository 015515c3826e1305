"""Output tokens and cosine neighbours in the tables: absorbed once, and kept when text comes."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
import torch
from scopenote.extract import collect_job, windows
from scopenote.extract.collect_job import CollectJob
from scopenote.extract.decoder_neighbours import neighbours_table
from scopenote.extract.logit_effects import LogitEffects, effects_table, logit_effects
from scopenote.extract.models import SubjectModel, load_model
from scopenote.extract.passes import released
from scopenote.extract.sae_sources import SaeSource, locate_sae
from scopenote.extract.saes import Sae, load_sae
from scopenote.extract.sites import Site
from scopenote.extract.sketches import SketchSizes
from scopenote.extract.strongest import Strongest
from scopenote.extract.windows import WindowShape
from scopenote.flows import describe_features as flow
from scopenote.flows.config import Config, demo_config
from scopenote.flows.describe_features import describe_features, describe_part
from scopenote.flows.progress import Progress
from scopenote.store import decoder_effects as module
from scopenote.store.absorb import absorb_collected
from scopenote.store.cofiring import add_cofiring, missing_cofiring
from scopenote.store.database import open_work
from scopenote.store.decoder_effects import absorb_effects, missing_effects
from scopenote.store.errors import SaeError
from scopenote.store.parts import list_parts, write_part
from scopenote.store.run_folder import RunFolder

from .brute_force import make_job
from .test_collecting_exactly import as_chunks, collect
from .tiny_gemma import save_tiny_gemma, save_tiny_sae

SHAPE = WindowShape(window_tokens=3, prefix_tokens=2, sequence_tokens=8, seed=7)
SIZES = SketchSizes(top=(2, 1, 2), sample=(2, 3, 3), background=(9, 9, 9))
EFFECTS = (
    "SELECT sae_id, feature, top_tokens_positive, top_logits_positive, top_tokens_negative, "
    "top_logits_negative FROM features ORDER BY ALL"
)
COSINE = "SELECT * FROM neighbours WHERE kind = 'cosine' ORDER BY ALL"
TEXTS = ["abcabca", "abcab", "cbacba", "abcb", "bbca", "abccba", "abcaa", "abcbb", "caca", "bacb"]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "CHUNK_DOCUMENTS", 2)
    monkeypatch.setattr(module, "_FEATURES_PER_PART", 3)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


@pytest.fixture
def job() -> CollectJob:
    return make_job(3, (4, 3), SHAPE, SIZES)


def collect_and_absorb(job: CollectJob, folder: RunFolder, chunks: slice) -> None:
    collect(job, as_chunks(TEXTS)[chunks], folder.parts)
    with open_work(folder.path) as work:
        absorb_collected(work, folder.parts, two_pieces)


def two_pieces() -> pa.Table:
    return pa.table({"token_id": [4, 5], "text": ["a", " b"], "bytes": [b"a", b" b"]})


def write_effects(folder: RunFolder) -> None:
    """Made-up parts of whatever is missing; token 9 has no text."""
    with open_work(folder.path) as work:
        missing = [*missing_effects(work, "logits"), *missing_effects(work, "cosine")]
    for each in missing:
        rows = range(len(each.features))
        tokens = torch.tensor([[4, 9] for _ in rows])
        logits = torch.tensor([[2.0 + n, 1.0] for n in each.features])
        other = torch.tensor([[5, 4] for _ in rows])
        effects = LogitEffects(Strongest(logits, tokens), Strongest(logits, other))
        nearest = Strongest(torch.tensor([[0.5, -torch.inf] for _ in rows]), other - 4)
        table = (
            effects_table(each.features, effects)
            if each.kind == "logits"
            else neighbours_table(each.features, nearest)
        )
        manifest = {"sae_id": each.sae_id}
        write_part(folder.parts, each.part_id, each.kind, {each.kind: table}, manifest)


def read_all(folder: RunFolder, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(folder.path / "work.duckdb"), read_only=True) as connection:
        return connection.execute(query).fetchall()


def test_parts_are_absorbed_once_and_then_gone(job: CollectJob, folder: RunFolder) -> None:
    collect_and_absorb(job, folder, slice(None))
    write_effects(folder)
    with open_work(folder.path) as work:
        assert absorb_effects(work, folder.parts) == 6  # of 4 and 3 features, each kind
        assert absorb_effects(work, folder.parts) == 0
        assert missing_effects(work, "logits") == missing_effects(work, "cosine") == []
    assert {part.stage for part in list_parts(folder.parts)} == {"collect"}
    first, *_ = read_all(folder, EFFECTS)
    assert first[1:] == (0, ["a", "<9>"], [2.0, 1.0], [" b", "a"], [-2.0, -1.0])
    assert read_all(folder, COSINE)[0][1:] == (0, "cosine", 1, 1, 0.5, None)


def test_a_part_found_after_a_death_between_absorbing_and_removing_is_not_absorbed_twice(
    job: CollectJob, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect_and_absorb(job, folder, slice(None))
    write_effects(folder)
    with open_work(folder.path) as work:
        with monkeypatch.context() as patch:
            patch.setattr(module.shutil, "rmtree", lambda _: None)
            absorb_effects(work, folder.parts)
        assert absorb_effects(work, folder.parts) == 0
    assert len(read_all(folder, COSINE)) == 7


def test_what_follows_from_weights_survives_more_text_and_co_firing_is_counted_again(
    job: CollectJob, folder: RunFolder
) -> None:
    collect_and_absorb(job, folder, slice(0, 2))
    write_effects(folder)
    with open_work(folder.path) as work:
        absorb_effects(work, folder.parts)
        for sae_id in missing_cofiring(work):
            add_cofiring(work, sae_id)
        assert missing_cofiring(work) == []
    effects, cosine = read_all(folder, EFFECTS), read_all(folder, COSINE)
    n_active = read_all(folder, "SELECT sum(n_active) FROM features")
    collect_and_absorb(job, folder, slice(2, None))
    assert read_all(folder, "SELECT sum(n_active) FROM features") > n_active
    assert read_all(folder, EFFECTS) == effects
    assert read_all(folder, COSINE) == cosine
    assert read_all(folder, "SELECT * FROM neighbours WHERE kind = 'cofiring'") == []
    with open_work(folder.path) as work:
        assert missing_effects(work, "logits") == []
        assert missing_cofiring(work) == [sae.sae_id for sae in job.saes]


def test_text_in_any_portions_ends_in_the_same_co_firing(job: CollectJob, tmp_path: Path) -> None:
    found = []
    for number, cut in enumerate((2, 5)):
        folder = RunFolder(tmp_path / str(number))
        folder.path.mkdir()
        for chunks in (slice(0, cut), slice(cut, None)):
            if as_chunks(TEXTS)[chunks]:
                collect_and_absorb(job, folder, chunks)
            with open_work(folder.path) as work:
                for sae_id in missing_cofiring(work):
                    add_cofiring(work, sae_id)
        found.append(read_all(folder, "SELECT * FROM neighbours ORDER BY ALL"))
    assert found[0] == found[1]
    assert found[0]


# --- the step of the flow ---------------------------------------------------------------------


def quiet() -> Progress:
    return Progress(animate=False, line_seconds=1e9)


def config_with(**collect: bool) -> Config:
    config = demo_config()
    return config.model_copy(update={"collect": config.collect.model_copy(update=collect)})


def never() -> CollectJob:
    raise AssertionError("the model was loaded")


def test_neither_is_worked_out_where_the_configuration_says_so(
    job: CollectJob, folder: RunFolder
) -> None:
    collect_and_absorb(job, folder, slice(None))
    config = config_with(logit_effects=False, neighbours=False)
    describe_features(config, folder, quiet(), never)  # works out the top tokens
    assert not describe_features(config, folder, quiet(), never).has_changed
    assert read_all(folder, "SELECT * FROM neighbours") == []
    assert {row[2] for row in read_all(folder, EFFECTS)} == {None}


def test_what_a_run_that_died_had_finished_is_used_and_the_model_not_loaded(
    job: CollectJob, folder: RunFolder
) -> None:
    collect_and_absorb(job, folder, slice(None))
    write_effects(folder)
    assert describe_features(config_with(), folder, quiet(), never).has_changed
    assert len(read_all(folder, COSINE)) == 7
    assert read_all(folder, "SELECT DISTINCT kind FROM neighbours ORDER BY 1") == [
        ("cofiring",),
        ("cosine",),
    ]
    assert not describe_features(config_with(), folder, quiet(), never).has_changed


def test_parts_come_from_the_saes_own_decoder(
    job: CollectJob, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "describe_part", describe_part.fn)
    monkeypatch.setattr(flow, "as_is", lambda value: value)
    collect_and_absorb(job, folder, slice(None))
    describe_features(config_with(logit_effects=False), folder, quiet(), lambda: job)
    decoder = job.saes[0].decoder.numpy().astype(float)
    unit = decoder / np.linalg.norm(decoder, axis=1, keepdims=True)
    expected = np.sort((unit @ unit.T)[1][[0, 2, 3]])[::-1]
    query = (
        "SELECT value FROM neighbours WHERE kind = 'cosine' AND feature = 1 "
        f"AND sae_id = '{job.saes[0].sae_id}' ORDER BY rank"
    )
    assert [value for (value,) in read_all(folder, query)] == pytest.approx(expected, abs=1e-6)


def test_coordinates_have_output_tokens_and_no_neighbours_by_direction(folder: RunFolder) -> None:
    with open_work(folder.path) as work:
        for sae_id in ("m/1-mlp-neurons", "m/1-res-6"):
            work.execute(
                "INSERT INTO saes (sae_id, content_hash, width) VALUES (?, 'h', 3)", [sae_id]
            )
        assert [each.sae_id for each in missing_effects(work, "cosine")] == ["m/1-res-6"]
        both = [each.sae_id for each in missing_effects(work, "logits")]
    assert both == ["m/1-mlp-neurons", "m/1-res-6"]


def test_an_sae_whose_file_has_changed_is_refused(job: CollectJob, folder: RunFolder) -> None:
    collect_and_absorb(job, folder, slice(None))
    other = make_job(4, (4, 3), SHAPE, SIZES)
    object.__setattr__(other.saes[0], "content_hash", "another")
    with pytest.raises(SaeError, match="no longer the one"):
        describe_features(config_with(), folder, quiet(), lambda: other)


def job_of_one_sae(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> CollectJob:
    """A real one, its SAE of 40 features in the database and yet to be described."""
    monkeypatch.setattr(flow, "describe_part", describe_part.fn)
    monkeypatch.setattr(flow, "as_is", lambda value: value)
    monkeypatch.setattr(module, "_FEATURES_PER_PART", 16)
    file = save_tiny_sae(tmp_path, "res", 1, 40, 16)
    model = load_model(str(save_tiny_gemma(tmp_path / "tiny-gemma-2")), [Site(1, "res")], "cpu")
    sae = load_sae(locate_sae(str(file), model.name), model.config)
    with open_work(folder.path) as work:
        work.execute(
            "INSERT INTO saes (sae_id, content_hash, width) VALUES (?, ?, 40)",
            [sae.sae_id, sae.content_hash],
        )
        work.execute(
            "INSERT INTO features (sae_id, feature) SELECT ?, * FROM range(40)", [sae.sae_id]
        )
    return CollectJob(model, [sae], SHAPE, SIZES, max_batch_tokens=24)


def test_what_takes_minutes_is_said_beforehand_and_shown_block_by_block(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of_one_sae(folder, tmp_path, monkeypatch)
    tokens = job.model.config.vocab_size
    products = 40 * tokens * 16 + 40 * 40 * 16
    monkeypatch.setattr(flow, "_FEATURES_BETWEEN_LINES", 5)
    monkeypatch.setattr(flow, "_WORTH_SAYING", products)
    stream = StringIO()
    progress = Progress(stream, animate=False, line_seconds=0)
    describe_features(config_with(), folder, progress, lambda: job)
    first, *others = stream.getvalue().splitlines()
    assert first.startswith(
        f"describe: output tokens (40 features × {tokens} tokens) and near features (1,600 pairs), "
        f"{products:.2g} multiply-adds, about "
    )
    assert first.endswith(
        " on cpu; [collect] logit_effects = false and neighbours = false leave them out, and "
        "what is done is kept"
    )
    # Parts of 16, 16 and 8 features of either kind.
    done = [line.partition(" of 80")[0].rpartition(", ")[2] for line in others if " of 80" in line]
    assert done == [str(n) for n in (5, 10, 15, 16, 21, 26, 31, 32)] + [
        str(n) for n in (37, 42, 47, 48, 53, 58, 63, 64, 69, 72, 77, 80)
    ]


def test_what_was_done_before_a_stop_between_blocks_is_kept(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of_one_sae(folder, tmp_path, monkeypatch)
    whole = flow.logit_effects

    def stop_in_the_second_part(*args: Any) -> LogitEffects | None:
        if args[2].start == 20:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(flow, "_FEATURES_BETWEEN_LINES", 4)
    monkeypatch.setattr(flow, "logit_effects", stop_in_the_second_part)
    with pytest.raises(KeyboardInterrupt):
        describe_features(config_with(neighbours=False), folder, quiet(), lambda: job)
    assert [part.stage for part in list_parts(folder.parts)] == ["logits"]
    monkeypatch.setattr(flow, "logit_effects", whole)
    stream = StringIO()
    describe_features(config_with(), folder, Progress(stream, animate=False), lambda: job)
    assert "multiply-adds" not in stream.getvalue()  # it takes no minutes
    assert_as_at_once(folder, job.model, job.saes[0])


def test_an_sae_released_from_memory_is_read_again_once(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of_one_sae(folder, tmp_path, monkeypatch)
    model, (sae,) = job.model, job.saes
    reads: list[str] = []

    def read(source: SaeSource, config: Any) -> Sae:
        reads.append(source.sae_id)
        return load_sae(source, config)

    monkeypatch.setattr(collect_job, "load_sae", read)
    job = replace(job, saes=[released(sae)])
    describe_features(config_with(), folder, quiet(), lambda: job)
    assert reads == [sae.sae_id]
    assert_as_at_once(folder, model, sae)


def assert_as_at_once(folder: RunFolder, model: SubjectModel, sae: Sae) -> None:
    expected = logit_effects(model, sae, range(40))
    assert expected is not None
    rows = read_all(folder, "SELECT top_logits_positive FROM features ORDER BY feature")
    np.testing.assert_allclose([row[0] for row in rows], expected.raised.values, rtol=1e-5)
