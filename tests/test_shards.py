from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scopenote.extract.collect_job import CollectJob
from scopenote.extract.corpus import Document
from scopenote.extract.shards import WHOLE, Shard
from scopenote.extract.sketches import SketchSizes
from scopenote.extract.windows import Chunk, WindowShape
from scopenote.store.errors import UserMistake
from scopenote.store.records import CollectedChunk

from .brute_force import make_job

TEXTS = ["abc", "bca", "cc", "abcabcabc", "b", "acbacb", "ca", "bbb"]
CHUNKS = [Chunk(n, (Document(text, f"doc-{n}"),)) for n, text in enumerate(TEXTS)]
JOB = make_job(0, (4,), WindowShape(), SketchSizes())


def given_by(
    job: CollectJob, shard: Shard, max_tokens: int | None, known: dict[int, CollectedChunk]
) -> list[int]:
    return [chunk.index for chunk in job.pending_chunks(iter(CHUNKS), known, max_tokens, shard)]


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(1, 10),
    max_tokens=st.none() | st.integers(1, 40),
    known=st.sets(st.integers(0, len(CHUNKS) - 1)),
)
def test_all_shards_together_give_each_chunk_once_and_end_where_one_alone_would(
    count: int, max_tokens: int | None, known: set[int]
) -> None:
    there = {n: CollectedChunk(CHUNKS[n].chunk_id, 1, len(TEXTS[n])) for n in known}
    whole = given_by(JOB, WHOLE, max_tokens, there)
    shards = [given_by(JOB, Shard(n, count), max_tokens, there) for n in range(1, count + 1)]
    assert sorted(chain.from_iterable(shards)) == whole


@pytest.mark.parametrize("text", ["", "3", "0/4", "5/4", "-1/4", "1/0", "a/b", "1/2/3", "1.0/2"])
def test_a_shard_that_there_is_not_is_refused(text: str) -> None:
    with pytest.raises(UserMistake, match=r"such as 3/16"):
        Shard.parse(text)


def test_a_shard_is_written_as_it_is_read() -> None:
    assert str(Shard.parse("3/16")) == "3/16"
    assert Shard.parse("3/16") == Shard(3, 16)
