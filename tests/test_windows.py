"""Cutting text: into chunks, sequences, windows and batches, against slow obvious twins."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scopenote.extract.corpus import Document
from scopenote.extract.windows import (
    CHUNK_DOCUMENTS,
    Chunk,
    TokenizedChunk,
    WindowShape,
    batch_sequences,
    cut_chunks,
    occurrence_start,
    pack_rows,
    tokenize_chunk,
)
from scopenote.store.errors import CorpusError
from scopenote.store.records import CollectedChunk
from scopenote.store.splits import SPLITS, document_id, split_of, token_hash, window_id

from .tiny_gemma import hearing_transformers, tiny_tokenizer

BOS, PAD = 1, 0
NOTHING = "\N{ZERO WIDTH SPACE}"


class LetterTokenizer:
    """A token a letter, none for a zero-width space."""

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(c) for c in text if c != NOTHING] for text in texts]}


def make_document(text: str) -> Document:
    return Document(text, document_id(text))


def tokenize(texts: list[str], shape: WindowShape, index: int = 0) -> TokenizedChunk:
    chunk = Chunk(index, tuple(make_document(text) for text in texts))
    return tokenize_chunk(chunk, LetterTokenizer(), "letters", shape)


def token_ids(text: str) -> list[int]:
    return [ord(c) for c in text if c != NOTHING]


@st.composite
def draw_shapes(draw: st.DrawFn) -> WindowShape:
    window = draw(st.integers(1, 7))
    return WindowShape(
        window_tokens=window,
        prefix_tokens=draw(st.integers(0, 10)),
        sequence_tokens=draw(st.integers(window + 1, 30)),
        seed=draw(st.integers(0, 3)),
    )


TEXTS = st.lists(st.text(alphabet="abc" + NOTHING, max_size=50), min_size=1, max_size=6)
SHAPES = draw_shapes()


# --- chunks -------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, CHUNK_DOCUMENTS, CHUNK_DOCUMENTS + 1, 3 * CHUNK_DOCUMENTS])
def test_chunks_hold_256_documents_each_in_their_order(n: int) -> None:
    documents = [make_document(f"{i}") for i in range(n)]
    chunks = list(cut_chunks(documents))
    assert [document for chunk in chunks for document in chunk.documents] == documents
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert all(len(chunk.documents) == 256 for chunk in chunks[:-1])
    assert all(1 <= len(chunk.documents) <= 256 for chunk in chunks[-1:])


def test_what_was_the_last_chunk_stays_short_when_the_corpus_grows() -> None:
    documents = [make_document(f"{i}") for i in range(700)]
    first = list(cut_chunks(documents[:300]))
    collected = {c.index: CollectedChunk(c.chunk_id, len(c.documents), 0) for c in first}
    grown = list(cut_chunks(documents, collected))
    assert grown[:2] == first
    assert [len(chunk.documents) for chunk in grown] == [256, 44, 256, 144]
    assert [document for chunk in grown for document in chunk.documents] == documents


def test_a_chunk_s_name_depends_on_its_place_and_its_documents() -> None:
    a, b = make_document("a"), make_document("b")
    chunks = [Chunk(0, (a, b)), Chunk(1, (a, b)), Chunk(0, (b, a)), Chunk(0, (a,))]
    assert len({chunk.chunk_id for chunk in chunks}) == len(chunks)
    assert Chunk(0, (a, b)).chunk_id == chunks[0].chunk_id


# --- windows ------------------------------------------------------------------------------


@given(TEXTS, SHAPES)
def test_windows_tile_each_document_exactly(texts: list[str], shape: WindowShape) -> None:
    chunk = tokenize(texts, shape)
    for number, text in enumerate(texts):
        rows = np.flatnonzero(chunk.window_document == number)
        starts = occurrence_start(chunk.occurrence[rows])
        lengths = chunk.window_length[rows]
        assert starts.tolist() == (np.cumsum(lengths) - lengths).tolist()
        tokens: list[int] = []
        for start, length in zip(chunk.window_start[rows], lengths, strict=True):
            tokens += chunk.tokens[start : start + length].tolist()
        assert tokens == token_ids(text)
    assert chunk.n_tokens == sum(len(token_ids(text)) for text in texts)
    if len(chunk.window_length):
        assert 1 <= chunk.window_length.min() <= chunk.window_length.max() <= shape.window_tokens


@given(TEXTS, SHAPES)
def test_a_window_and_its_prefix_lie_in_one_sequence_as_the_model_sees_it(
    texts: list[str], shape: WindowShape
) -> None:
    chunk = tokenize(texts, shape)
    for row, sequence in enumerate(chunk.window_sequence):
        begin = chunk.sequence_start[sequence]
        end = begin + chunk.sequence_length[sequence]
        start = chunk.window_start[row]
        assert begin <= start - chunk.prefix_length[row]
        assert start + chunk.window_length[row] <= end
        # As long as asked, or all that the model saw.
        assert chunk.prefix_length[row] == min(shape.prefix_tokens, start - begin)


@given(TEXTS, SHAPES)
def test_sequences_are_whole_windows_of_one_document_and_leave_room_for_bos(
    texts: list[str], shape: WindowShape
) -> None:
    chunk = tokenize(texts, shape)
    slow = []
    offset = 0
    for text in texts:
        n = len(token_ids(text))
        room = shape.sequence_tokens - 1
        room -= room % shape.window_tokens
        slow += [(offset + at, min(room, n - at)) for at in range(0, n, room)]
        offset += n
    assert list(zip(chunk.sequence_start, chunk.sequence_length, strict=True)) == slow
    assert all(length < shape.sequence_tokens for _, length in slow)


@given(TEXTS, SHAPES, st.integers(0, 1000))
def test_a_window_carries_its_document_s_split_and_its_own_names(
    texts: list[str], shape: WindowShape, index: int
) -> None:
    chunk = tokenize(texts, shape, index)
    starts = occurrence_start(chunk.occurrence)
    for row, number in enumerate(chunk.window_document):
        doc_id = document_id(texts[number])
        ids = np.array(token_ids(texts[number]), np.int32)
        window = ids[starts[row] : starts[row] + chunk.window_length[row]]
        assert chunk.doc_ids[number] == doc_id
        assert SPLITS[chunk.window_split[row]] == split_of(doc_id)
        assert chunk.token_hash[row] == token_hash(window, shape.seed)
        assert chunk.window_id[row] == window_id("letters", doc_id, int(starts[row]), window)


@given(TEXTS, SHAPES)
def test_occurrences_are_ordered_as_the_text_is(texts: list[str], shape: WindowShape) -> None:
    first, second = tokenize(texts, shape, 3), tokenize(texts, shape, 4)
    occurrence = np.concatenate([first.occurrence, second.occurrence])
    assert (np.diff(occurrence) > 0).all()
    assert (
        occurrence >> 24
        == np.concatenate([3 * 256 + first.window_document, 4 * 256 + second.window_document])
    ).all()


@given(TEXTS, SHAPES, st.integers(1, 120))
def test_the_beginning_of_a_chunk_is_its_first_sequences_with_their_windows(
    texts: list[str], shape: WindowShape, n_tokens: int
) -> None:
    chunk = tokenize(texts, shape)
    if not chunk.n_tokens:
        return
    begin = chunk.begin(n_tokens)
    lengths = chunk.sequence_length.tolist()
    fewest = next((n for n in range(1, len(lengths)) if sum(lengths[:n]) >= n_tokens), len(lengths))
    assert begin.sequence_length.tolist() == lengths[:fewest]
    assert begin.tokens.tolist() == chunk.tokens[: sum(lengths[:fewest])].tolist()
    n_windows = sum(sequence < fewest for sequence in chunk.window_sequence)
    for field in dataclasses.fields(TokenizedChunk):
        whole, cut = getattr(chunk, field.name), getattr(begin, field.name)
        if field.name.startswith("window_") or field.name in (
            "token_hash",
            "occurrence",
            "prefix_length",
        ):
            assert cut.tolist() == whole[:n_windows].tolist(), field.name
        elif not isinstance(whole, np.ndarray):
            assert cut == whole
    recorded = [
        token
        for batch in batch_sequences(begin, BOS, PAD, frozenset(), 50)
        for token in batch.input_ids.reshape(-1)[batch.flat_positions].tolist()
    ]
    assert sorted(recorded) == sorted(begin.tokens.tolist())


def test_documents_without_tokens_are_harmless() -> None:
    shape = WindowShape()
    between = tokenize([NOTHING, "ab", NOTHING, "c", NOTHING], shape)
    assert between.window_document.tolist() == [1, 3]
    assert len(between.doc_ids) == 5
    alone = tokenize([NOTHING, NOTHING], shape)
    assert (alone.n_tokens, len(alone.occurrence), len(alone.sequence_start)) == (0, 0, 0)
    assert list(batch_sequences(alone, BOS, PAD, frozenset(), 100)) == []


def test_a_document_too_long_to_number_its_tokens_is_refused() -> None:
    class LongTokenizer:
        def __call__(self, texts: list[str], **_: Any) -> dict[str, list[np.ndarray]]:
            return {"input_ids": [np.broadcast_to(np.int32(7), 1 << 24) for _ in texts]}

    chunk = Chunk(0, (make_document("War and Peace"),))
    with pytest.raises(CorpusError, match="War and Peace") as refused:
        tokenize_chunk(chunk, LongTokenizer(), "letters", WindowShape())
    assert refused.value.found == "16,777,216 tokens"


def test_text_that_spells_a_special_token_is_ordinary_text() -> None:
    tokenizer = tiny_tokenizer()
    chunk = Chunk(0, (make_document("a <bos> b<pad>c<eos>"),))
    tokenized = tokenize_chunk(chunk, tokenizer, "tiny", WindowShape())
    assert not np.isin(tokenized.tokens, tokenizer.all_special_ids).any()
    assert tokenizer.decode(tokenized.tokens) == "a <bos> b<pad>c<eos>"


def test_a_long_document_is_tokenized_without_a_warning() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 10
    chunk = Chunk(0, (make_document("a long text " * 20),))
    with hearing_transformers() as said:
        assert tokenize_chunk(chunk, tokenizer, "tiny", WindowShape()).n_tokens > 100
        assert said == []
        tokenizer([chunk.documents[0].text])
        assert len(said) == 1


# --- batches ------------------------------------------------------------------------------


@given(TEXTS, SHAPES, st.integers(1, 120))
def test_batches_cover_every_sequence_once_and_hold_no_more_than_allowed(
    texts: list[str], shape: WindowShape, max_tokens: int
) -> None:
    chunk = tokenize(texts, shape)
    windows: list[int] = []
    n_sequences = n_tokens = 0
    for batch in batch_sequences(chunk, BOS, PAD, frozenset(), max_tokens):
        assert batch.input_ids.size <= max_tokens or len(batch.input_ids) == 1
        assert batch.input_ids.shape[1] <= 1 + chunk.sequence_length.max()
        # Padded no more than its longest row needs.
        assert (batch.input_ids[:, -1] != PAD).any()
        windows += batch.windows.tolist()
        n_sequences += int((batch.input_ids == BOS).sum())
        n_tokens += len(batch.flat_positions)
    assert sorted(windows) == list(range(len(chunk.window_start)))
    assert n_sequences == len(chunk.sequence_start)
    assert n_tokens == chunk.n_tokens


@given(TEXTS, SHAPES, st.integers(1, 120))
def test_a_batch_says_of_each_token_where_it_is(
    texts: list[str], shape: WindowShape, max_tokens: int
) -> None:
    chunk = tokenize(texts, shape)
    for batch in batch_sequences(chunk, BOS, PAD, frozenset(), max_tokens):
        slow, places = [], []
        sequences = iter(dict.fromkeys(chunk.window_sequence[batch.windows].tolist()))
        flat = batch.input_ids.reshape(-1).tolist()
        place = sequence = 0
        for at, token in enumerate(flat):
            # What lies between a BOS and the next, or padding, is one sequence of the chunk.
            if token == PAD:
                places.append(0)
                continue
            if token == BOS:
                sequence, place = next(sequences), 0
                places.append(0)
                continue
            in_chunk = int(chunk.sequence_start[sequence]) + place
            place += 1
            places.append(place)
            window = int(np.searchsorted(chunk.window_start, in_chunk, "right")) - 1
            number = batch.windows.tolist().index(window)
            assert token == chunk.tokens[in_chunk]
            slow.append((at, number, in_chunk - chunk.window_start[window]))
        fast = zip(batch.flat_positions, batch.window_of_token, batch.position, strict=True)
        assert list(fast) == slow
        assert batch.position_ids.reshape(-1).tolist() == places
        assert next(sequences, None) is None


@given(TEXTS, SHAPES, st.integers(1, 120))
def test_bos_comes_first_in_every_row_and_is_never_recorded_nor_is_padding(
    texts: list[str], shape: WindowShape, max_tokens: int
) -> None:
    for batch in batch_sequences(tokenize(texts, shape), BOS, PAD, frozenset(), max_tokens):
        assert (batch.input_ids[:, 0] == BOS).all()
        recorded = np.zeros(batch.input_ids.size, bool)
        recorded[batch.flat_positions] = True
        assert len(batch.flat_positions) == recorded.sum()
        assert (recorded.reshape(batch.input_ids.shape) == (batch.input_ids > BOS)).all()


@given(st.lists(st.integers(2, 40), max_size=60))
def test_rows_are_packed_no_longer_than_the_longest_sequence(lengths: list[int]) -> None:
    rows = pack_rows(np.array(lengths, np.int64))
    assert sorted(sequence for row in rows for sequence in row) == list(range(len(lengths)))
    filled = [sum(lengths[sequence] for sequence in row) for row in rows]
    assert max(filled, default=0) == max(lengths, default=0)
    # Otherwise one of two would not have been opened: the other had room.
    assert all(one + other > max(lengths) for one, other in pairwise(sorted(filled)))


@given(TEXTS, SHAPES)
def test_special_tokens_in_the_text_are_marked(texts: list[str], shape: WindowShape) -> None:
    special = frozenset({BOS, PAD, ord("b")})
    for batch in batch_sequences(tokenize(texts, shape), BOS, PAD, special, 60):
        expected = batch.input_ids.reshape(-1)[batch.flat_positions] == ord("b")
        assert (batch.is_special is None) == (not expected.any())
        if batch.is_special is not None:
            assert (batch.is_special == expected).all()


def test_batches_of_a_chunk_do_not_depend_on_its_place() -> None:
    texts, shape = ["abc" * 30, "a", "bb" * 9, "c" * 17], WindowShape(4, 2, 20)
    here, there = (
        list(batch_sequences(tokenize(texts, shape, index), BOS, PAD, frozenset(), 50))
        for index in (0, 9)
    )
    assert len(here) == len(there) > 1
    for one, other in zip(here, there, strict=True):
        assert (one.input_ids == other.input_ids).all()
        assert (one.windows == other.windows).all()


def test_the_largest_window_has_a_place_for_every_token() -> None:
    chunk = tokenize(["ab" * 300], WindowShape(window_tokens=256, sequence_tokens=1024))
    (batch,) = batch_sequences(chunk, BOS, PAD, frozenset(), 1)
    assert batch.position.tolist() == [*range(256), *range(256), *range(88)]
