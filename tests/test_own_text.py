"""Features on a text of one's own, against what collecting recorded of the same text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import torch
from scopenote.extract.models import SubjectModel, load_model
from scopenote.extract.own_text import OwnText, read_own_text
from scopenote.extract.saes import Sae, load_sae
from scopenote.extract.windows import WindowShape
from scopenote.flows.collect_setup import sae_sources, window_shape
from scopenote.flows.config import Config, load_config
from scopenote.store.errors import UserMistake
from scopenote.store.splits import document_id

from .asking_runs import rows

SITES = ("att", "mlp", "res")

pytestmark = pytest.mark.slow  # it takes a collected run


@pytest.fixture(scope="module")
def config(collected: Path) -> Config:
    return load_config(collected / "run.toml")


@pytest.fixture(scope="module")
def model(config: Config) -> SubjectModel:
    """Whole, as whoever steers has it; collecting stopped after the second of its layers."""
    return load_model(config.model.name, [], config.model.device, config.model.dtype)


@pytest.fixture(scope="module")
def saes(config: Config, model: SubjectModel) -> dict[str, Sae]:
    return {source.site.kind: load_sae(source, model.config) for source in sae_sources(config)}


@pytest.fixture(scope="module")
def texts(collected: Path) -> dict[str, str]:
    lines = (collected.parent / "corpus.jsonl").read_text().splitlines()
    found = [json.loads(line)["text"] for line in lines]
    return {document_id(text): text for text in found}


def read(model: SubjectModel, sae: Sae, text: str, shape: WindowShape, **given: Any) -> OwnText:
    return read_own_text(model, sae, range(sae.width), text, shape, **given)


def assert_the_same(found: np.ndarray, stored: np.ndarray, threshold: np.ndarray) -> None:
    """To rounding; what lies on the threshold may fall to either side of it."""
    is_near = np.maximum(found, stored) - threshold[:, None] < 1e-4
    is_same = np.isclose(found, stored, rtol=1e-4, atol=1e-4)
    assert (is_same | is_near).all()
    assert is_same.mean() > 0.9999


@pytest.mark.parametrize("site", SITES)
def test_a_documents_contexts_are_found_again(
    collected: Path,
    config: Config,
    model: SubjectModel,
    saes: dict[str, Sae],
    texts: dict[str, str],
    site: str,
) -> None:
    sae = saes[site]
    stored = rows(
        collected,
        "SELECT doc_id, feature, start, positions, activations FROM contexts c "
        f"JOIN windows w USING (window_id) WHERE sae_id = '{sae.sae_id}' "
        "AND doc_id IN (SELECT doc_id FROM windows GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 8)",
    )
    assert len(stored) > 200
    assert any(start for _, _, start, *_ in stored), "no document has a second window"
    documents = {doc for doc, *_ in stored}
    found = {doc: read(model, sae, texts[doc], window_shape(config)) for doc in documents}
    here, expected = np.zeros((2, len(stored), 64), np.float32)
    for row, (doc, feature, start, positions, activations) in enumerate(stored):
        window = found[doc].activations[feature, start : start + 64]
        here[row, : len(window)] = window
        expected[row, positions] = activations
    features = [feature for _, feature, *_ in stored]
    assert_the_same(here, expected, sae.threshold.numpy()[features])


@pytest.mark.parametrize("site", SITES)
def test_all_features_of_the_background_are_found_again_silence_included(
    collected: Path,
    config: Config,
    model: SubjectModel,
    saes: dict[str, Sae],
    texts: dict[str, str],
    site: str,
) -> None:
    sae = saes[site]
    windows = rows(
        collected,
        "SELECT window_id, doc_id, start, len(token_ids) FROM windows WHERE is_background "
        "ORDER BY start DESC, window_id LIMIT 8",
    )
    for window_id, doc, start, n_tokens in windows:
        expected = np.zeros((sae.width, n_tokens), np.float32)
        for feature, positions, activations in rows(
            collected,
            f"SELECT feature, positions, activations FROM background "
            f"WHERE sae_id = '{sae.sae_id}' AND window_id = {window_id}",
        ):
            expected[feature, positions] = activations
        assert (expected > 0).any()
        found = read(model, sae, texts[doc], window_shape(config)).activations
        assert_the_same(found[:, start : start + n_tokens], expected, sae.threshold.numpy())


def test_the_tokens_are_the_pieces_of_the_store(
    collected: Path, config: Config, model: SubjectModel, saes: dict[str, Sae]
) -> None:
    text = "  return x\n\tnaïve 🙂 \x00 日本"
    tokens = read_own_text(model, saes["res"], [0], text, window_shape(config)).tokens
    with duckdb.connect(str(collected / "scopenote.duckdb"), read_only=True) as connection:
        pieces = dict(connection.execute("SELECT token_id, text FROM pieces").fetchall())
    ids = model.tokenizer(text, add_special_tokens=False).input_ids
    assert len(tokens) == len(ids)
    known = [(token, pieces[n]) for token, n in zip(tokens, ids, strict=True) if n in pieces]
    assert len(known) > 5
    assert all(token == piece for token, piece in known)


def test_each_sequence_of_a_long_text_begins_anew(
    model: SubjectModel, saes: dict[str, Sae]
) -> None:
    shape = WindowShape(window_tokens=4, prefix_tokens=4, sequence_tokens=5)
    text = "the function returns a list of names and the class has a method that returns them"
    whole = read(model, saes["res"], text, shape)
    n = shape.sequence_content
    assert whole.n_sequences == -(-len(whole.tokens) // n) > 2
    ids = model.tokenizer(text, add_special_tokens=False).input_ids
    site = saes["res"].site
    for begin in range(0, len(ids), n):
        sequence = torch.tensor([[model.tokenizer.bos_token_id, *ids[begin : begin + n]]])
        x = model.read_sites(sequence, [site])[site][0, 1:]
        expected = saes["res"].encode(x).T.numpy()
        here = whole.activations[:, begin : begin + n]
        assert_the_same(here, expected, saes["res"].threshold.numpy())


def test_features_are_given_in_the_order_in_which_they_are_asked_for(
    model: SubjectModel, saes: dict[str, Sae]
) -> None:
    text = "import os\nclass Reader:\n    def read(self): return None"
    whole = read(model, saes["mlp"], text, WindowShape()).activations
    strong = np.argsort(-whole.max(axis=1))[:4].tolist()
    some = read_own_text(model, saes["mlp"], strong, text, WindowShape()).activations
    assert (some > 0).any(axis=1).all()
    np.testing.assert_allclose(some, whole[strong], rtol=1e-4, atol=1e-5)


def test_of_a_top_k_sae_only_the_largest_of_a_token_fire(
    model: SubjectModel, saes: dict[str, Sae]
) -> None:
    sae = replace(saes["res"], k=2, threshold=torch.zeros(saes["res"].width))
    found = read(model, sae, "the function returns a list", WindowShape()).activations
    assert ((found > 0).sum(axis=0) == 2).all()
    feature = int(found.max(axis=1).argmax())
    alone = read_own_text(model, sae, [feature], "the function returns a list", WindowShape())
    np.testing.assert_allclose(alone.activations[0], found[feature], rtol=1e-5)


def test_a_special_token_is_text_except_in_a_conversation(
    model: SubjectModel, saes: dict[str, Sae]
) -> None:
    text = "the end<eos> the beginning"
    plain = read(model, saes["res"], text, WindowShape())
    assert "<eos>" not in plain.tokens
    in_chat = read(model, saes["res"], text, WindowShape(), is_chat=True)
    place = in_chat.tokens.index("<eos>")
    assert not in_chat.activations[:, place].any()
    assert in_chat.activations[:, place + 1].any()


def test_an_empty_text_is_refused(model: SubjectModel, saes: dict[str, Sae]) -> None:
    with pytest.raises(UserMistake, match="empty"):
        read(model, saes["res"], "", WindowShape())
