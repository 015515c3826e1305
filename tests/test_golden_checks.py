"""Published numbers: what the package holds, and that a check measures what it says."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from scopenote.extract.feature_changes import FeatureChange
from scopenote.extract.golden import (
    FullModel,
    changed_probabilities,
    load_full_model,
    next_token_probabilities,
    read_site,
)
from scopenote.extract.golden_checks import (
    _MEASURES,
    Bench,
    GoldenNumbers,
    GoldenResult,
    measure_golden_numbers,
    parse_golden_numbers,
    read_golden_numbers,
)
from scopenote.extract.sae_sources import locate_sae
from scopenote.extract.saes import Sae, load_sae
from scopenote.extract.sites import Site, SiteKind

from .tiny_gemma import save_tiny_gemma, save_tiny_sae, site_inputs

PROMPT = "the thing in the end"
# In Gemma Scope's own layout, as if it were a copy of a repository of the hub.
RES = "google/gemma-scope-tiny-res/layer_1/width_64/average_l0_5"
MLP = "google/gemma-scope-tiny-mlp/layer_1/width_64/average_l0_5"
TRANSCODER = "google/gemma-scope-tiny-transcoders/layer_1/width_64/average_l0_5"
SAES: dict[SiteKind, str] = {"res": RES, "mlp": MLP, "transcoder": TRANSCODER}


@pytest.fixture(scope="module")
def saes(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    folder = tmp_path_factory.mktemp("saes")
    for kind, path in SAES.items():
        inputs = site_inputs(tiny, kind, 1)
        file = save_tiny_sae(tmp_path_factory.mktemp(kind), kind, 1, 64, 16, inputs=inputs)
        target = folder / path
        target.mkdir(parents=True)
        file.rename(target / "params.npz")
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_gemma(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def model(tiny: Path) -> FullModel:
    return load_full_model(tiny)


@pytest.fixture
def bench(model: FullModel, saes: Path) -> Bench:
    return Bench(model, "", [saes])


@pytest.fixture(scope="module")
def res(model: FullModel, saes: Path) -> Sae:
    source = locate_sae(str(saes / RES / "params.npz"), "tiny")
    return load_sae(source, model.network.config)


def numbers(kind: str, expected: dict[str, Any], **settings: Any) -> GoldenNumbers:
    within = settings.pop("within", {"absolute": 1e-4})
    check = {"name": kind, "kind": kind, "expected": expected, "within": within, "origin": "us"}
    settings.setdefault("prompt", PROMPT)
    content = {"model": "tiny", "checks": [{**check, **settings}], "left_out": []}
    return parse_golden_numbers(content)


def measure(bench: Bench, kind: str, expected: dict[str, Any], **settings: Any) -> GoldenResult:
    (result,) = measure_golden_numbers(numbers(kind, expected, **settings), bench)
    return result


# --- what the package holds ---------------------------------------------------------------


def test_every_check_of_the_package_can_be_measured() -> None:
    golden = read_golden_numbers()
    assert golden.model == "google/gemma-2-2b"
    assert {check.kind for check in golden.checks} == set(_MEASURES)
    for check in golden.checks:
        assert check.expected, check.name
        assert check.origin, check.name
        needs_sae = check.kind not in ("next_token", "lens", "clamp")
        assert bool(check.sae) == needs_sae, check.name
        assert bool(check.prompt) == (check.kind not in ("shapes", "encoder_norms", "thresholds"))
        if check.kind in ("lens", "clamp"):
            assert check.layer is not None, check.name
    names = [check.name for check in golden.checks]
    assert len(names) == len(set(names))


def test_the_package_holds_the_published_numbers() -> None:
    by_name = {check.name: check for check in read_golden_numbers().checks}
    assert by_name["next token"].expected[" important"] == 0.2021
    assert by_name["logit lens after layer 12"].expected == {" very": 0.9413}
    held = by_name["MLP output 1393 of layer 20 held at -160"]
    assert (held.layer, held.coordinate, held.value) == (20, 1393, -160)
    assert held.expected == {" important": 0.2263, " high": 0.125}
    assert by_name["MLP features of layer 20"].expected["8249"] == 30.383
    steered = by_name["MLP feature 8249 steered by 500"]
    assert (steered.feature, steered.strength) == (8249, 500)
    assert steered.expected[" question"] == 0.6081
    assert by_name["feature 10004, text a"].expected["2  travel"] == 51.86
    assert by_name["L0 and FVU read one layer too early"].layer == 19
    assert by_name["transcoder feature 4607 (dog)"].expected["2  dog"] == 32.0
    assert by_name["L0 and FVU, transcoder of layer 19"].expected == {"L0": 12.8, "FVU": 0.5}
    assert by_name["L0 and FVU, MLP layer 4"].expected == {"L0": 81, "FVU": 0.26}


def test_an_sae_that_probabilities_are_measured_with_is_named_as_on_the_hub() -> None:
    for check in read_golden_numbers().checks:
        if check.sae:
            organization, repository, layer, width, l0 = check.sae.split("/")
            assert (organization, repository.rpartition("-")[0]) == (
                "google", "gemma-scope-2b-pt",
            )  # fmt: skip
            assert layer.startswith("layer_")
            assert width == "width_16k"
            assert l0.startswith("average_l0_")


def test_what_is_left_out_has_its_reason() -> None:
    content = json.loads(files("scopenote.extract").joinpath("golden_numbers.json").read_text())
    assert len(content["left_out"]) == len(read_golden_numbers().left_out) > 0
    assert all(left_out.reason for left_out in read_golden_numbers().left_out)


# --- near enough --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measured", "is_near"), [(100.0, True), (101.9, True), (98.1, True), (102.2, False), (97, 0)]
)
def test_a_number_passes_within_its_bounds(measured: float, is_near: bool) -> None:
    within = {"absolute": 1, "relative": 0.01}
    (check,) = numbers("next_token", {"a": 100.0}, within=within).checks
    assert check.allows("a", measured) == bool(is_near)


def test_what_was_not_measured_never_passes() -> None:
    (check,) = numbers("next_token", {"a": 0.0, "b": [2, 3]}).checks
    assert not check.allows("a", None)
    assert not check.allows("b", None)
    assert not check.allows("b", [3, 2])
    assert check.allows("b", [2, 3])
    assert GoldenResult(check, {}).wrong == ["a", "b"]
    assert GoldenResult(check, {"a": float("nan"), "b": [2, 3]}).wrong == ["a"]


# --- what each kind measures --------------------------------------------------------------


def test_probabilities_are_given_by_how_a_token_reads(model: FullModel, bench: Bench) -> None:
    expected = next_token_probabilities(model, model.encode(PROMPT))[model.token_id(" the")]
    result = measure(bench, "next_token", {" the": float(expected)})
    assert result.wrong == []
    assert measure(bench, "next_token", {" the": float(expected) + 0.01}).wrong == [" the"]


def test_clamping_steering_and_splicing_change_what_they_say(bench: Bench) -> None:
    token = {" the": 0.0}
    base = measure(bench, "next_token", token).measured
    clamped = measure(bench, "clamp", token, layer=1, coordinate=3, value=9.0).measured
    spliced = measure(bench, "splice", token, sae=MLP).measured
    steered = measure(bench, "steer", token, sae=MLP, feature=2, strength=5.0).measured
    unsteered = measure(bench, "steer", token, sae=MLP, feature=2, strength=0.0).measured
    assert unsteered == pytest.approx(base, abs=1e-6)
    seen = [result[" the"] for result in (base, clamped, spliced, steered) if result]
    assert len(set(seen)) == 4


def test_a_steered_feature_is_tried_both_ways_and_adding_is_what_counts(
    model: FullModel, bench: Bench
) -> None:
    sae = bench.require_sae(MLP)
    f = sae.encode(read_site(model, model.encode(PROMPT), sae.site))
    feature = int(f[-1].argmax())
    assert f[-1, feature] > 0
    by_mode = {
        mode: float(
            changed_probabilities(model, PROMPT, [FeatureChange(sae, feature, mode, 6.0)])[
                model.token_id(" the")
            ]
        )
        for mode in ("add", "clamp")
    }
    assert abs(by_mode["add"] - by_mode["clamp"]) > 1e-4
    settings: dict[str, Any] = {"sae": MLP, "feature": feature, "strength": 6.0}
    settings["within"] = {"absolute": 1e-5}
    added = measure(bench, "steer", {" the": by_mode["add"]}, **settings)
    assert (added.wrong, added.holds_clamped) == ([], False)
    assert added.measured == {" the": by_mode["add"]}
    assert added.clamped == {" the": by_mode["clamp"]}
    other_word = measure(bench, "steer", {" the": by_mode["clamp"]}, **settings)
    assert (other_word.wrong, other_word.holds_clamped) == ([" the"], True)


def test_no_other_kind_is_tried_both_ways(bench: Bench) -> None:
    result = measure(bench, "clamp", {" the": 0.0}, layer=1, coordinate=3, value=9.0)
    assert result.clamped is None
    assert not result.holds_clamped


def test_the_lens_is_read_at_its_layer(bench: Bench) -> None:
    token = {" the": 0.0}
    found = [measure(bench, "lens", token, layer=layer).measured for layer in range(3)]
    assert found[2] == pytest.approx(measure(bench, "next_token", token).measured)
    assert found[0] != pytest.approx(found[1])


def test_features_are_read_at_every_token_with_its_text(
    model: FullModel, bench: Bench, res: Sae
) -> None:
    ids = model.encode(PROMPT)
    f = res.encode(read_site(model, ids, Site(1, "res")))
    feature = int(f[-1].argmax())
    measured = measure(bench, "feature_by_token", {"0 <bos>": 0.0}, sae=RES, feature=feature)
    assert measured.measured is not None
    assert list(measured.measured.values()) == f[:, feature].tolist()
    assert "".join(name.split(" ", 1)[1] for name in measured.measured) == "<bos>" + PROMPT
    other = measure(bench, "feature_by_token", {"1 no such piece": 0.0}, sae=RES)
    assert other.wrong == ["1 no such piece"]
    last = measure(bench, "last_token_features", {str(feature): float(f[-1, feature])}, sae=RES)
    assert last.wrong == []
    strongest = measure(bench, "strongest_features", {str(len(f) - 1): feature}, sae=RES)
    assert strongest.wrong == []
    counts = measure(bench, "counts_above_one", {}, sae=RES).measured
    assert counts == {str(n): int((row > 1).sum()) for n, row in enumerate(f)}
    at_end = measure(bench, "last_token", {}, sae=RES).measured
    assert at_end is not None
    assert at_end["L0"] == int((f[-1] > 0).sum())
    x = read_site(model, ids, Site(1, "res"))
    assert at_end["norm"] == pytest.approx(float(x[-1].square().sum().sqrt()))


def test_fidelity_leaves_out_bos_and_can_be_read_at_another_layer(
    model: FullModel, bench: Bench, res: Sae
) -> None:
    for settings, layer in (({}, 1), ({"layer": 0}, 0)):
        x = read_site(model, model.encode(PROMPT), Site(layer, "res"))[1:]
        f = res.encode(x)
        measured = measure(bench, "fidelity", {}, sae=RES, **settings).measured
        assert measured is not None
        assert measured["L0"] == pytest.approx(float((f > 0).sum()) / len(x))
        left = (x - res.decode(f)).double().square().sum()
        variance = (x.double() - x.double().mean(0)).square().sum()
        assert measured["FVU"] == pytest.approx(float(left / variance), rel=1e-4)


def test_a_transcoder_is_measured_by_what_the_mlp_adds(
    model: FullModel, bench: Bench, saes: Path
) -> None:
    ids = model.encode(PROMPT)
    sae = load_sae(locate_sae(str(saes / TRANSCODER), "tiny"), model.network.config)
    for settings, kind, first in (
        ({}, "transcoder", 1),
        ({"with_bos": True}, "transcoder", 0),
        # Of the wrong tensor what the MLP adds is reconstructed all the same.
        ({"site": "mlp_in"}, "mlp_in", 1),
    ):
        x = read_site(model, ids, Site(1, kind))[first:]
        y = read_site(model, ids, Site(1, "mlp"))[first:].double()
        f = sae.encode(x)
        measured = measure(bench, "fidelity", {}, sae=TRANSCODER, **settings).measured
        assert measured is not None
        assert measured["L0"] == pytest.approx(float((f > 0).sum()) / len(x))
        left = (y - f.double() @ sae.decoder.double() - sae.decoder_bias.double()).square().sum()
        assert measured["FVU"] == pytest.approx(float(left / (y - y.mean(0)).square().sum()), 1e-4)
        by_token = measure(bench, "feature_by_token", {}, sae=TRANSCODER, feature=3, **settings)
        assert by_token.measured is not None
        assert list(by_token.measured.values())[first:] == pytest.approx(f[:, 3].tolist())


def test_a_peak_counts_only_on_its_token(model: FullModel, bench: Bench, res: Sae) -> None:
    ids = model.encode(PROMPT)
    f = res.encode(read_site(model, ids, Site(1, "res")))
    feature = int(f[1:].max(0).values.argmax())
    piece, peak = model.pieces(ids)[int(f[:, feature].argmax())], float(f[:, feature].max())
    assert peak > 0
    assert measure(bench, "peak", {piece: peak}, sae=RES, feature=feature).wrong == []
    assert measure(bench, "peak", {piece: peak / 2}, sae=RES, feature=feature).wrong == [piece]
    assert measure(bench, "peak", {"elsewhere": peak}, sae=RES, feature=feature).wrong


def test_the_weights_of_an_sae_need_no_model(saes: Path, res: Sae) -> None:
    # Only its width is taken from the model, and without one Gemma 2 2B is meant.
    alone = Bench(None, "no model here", [saes])
    assert measure(alone, "shapes", {"W_enc": [16, 64], "b_dec": [16]}, sae=RES).wrong == []
    assert measure(alone, "shapes", {"W_enc": [64, 16]}, sae=RES).wrong == ["W_enc"]
    alone._saes[RES] = res
    thresholds = res.threshold.sort().values
    expected = {
        "least": float(thresholds[0]),
        "median": float(thresholds[31] + thresholds[32]) / 2,
        "greatest": float(thresholds[-1]),
        "7": float(res.threshold[7]),
    }
    assert measure(alone, "thresholds", expected, sae=RES).wrong == []
    norm = float(torch.linalg.vector_norm(res.encoder[63]))
    assert measure(alone, "encoder_norms", {"63": norm}, sae=RES).wrong == []


def test_what_is_not_at_hand_is_said_and_never_passes(model: FullModel, saes: Path) -> None:
    without_model = Bench(None, "google/gemma-2-2b is not on this machine", [saes])
    for kind in ("next_token", "lens", "clamp", "splice", "steer", "feature_by_token", "fidelity"):
        result = measure(without_model, kind, {" the": 0.0}, sae=MLP, layer=1)
        assert result.measured is None, kind
        assert result.reason == "google/gemma-2-2b is not on this machine"
    without_saes = Bench(model, "")
    for kind in ("splice", "steer", "fidelity", "shapes", "thresholds"):
        result = measure(without_saes, kind, {" the": 0.0}, sae=MLP)
        assert result.measured is None, kind
        assert result.reason == f"{MLP} is not on this machine"
