from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scopenote.extract.chat_text import NoConversationError, chat_renderer
from scopenote.extract.corpus import CorpusSource, RowCounts, read_documents
from scopenote.extract.windows import WindowShape, cut_chunks, tokenize_chunk
from scopenote.store.errors import CorpusError

from .tiny_gemma import tiny_tokenizer

# As Gemma's: turns between markers, no system role.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
)
TALK = [{"role": "user", "content": "the thing"}, {"role": "model", "content": "another"}]
TEXT = "<start_of_turn>user\nthe thing<end_of_turn>\n<start_of_turn>model\nanother<end_of_turn>\n"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<start_of_turn>", "<end_of_turn>"], special_tokens=True)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_a_conversation_is_what_the_template_makes_of_it_without_bos(tokenizer: Any) -> None:
    assert chat_renderer(tokenizer, "tiny")(TALK) == TEXT


def test_the_markers_of_turns_are_single_tokens_and_the_rest_is_text(
    tokenizer: Any, tmp_path: Path
) -> None:
    file = tmp_path / "talks.jsonl"
    file.write_text(json.dumps({"messages": TALK}))
    source = CorpusSource(path=str(file), text_field="messages", chat=True)
    render = chat_renderer(tokenizer, "tiny")
    (chunk,) = cut_chunks(read_documents(source, RowCounts(), render))
    ids = tokenize_chunk(chunk, tokenizer, "tiny", WindowShape()).tokens.tolist()
    start, end = tokenizer.convert_tokens_to_ids(["<start_of_turn>", "<end_of_turn>"])
    assert ids.count(start) == ids.count(end) == 2
    assert tokenizer.bos_token_id not in ids
    assert ids == tokenizer.apply_chat_template(TALK, tokenize=True, return_dict=False)[1:]


@pytest.mark.parametrize(
    ("conversation", "why"),
    [
        ("the thing", "no list of messages"),
        ([], "no list of messages"),
        ([{"role": "user"}], "without role and content"),
        ([{"role": "user", "content": None}], "without role and content"),
        ([{"role": "system", "content": "be kind"}], "System role not supported"),
        ([{"role": "user", "content": "a<eos>b"}], "spells a special token"),
    ],
)
def test_what_is_no_conversation_is_a_bad_row_with_its_reason(
    tokenizer: Any, tmp_path: Path, conversation: object, why: str
) -> None:
    render = chat_renderer(tokenizer, "tiny")
    with pytest.raises(NoConversationError, match=why):
        render(conversation)
    file = tmp_path / "talks.jsonl"
    file.write_text("\n".join(json.dumps({"m": row}) for row in (TALK, conversation)))
    counts = RowCounts()
    source = CorpusSource(path=str(file), text_field="m", chat=True, max_bad_share=0.5)
    assert [d.text for d in read_documents(source, counts, render)] == [TEXT]
    assert counts.n_bad == 1 and why in counts.describe_bad()


def test_conversations_are_read_from_parquet_too(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "talks.parquet"
    pq.write_table(pa.table({"messages": [TALK, TALK[:1]]}), file)
    source = CorpusSource(path=str(file), text_field="messages", chat=True)
    documents = list(read_documents(source, RowCounts(), chat_renderer(tokenizer, "tiny")))
    assert documents[0].text == TEXT
    assert all(d.is_chat for d in documents) and len(documents) == 2


def test_a_model_without_a_template_and_a_text_file_are_refused(
    tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(CorpusError, match="no chat template"):
        chat_renderer(tiny_tokenizer(), "tiny")
    (tmp_path / "talk.txt").write_text("hello")
    source = CorpusSource(path=str(tmp_path), chat=True)
    with pytest.raises(CorpusError, match="no conversations"):
        list(read_documents(source, RowCounts(), chat_renderer(tokenizer, "tiny")))
