"""Splits and hashes: decided by content alone, and the same for ever."""

from __future__ import annotations

import numpy as np
import pytest
from scopenote.store.splits import SPLITS, Split, document_id, split_of, token_hash, window_id

IDS = np.array([5, 7, 300_000], np.int32)


def test_the_splits_take_half_a_fifth_and_three_tenths_of_the_documents() -> None:
    n = 20_000
    splits = [split_of(document_id(f"document {i}")) for i in range(n)]
    shares: dict[Split, float] = {"explain": 0.5, "select": 0.2, "score": 0.3}
    for split, share in shares.items():
        error = (share * (1 - share) / n) ** 0.5
        assert abs(splits.count(split) / n - share) < 4 * error


def test_the_same_text_is_always_in_the_same_split() -> None:
    for text in ("", "one", "日本"):
        assert len({split_of(document_id(text)) for _ in range(3)}) == 1


@pytest.mark.parametrize(
    ("text", "doc_id", "split"),
    [
        ("", "dbd08a277720e909", "explain"),
        ("日本", "23b8fdc0d70735ba", "explain"),
        ("text 1", "5f8fce3ae8cdc3f7", "select"),
        ("The cat sat on the mat.", "96865baea06ba644", "score"),
    ],
)
def test_a_text_s_name_and_split_never_change(text: str, doc_id: str, split: Split) -> None:
    assert (document_id(text), split_of(document_id(text))) == (doc_id, split)


def test_the_hashes_of_a_window_never_change() -> None:
    assert token_hash(IDS, 0) == 4796148287302785786
    assert token_hash(IDS, 1) == 7106202290361413638
    assert window_id("gemma-2-2b", "00ff", 64, IDS) == 8085412204283322609


def test_the_order_of_the_splits_never_changes() -> None:
    assert SPLITS == ("explain", "select", "score")  # tables hold their numbers


def test_a_text_with_half_a_surrogate_pair_has_a_name() -> None:
    assert document_id("\ud800") != document_id("?")


def test_a_window_s_sampling_hash_depends_on_its_tokens_and_the_seed_alone() -> None:
    hashes = [
        token_hash(IDS, 0),
        token_hash(IDS, 1),
        token_hash(IDS, -1),
        token_hash(IDS[::-1], 0),
        token_hash(IDS[:2], 0),
    ]
    assert len(set(hashes)) == len(hashes)
    assert token_hash(IDS.copy(), 0) == token_hash(np.repeat(IDS, 2)[::2], 0)


def test_sampling_hashes_are_uniform_over_64_bits() -> None:
    hashes = np.array([token_hash(np.array([i], np.int32), 0) for i in range(4096)], np.uint64)
    assert len(set(hashes.tolist())) == 4096
    quarters = np.bincount((hashes >> np.uint64(62)).astype(np.int64), minlength=4)
    assert (np.abs(quarters - 1024) < 4 * (4096 * 3 / 16) ** 0.5).all()


def test_a_window_is_named_by_tokenizer_document_place_and_tokens() -> None:
    names = [
        window_id("a", "00ff", 64, IDS),
        window_id("b", "00ff", 64, IDS),
        window_id("a", "00fe", 64, IDS),
        window_id("a", "00ff", 0, IDS),
        window_id("a", "00ff", 64, IDS[:2]),
    ]
    assert len(set(names)) == len(names)
    assert window_id("a", "00ff", 64, IDS) == names[0]


def test_the_split_does_not_follow_the_name() -> None:
    # The ids of one split are spread over all first digits: no hash decides two things.
    names = [document_id(f"{i}") for i in range(2000)]
    for split in SPLITS:
        assert len({name[0] for name in names if split_of(name) == split}) == 16
