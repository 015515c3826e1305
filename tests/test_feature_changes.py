"""Features and neurons changed within a pass, against the SAE's arithmetic written out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scopenote.extract.feature_changes import (
    ChangeMode,
    FeatureChange,
    HeldNeuron,
    ModelChange,
    ReadBack,
    changed_features,
)
from scopenote.extract.models import SubjectModel, load_model
from scopenote.extract.sae_sources import SaeSource
from scopenote.extract.saes import Sae
from scopenote.extract.sites import Site, SiteKind, hook_site, site_width
from scopenote.extract.splicing import changed_site
from scopenote.store.errors import UserMistake
from torch import Tensor

from .test_sites import plain_gemma2
from .tiny_gemma import BOS, sae_arrays, save_tiny_gemma, site_inputs

pytestmark = pytest.mark.slow  # together they take seconds that the default run lacks

LAYER = 1
KINDS: tuple[SiteKind, ...] = ("res", "mlp", "att", "transcoder")
IDS = torch.tensor([[BOS, 336, 264, 262, 281, 338, 280, 263, 276, 280, 261, 300]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_gemma(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def model(folder: Path) -> SubjectModel:
    return load_model(str(folder), [], "cpu", "float32")


@pytest.fixture(scope="module")
def saes(folder: Path, model: SubjectModel) -> dict[SiteKind, Sae]:
    """One of each kind of site, fitted to it, so that features fire there."""
    return {kind: make_sae(model, folder, kind) for kind in KINDS}


def make_sae(model: SubjectModel, folder: Path, kind: SiteKind, seed: int = 0) -> Sae:
    site = Site(LAYER, kind)
    arrays = sae_arrays(
        40, site_width(site, model.config), seed=seed, inputs=site_inputs(folder, kind, LAYER)
    )
    weights = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return Sae(
        SaeSource(f"tiny/{LAYER}-{kind}-{seed}", None, site, None, "made up"),
        weights["W_enc"].T.contiguous(),
        weights["b_enc"],
        weights["threshold"],
        weights["W_dec"],
        weights["b_dec"],
        content_hash="0",
    )


def read(
    model: SubjectModel,
    site: Site,
    changes: Sequence[ModelChange] = (),
    told: Sequence[ReadBack] | None = None,
) -> Tensor:
    """A site's vectors, as what comes after them has them."""
    seen: list[Tensor] = []
    with torch.inference_mode(), changed_features(model.network, changes, told):
        handle = hook_site(model.network, site, seen.append)
        try:
            model.network(input_ids=IDS, use_cache=False)
        finally:
            handle.remove()
    (x,) = seen
    return x[0]


def encoded(model: SubjectModel, sae: Sae) -> Tensor:
    return sae.encode(read(model, sae.site))


def strongest(f: Tensor, n: int = 1) -> list[int]:
    """Features that fire on some tokens and not on all."""
    share = (f > 0).float().mean(0)
    f = torch.where((share > 0) & (share < 1), f, 0.0)
    return f.sum(0).topk(n).indices.tolist()


def set_slowly(model: SubjectModel, sae: Sae, codes: dict[int, float]) -> Tensor:
    """The SAE's own decoding of changed codes, and its error of the unchanged ones."""
    x, target = read(model, sae.site).double(), read(model, sae.target).double()
    pre = x @ sae.encoder.double().T + sae.encoder_bias
    f = torch.where(pre > sae.threshold, pre, 0.0)
    error = target - (f @ sae.decoder.double() + sae.decoder_bias)
    for feature, value in codes.items():
        f[:, feature] = value
    return f @ sae.decoder.double() + sae.decoder_bias + error


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-4, atol=tolerance)


# --- clamp ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.0, 7.5, -3.0])
def test_clamping_decodes_the_set_code_and_keeps_the_error(
    model: SubjectModel, saes: dict[SiteKind, Sae], kind: SiteKind, value: float
) -> None:
    sae = saes[kind]
    (feature,) = strongest(encoded(model, sae))
    found = read(model, sae.target, [FeatureChange(sae, feature, "clamp", value)])
    close(found, set_slowly(model, sae, {feature: value}))
    assert not torch.allclose(found, read(model, sae.target))


@pytest.mark.parametrize("kind", KINDS)
def test_clamping_moves_the_target_by_value_less_code_times_the_decoder_row(
    model: SubjectModel, saes: dict[SiteKind, Sae], kind: SiteKind
) -> None:
    sae = saes[kind]
    f = encoded(model, sae)
    (feature,) = strongest(f)
    found = read(model, sae.target, [FeatureChange(sae, feature, "clamp", 4.0)])
    expected = (4.0 - f[:, feature])[:, None] * sae.decoder[feature]
    close(found - read(model, sae.target), expected)


@settings(max_examples=20)  # each is two passes through the model
@given(
    strengths=st.dictionaries(
        st.integers(0, 39), st.floats(-50, 50, width=32), min_size=1, max_size=6
    ),
    kind=st.sampled_from(KINDS),
)
def test_several_features_are_set_as_if_all_codes_were_written_at_once(
    model: SubjectModel,
    saes: dict[SiteKind, Sae],
    strengths: dict[int, float],
    kind: SiteKind,
) -> None:
    sae = saes[kind]
    changes = [FeatureChange(sae, feature, "clamp", value) for feature, value in strengths.items()]
    close(read(model, sae.target, changes), set_slowly(model, sae, strengths), 2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_feature_set_to_its_own_value_changes_not_a_bit(
    model: SubjectModel, saes: dict[SiteKind, Sae], kind: SiteKind
) -> None:
    sae = saes[kind]
    (feature,) = strongest(encoded(model, sae))
    before = read(model, sae.target)
    told = ReadBack()
    read(model, sae.target, [FeatureChange(sae, feature, "clamp", 0.0)], [told])
    assert sum(value > 0 for value in told.before) > 1
    for token, own in enumerate(told.before):
        found = read(model, sae.target, [FeatureChange(sae, feature, "clamp", own)])
        assert torch.equal(found[token], before[token])
        others = [n for n, value in enumerate(told.before) if abs(value - own) > 1e-3]
        assert all(not torch.equal(found[n], before[n]) for n in others)


@pytest.mark.parametrize("kind", KINDS)
def test_splicing_in_the_reconstruction_with_its_error_changes_nothing(
    model: SubjectModel, saes: dict[SiteKind, Sae], kind: SiteKind
) -> None:
    sae = saes[kind]
    last = Site(model.config.num_hidden_layers - 1, "res")
    spliced = set_slowly(model, sae, {}).float()[None]
    with changed_site(model.network, sae.target, lambda _: spliced):
        found = read(model, last)
    close(found, read(model, last))


# --- ablate -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_ablating_sets_to_zero_where_the_feature_fires_and_is_nothing_elsewhere(
    model: SubjectModel, saes: dict[SiteKind, Sae], kind: SiteKind
) -> None:
    sae = saes[kind]
    f = encoded(model, sae)
    (feature,) = strongest(f)
    before, found = read(model, sae.target), read(
        model, sae.target, [FeatureChange(sae, feature, "ablate")]
    )  # fmt: skip
    close(found, before - f[:, feature, None] * sae.decoder[feature])
    is_silent = f[:, feature] == 0
    assert 0 < int(is_silent.sum()) < len(f)
    assert torch.equal(found[is_silent], before[is_silent])


def test_ablating_a_feature_that_is_silent_everywhere_changes_nothing_to_the_end(
    model: SubjectModel, saes: dict[SiteKind, Sae]
) -> None:
    sae = saes["res"]
    feature = int((encoded(model, sae) > 0).sum(0).argmin())
    assert not encoded(model, sae)[:, feature].any()
    last = Site(model.config.num_hidden_layers - 1, "res")
    found = read(model, last, [FeatureChange(sae, feature, "ablate")])
    assert torch.equal(found, read(model, last))


# --- add --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["res", "mlp", "att"])
def test_adding_moves_the_pre_activation_by_strength_times_row_times_column(
    model: SubjectModel, saes: dict[SiteKind, Sae], kind: SiteKind
) -> None:
    sae, feature, strength = saes[kind], 3, 2.5
    before, after = (
        read(model, sae.site, changes) @ sae.encoder[feature]
        for changes in ([], [FeatureChange(sae, feature, "add", strength)])
    )
    expected = strength * float(sae.decoder[feature] @ sae.encoder[feature])
    assert abs(expected) > 0.1
    close(after - before, torch.full_like(after, expected))


@pytest.mark.parametrize("mode", ["add", "clamp", "ablate"])
def test_an_attention_feature_is_changed_through_the_output_projection(
    model: SubjectModel, saes: dict[SiteKind, Sae], mode: ChangeMode
) -> None:
    sae = saes["att"]
    f = encoded(model, sae)
    (feature,) = strongest(f)
    o_proj = model.network.layers[LAYER].self_attn.o_proj
    projected: list[Tensor] = []
    handle = o_proj.register_forward_hook(lambda _m, _x, output: projected.append(output[0]))
    try:
        for changes in ([], [FeatureChange(sae, feature, mode, 3.0)]):
            read(model, Site(LAYER, "res"), changes)
    finally:
        handle.remove()
    own = f[:, feature]
    amounts = {"add": torch.full_like(own, 3.0), "clamp": 3.0 - own, "ablate": -own}[mode]
    expected = amounts[:, None] * (sae.decoder[feature] @ o_proj.weight.detach().T)
    before, after = projected
    close(after - before, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_later_layers_see_what_a_plain_gemma_2_makes_of_a_clamped_feature(
    model: SubjectModel, saes: dict[SiteKind, Sae], kind: SiteKind
) -> None:
    sae = saes[kind]
    (feature,) = strongest(encoded(model, sae))
    put_in = set_slowly(model, sae, {feature: 6.0})
    changes: dict[Site, Callable[[Tensor], Tensor]] = {sae.target: lambda _: put_in}
    expected = plain_gemma2(model.network.state_dict(), model.config, IDS[0], changes)
    change = FeatureChange(sae, feature, "clamp", 6.0)
    for layer in range(LAYER, model.config.num_hidden_layers):
        site = Site(layer, "res")
        close(read(model, site, [change]), expected[site], 1e-4)


# --- together ---------------------------------------------------------------------------------


def test_changes_at_one_site_are_worked_out_from_what_stood_there(
    model: SubjectModel, folder: Path, saes: dict[SiteKind, Sae]
) -> None:
    one, other = saes["mlp"], make_sae(model, folder, "mlp", seed=1)
    before = read(model, one.target)
    (a,), (b,) = strongest(one.encode(before)), strongest(other.encode(before))
    changes: list[ModelChange] = [
        HeldNeuron(LAYER, 5, -2.0),
        FeatureChange(one, a, "clamp", 3.0),
        FeatureChange(other, b, "ablate"),
        FeatureChange(saes["transcoder"], 7, "add", 1.5),
    ]
    expected = before.clone()
    for change in changes[1:]:
        expected = expected + read(model, one.target, [change]) - before
    expected[:, 5] = -2.0
    for order in (changes, changes[::-1]):
        close(read(model, one.target, order), expected)


def test_a_change_of_a_later_layer_sees_those_of_earlier_ones(
    model: SubjectModel, saes: dict[SiteKind, Sae]
) -> None:
    sae = saes["res"]
    (feature,) = strongest(encoded(model, sae))
    told = [ReadBack(), ReadBack()]
    changes = [HeldNeuron(0, 2, 30.0), FeatureChange(sae, feature, "clamp", 4.0)]
    read(model, sae.target, changes, told)
    with_the_first = sae.encode(read(model, sae.site, changes[:1]))[:, feature]
    close(torch.tensor(told[1].before), with_the_first)
    assert not torch.allclose(with_the_first, encoded(model, sae)[:, feature])


def test_a_held_neuron_stands_at_its_value_and_its_neighbours_as_they_did(
    model: SubjectModel,
) -> None:
    site = Site(LAYER, "mlp")
    before, found = read(model, site), read(model, site, [HeldNeuron(LAYER, 3, -160.0)])
    assert (found[:, 3] == -160).all()
    rest = [n for n in range(before.shape[1]) if n != 3]
    assert torch.equal(found[:, rest], before[:, rest])


def test_of_a_top_k_sae_the_code_that_is_cleared_is_the_one_that_fires(
    model: SubjectModel, saes: dict[SiteKind, Sae]
) -> None:
    sae = replace(saes["res"], k=2, threshold=torch.zeros(40))
    f = encoded(model, sae)
    assert int((f > 0).sum(1).max()) == 2
    (feature,) = strongest(f)
    found = read(model, sae.target, [FeatureChange(sae, feature, "ablate")])
    close(found, read(model, sae.target) - f[:, feature, None] * sae.decoder[feature])


# --- what is read back ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["res", "mlp", "att"])
@pytest.mark.parametrize("mode", ["add", "clamp", "ablate"])
def test_what_is_told_is_what_the_sae_encodes_before_and_after(
    model: SubjectModel, saes: dict[SiteKind, Sae], kind: SiteKind, mode: ChangeMode
) -> None:
    sae = saes[kind]
    (feature,) = strongest(encoded(model, sae))
    told, change = ReadBack(), FeatureChange(sae, feature, mode, 5.0)
    after = read(model, sae.target, [change], [told])
    close(torch.tensor(told.before), encoded(model, sae)[:, feature])
    close(torch.tensor(told.after), sae.encode(after)[:, feature])
    assert told.before != told.after


def test_a_transcoder_does_not_read_what_it_changes(
    model: SubjectModel, saes: dict[SiteKind, Sae]
) -> None:
    sae, told = saes["transcoder"], ReadBack()
    read(model, sae.target, [FeatureChange(sae, 4, "clamp", 5.0)], [told])
    assert len(told.before) == IDS.shape[1]
    assert told.after == []


def test_of_a_neuron_the_coordinate_is_told(model: SubjectModel) -> None:
    told, before = ReadBack(), read(model, Site(LAYER, "mlp"))
    read(model, Site(LAYER, "mlp"), [HeldNeuron(LAYER, 3, 2.0)], [told])
    assert told.before == before[:, 3].tolist()
    assert told.after == [2.0] * IDS.shape[1]


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [float("inf"), float("-inf"), float("nan")])
def test_a_strength_is_a_finite_number(saes: dict[SiteKind, Sae], strength: float) -> None:
    with pytest.raises(UserMistake, match="finite number"):
        FeatureChange(saes["res"], 3, "add", strength)
    with pytest.raises(UserMistake, match="finite number"):
        HeldNeuron(LAYER, 3, strength)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [1e300, 1e38, -1e38, 1e20])
def test_a_strength_beyond_what_norms_can_square_is_refused_and_leaves_no_trace(
    model: SubjectModel, saes: dict[SiteKind, Sae], kind: SiteKind, strength: float
) -> None:
    sae = saes[kind]
    before = read(model, sae.target)
    with pytest.raises(UserMistake, match="no numbers any more"):
        read(model, sae.target, [FeatureChange(sae, 3, "add", strength)])
    assert torch.equal(read(model, sae.target), before)


def test_a_way_to_change_features_that_there_is_not_is_refused(saes: dict[SiteKind, Sae]) -> None:
    mode: Any = "multiply"
    with pytest.raises(UserMistake, match="not changed in this way") as caught:
        FeatureChange(saes["res"], 3, mode, 2.0)
    assert "add, clamp, ablate" in str(caught.value)


def test_a_feature_beyond_the_width_is_refused(saes: dict[SiteKind, Sae]) -> None:
    for feature in (40, -1):
        with pytest.raises(UserMistake, match="no feature of this number"):
            FeatureChange(saes["res"], feature)


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (HeldNeuron(LAYER, 16, 1.0), "no neuron 16"),
        (HeldNeuron(LAYER, -1, 1.0), "no neuron -1"),
        (HeldNeuron(3, 2, 1.0), "no layer 3"),
    ],
)
def test_a_neuron_that_the_model_does_not_have_is_refused(
    model: SubjectModel, held: HeldNeuron, words: str
) -> None:
    with pytest.raises(UserMistake, match=words) as caught:
        read(model, Site(LAYER, "mlp"), [held])
    assert "0 to " in str(caught.value)


def test_nothing_is_changed_twice_at_once(model: SubjectModel, saes: dict[SiteKind, Sae]) -> None:
    for twice in (
        [FeatureChange(saes["res"], 3, "ablate"), FeatureChange(saes["res"], 3, "add", 1.0)],
        [HeldNeuron(LAYER, 3, 1.0), HeldNeuron(LAYER, 3, 2.0)],
    ):
        with pytest.raises(UserMistake, match="changed twice"):
            read(model, Site(LAYER, "mlp"), twice)


# --- other kinds ------------------------------------------------------------------------------


def neuron_basis(d: int) -> Sae:
    """As `saes.py` makes it of a layer's neurons: +e_i and -e_i, and a threshold."""
    rows = torch.eye(d).repeat_interleave(2, dim=0)
    rows[1::2] *= -1
    source = SaeSource("tiny/1-mlp-neurons", None, Site(LAYER, "mlp"), None, "made up")
    none = torch.zeros(2 * d)
    return Sae(source, rows, none, none + 0.05, rows, torch.zeros(d), content_hash="0")


def test_one_side_of_a_neuron_is_set_along_its_coordinate(model: SubjectModel) -> None:
    basis, site = neuron_basis(16), Site(LAYER, "mlp")
    before = read(model, site)
    for unit, sign in ((6, 1.0), (7, -1.0)):
        found = read(model, site, [FeatureChange(basis, unit, "clamp", 4.0)])
        own = torch.where(sign * before[:, 3] > 0.05, sign * before[:, 3], 0.0)
        expected = before.clone()
        expected[:, 3] += sign * (4.0 - own)
        close(found, expected)


@pytest.mark.parametrize("mode", ["clamp", "ablate"])
def test_in_half_precision_too_what_is_set_to_its_own_value_changes_not_a_bit(
    folder: Path, saes: dict[SiteKind, Sae], mode: ChangeMode
) -> None:
    model = load_model(str(folder), [], "cpu", "bfloat16")
    sae = saes["res"]
    (feature,) = strongest(encoded(model, sae))
    before, told = read(model, sae.target), ReadBack()
    found = read(model, sae.target, [FeatureChange(sae, feature, mode, 0.0)], [told])
    assert found.dtype == torch.bfloat16
    is_silent = torch.tensor(told.before) == 0
    assert 0 < int(is_silent.sum()) < len(is_silent)
    assert torch.equal(found[is_silent], before[is_silent])
    own = max(told.before)
    found = read(model, sae.target, [FeatureChange(sae, feature, "clamp", own)])
    token = told.before.index(own)
    assert torch.equal(found[token], before[token])
    assert not torch.equal(found[is_silent], before[is_silent])
