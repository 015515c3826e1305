from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from scopenote.flows.batches import task_ranges


@given(
    missing=st.dictionaries(
        st.sampled_from(["a/1", "a/2"]),
        st.sets(st.integers(0, 60), min_size=1).map(sorted),
    ),
    size=st.integers(1, 20),
)
def test_every_missing_feature_is_in_exactly_one_task(
    missing: dict[str, list[int]], size: int
) -> None:
    found: dict[str, list[int]] = {}
    for sae_id, features in task_ranges(missing, size):
        assert 1 <= len(features) <= size
        assert features[0] // size == features[-1] // size
        found.setdefault(sae_id, []).extend(features)
    assert found == missing


def test_an_interrupted_stage_is_cut_as_the_whole_one_was() -> None:
    whole = list(task_ranges({"a/1": list(range(10))}, 4))
    rest = list(task_ranges({"a/1": list(range(4, 10))}, 4))
    assert whole == [("a/1", range(4)), ("a/1", range(4, 8)), ("a/1", range(8, 10))]
    assert rest == whole[1:]
