from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scopenote.extract.collect_job import CollectJob
from scopenote.extract.models import load_model
from scopenote.extract.passes import is_released, plan_passes, released
from scopenote.extract.sae_sources import locate_sae
from scopenote.extract.saes import load_sae
from scopenote.extract.sketches import SketchSizes
from scopenote.extract.windows import WindowShape
from scopenote.store.errors import SaeError

needs_of = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=9)


@given(needs=needs_of, machine=st.integers(1, 80), device=st.none() | st.integers(1, 80))
def test_each_sae_is_in_one_pass_and_each_pass_fits_or_is_one_alone(
    needs: list[tuple[int, int]], machine: int, device: int | None
) -> None:
    passes = plan_passes(needs, machine, device)
    assert sorted(n for group in passes for n in group) == list(range(len(needs)))
    for group in passes:
        weights, sketches = (sum(needs[n][i] for n in group) for i in (0, 1))
        if device is None:
            fits = weights + sketches <= machine
        else:
            fits = weights <= device and sketches <= machine
        assert fits or len(group) == 1


@given(n=st.integers(1, 40), room=st.integers(1, 10))
def test_saes_of_one_size_take_the_fewest_passes_that_there_can_be(n: int, room: int) -> None:
    assert len(plan_passes([(3, 4)] * n, 7 * room, None)) == -(-n // room)


def toy_job(path: Path) -> CollectJob:
    source = locate_sae(str(path), "toy-gemma-2", "res", 1)
    model = load_model("toy", [source.site], "cpu")
    return CollectJob(model, [load_sae(source, model.config)], WindowShape(), SketchSizes(), 4096)


def toy_sae() -> Path:
    saes = Path(str(files("scopenote.extract.toy").joinpath("saes")))
    (path,) = islice(saes.rglob("res/**/params.npz"), 1)
    return path


def test_a_released_sae_holds_nothing_and_is_read_again_when_it_is_needed() -> None:
    job = toy_job(toy_sae())
    without = replace(job, saes=[released(sae) for sae in job.saes])
    assert is_released(without.saes[0]) and not is_released(job.saes[0])
    assert without.identity == job.identity
    assert without.with_weights(0).encoder.equal(job.saes[0].encoder)


def test_an_sae_that_has_changed_since_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.npz"
    path.write_bytes(toy_sae().read_bytes())
    job = toy_job(path)
    other = released(replace(job.saes[0], content_hash="another"))
    with pytest.raises(SaeError, match="has changed"):
        replace(job, saes=[other]).with_weights(0)
