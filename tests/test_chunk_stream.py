"""Chunks as a stream: read once, given again to a task that is retried, never cut off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from scopenote.flows.chunk_stream import ChunkStream


@dataclass(frozen=True)
class Chunk:
    index: int


def corpus(n: int, fails_at: dict[int, int] | None = None) -> tuple[Callable[[], Any], list[int]]:
    """Chunks, of which some cannot be read so many times, and which of them were read when."""
    left, read = dict(fails_at or {}), []

    def begin() -> Iterator[Any]:
        for index in range(n):
            if left.get(index, 0):
                left[index] -= 1
                raise OSError(5, "Input/output error")
            read.append(index)
            yield Chunk(index)

    return begin, read


def numbers(group: Any) -> list[int]:
    return [chunk.index for chunk in group]


def test_chunks_come_in_groups_and_each_is_read_once() -> None:
    begin, read = corpus(7)
    stream = ChunkStream(begin)
    groups = []
    while stream.has_more():
        groups.append(numbers(stream.group(3)))
    assert groups == [[0, 1, 2], [3, 4, 5], [6]]
    assert read == list(range(7))


def test_only_what_is_taken_is_read() -> None:
    begin, read = corpus(100)
    stream = ChunkStream(begin)
    assert stream.has_more()
    group = iter(stream.group(50))
    assert [next(group).index, next(group).index] == [0, 1]
    assert read == [0, 1]


def test_a_group_that_is_gone_through_again_begins_with_its_first_chunk() -> None:
    stream = ChunkStream(corpus(5)[0])
    assert stream.has_more()
    group = stream.group(3)
    begun = iter(group)
    assert [next(begun).index, next(begun).index] == [0, 1]
    assert numbers(group) == [0, 1, 2]
    assert numbers(group) == [0, 1, 2]
    assert stream.has_more()
    assert numbers(stream.group(3)) == [3, 4]


@pytest.mark.parametrize("broken", range(5))
def test_a_corpus_that_cannot_be_read_once_loses_no_chunk(broken: int) -> None:
    stream = ChunkStream(corpus(5, {broken: 1})[0])
    found: list[int] = []
    n_failed = 0
    while True:
        try:
            if not stream.has_more():
                break
        except OSError:
            n_failed += 1
            continue
        group = stream.group(2)
        while True:
            try:
                found += numbers(group)
                break
            except OSError:
                n_failed += 1
    assert n_failed == 1
    assert found == [0, 1, 2, 3, 4]


def test_a_corpus_that_stays_broken_is_never_at_its_end() -> None:
    stream = ChunkStream(corpus(3, {1: 9})[0])
    assert stream.has_more()
    group = stream.group(3)
    for _ in range(3):
        with pytest.raises(OSError, match="Input/output"):
            numbers(group)
