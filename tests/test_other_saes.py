"""SAEs in the files of SAELens and sparsify: the same features, or a clear refusal."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scopenote.extract.activations import find_firings
from scopenote.extract.local_files import read_sae_shapes
from scopenote.extract.sae_sources import locate_sae
from scopenote.extract.saes import Sae, load_sae
from scopenote.extract.sites import Site
from scopenote.store.errors import SaeError

from .tiny_gemma import tiny_config

HIDDEN, WIDTH, K = 16, 40, 4
CONFIG = tiny_config(hidden=HIDDEN, heads=2, head_dim=12)
X = torch.randn(30, HIDDEN, generator=torch.Generator().manual_seed(5))


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "W_enc": torch.randn(HIDDEN, WIDTH, generator=generator),
        "W_dec": torch.randn(WIDTH, HIDDEN, generator=generator),
        "b_enc": torch.randn(WIDTH, generator=generator),
        "b_dec": torch.randn(HIDDEN, generator=generator),
        "threshold": torch.rand(WIDTH, generator=generator) - 0.3,
    }


def load(folder: Path, **told: Any) -> Sae:
    return load_sae(locate_sae(str(folder), "tiny", **told), CONFIG)


def refuse(folder: Path, **told: Any) -> SaeError:
    with pytest.raises(SaeError) as refused:
        load(folder, **told)
    return refused.value


# --- sparsify ---------------------------------------------------------------------------------


def save_sparsify(folder: Path, **settings: Any) -> Path:
    folder.mkdir(parents=True)
    w = weights()
    save_file(
        {
            "encoder.weight": w["W_enc"].T.contiguous(),
            "encoder.bias": w["b_enc"],
            "W_dec": w["W_dec"],
            "b_dec": w["b_dec"],
        },
        folder / "sae.safetensors",
    )
    (folder / "cfg.json").write_text(json.dumps({"d_in": HIDDEN, "k": K} | settings))
    return folder


def top_k_by_hand() -> np.ndarray:
    w = {name: tensor.double() for name, tensor in weights().items()}
    pre = ((X.double() - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).clamp(min=0).numpy()
    rank = (-pre).argsort(axis=1).argsort(axis=1)
    return np.where(rank < K, pre, 0)


def test_sparsify_s_top_k_sae_fires_as_it_would_itself(tmp_path: Path) -> None:
    sae = load(save_sparsify(tmp_path / "layers.1"))
    assert (sae.site, sae.sae_id, sae.k) == (Site(1, "res"), "tiny/layers.1", K)
    shapes = read_sae_shapes(sae.source.path)
    assert 4 * sum(int(np.prod(shape)) for shape in shapes.values()) == sae.n_bytes
    by_hand = top_k_by_hand()
    np.testing.assert_allclose(sae.encode(X), by_hand, atol=1e-4)
    decoded = by_hand @ weights()["W_dec"].double().numpy() + weights()["b_dec"].double().numpy()
    np.testing.assert_allclose(sae.reconstruct(X), decoded, atol=1e-4)
    found = find_firings(sae, X)
    feature, token = np.nonzero(by_hand.T)
    np.testing.assert_array_equal(found.feature, feature)
    np.testing.assert_array_equal(found.token, token)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"activation": "groupmax"}, "activation 'groupmax'"),
        ({"signed": True}, "signed True"),
        ({"transcode": True}, "transcode True"),
        ({"skip_connection": True}, "a skip connection"),
        ({"k": 0}, "k 0"),
        ({"k": WIDTH + 1}, "k 41"),
        ({"k": None}, "k None"),
    ],
)
def test_other_kinds_of_sparsify_are_refused_by_name(
    tmp_path: Path, settings: dict[str, Any], found: str
) -> None:
    assert refuse(save_sparsify(tmp_path / "layers.1", **settings)).found == found


def test_another_k_is_another_sae(tmp_path: Path) -> None:
    one, two = (load(save_sparsify(tmp_path / str(k) / "layers.1", k=k)) for k in (2, 3))
    assert one.content_hash != two.content_hash


def test_sparsify_s_mlp_is_not_our_site_and_must_be_told(tmp_path: Path) -> None:
    folder = save_sparsify(tmp_path / "layers.1.mlp")
    assert "does not say which tensor" in refuse(folder).what
    assert load(folder, kind="mlp", layer=1).site == Site(1, "mlp")


def test_damaged_files_of_sparsify_are_refused(tmp_path: Path) -> None:
    folder = save_sparsify(tmp_path / "layers.1")
    (folder / "cfg.json").write_text("[]")
    assert refuse(folder).what == "The SAE's cfg.json cannot be read."
    (folder / "cfg.json").unlink()
    assert refuse(folder).what == "The SAE's cfg.json cannot be read."
    folder = save_sparsify(tmp_path / "cut" / "layers.1")
    file = folder / "sae.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert refuse(folder).what.startswith("The SAE's file cannot be read")


# --- SAELens ----------------------------------------------------------------------------------


def save_saelens(folder: Path, hook: str = "blocks.1.hook_resid_post", **settings: Any) -> Path:
    """A folder as SAELens 6 writes it."""
    config = {
        "architecture": "standard",
        "d_in": HIDDEN,
        "d_sae": WIDTH,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"hook_name": hook, "sae_lens_version": "6.54.12"},
    } | settings
    w = weights()
    if config["architecture"] != "jumprelu":
        del w["threshold"]
    folder.mkdir(parents=True)
    save_file(w, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


class StandInForSaeLens:
    """What the loader uses of the package's SAE class, without the package."""

    def __init__(self, folder: Path) -> None:
        settings = json.loads((folder / "cfg.json").read_text())
        architecture = settings.pop("architecture")
        self.cfg = SimpleNamespace(**settings, architecture=lambda: architecture)
        for name, tensor in weights().items():
            setattr(self, name, torch.nn.Parameter(tensor))

    @classmethod
    def load_from_disk(cls, folder: Path, dtype: str) -> StandInForSaeLens:
        assert dtype == "float32"
        return cls(folder)


def stand_in_for_sae_lens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sae_lens", SimpleNamespace(SAE=StandInForSaeLens))


@pytest.fixture(params=["stand-in", "package"])
def sae_lens(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package where it is installed, and in any case what stands in for it."""
    if request.param == "package":
        pytest.importorskip("sae_lens", reason="the extra sae-lens is not installed")
    else:
        stand_in_for_sae_lens(monkeypatch)


@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "topk"])
@pytest.mark.usefixtures("sae_lens")
def test_an_sae_of_saelens_fires_as_it_would_itself(
    tmp_path: Path, architecture: str, subtracts: bool
) -> None:
    settings: dict[str, Any] = {"k": K, "rescale_acts_by_decoder_norm": False}
    folder = save_saelens(
        tmp_path / "mine",
        architecture=architecture,
        apply_b_dec_to_input=subtracts,
        **(settings if architecture == "topk" else {}),
    )
    sae = load(folder)
    assert (sae.site, sae.sae_id) == (Site(1, "res"), "tiny/mine")
    w = {name: tensor.double() for name, tensor in weights().items()}
    pre = (X.double() - w["b_dec"] * subtracts) @ w["W_enc"] + w["b_enc"]
    by_hand = pre.clamp(min=0)
    if architecture == "jumprelu":
        by_hand = by_hand * (pre > w["threshold"])
    if architecture == "topk":
        kth = by_hand.topk(K, dim=1).values[:, -1:]
        by_hand = by_hand * (by_hand >= kth)
    np.testing.assert_allclose(sae.encode(X), by_hand, atol=1e-4)
    np.testing.assert_allclose(sae.reconstruct(X), by_hand @ w["W_dec"] + w["b_dec"], atol=1e-4)


@pytest.mark.parametrize("rescales", [True, False])
def test_the_package_and_we_compute_the_same(tmp_path: Path, rescales: bool) -> None:
    package = pytest.importorskip("sae_lens", reason="the extra sae-lens is not installed")
    folder = save_saelens(
        tmp_path / "mine", architecture="topk", k=K, rescale_acts_by_decoder_norm=rescales
    )
    theirs, ours = package.SAE.load_from_disk(folder), load(folder)
    with torch.no_grad():
        assert torch.equal(theirs.encode(X) > 0, ours.encode(X) > 0)
        torch.testing.assert_close(theirs(X), ours.reconstruct(X), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"architecture": "gated"}, "architecture 'gated'"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations 'layer_norm'"),
    ],
)
def test_other_kinds_of_saelens_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], found: str
) -> None:
    stand_in_for_sae_lens(monkeypatch)
    refused = refuse(save_saelens(tmp_path / "mine", **settings))
    assert refused.what == "The SAE is of a kind that Scopenote does not compute."
    assert refused.found == found


def test_without_the_package_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    refused = refuse(save_saelens(tmp_path / "mine"))
    assert refused.mend == "pip install 'scopenote[sae-lens]'"


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("blocks.2.hook_resid_post", Site(2, "res")),
        ("blocks.2.hook_resid_pre", Site(1, "res")),
        ("blocks.2.hook_mlp_out", Site(2, "mlp")),
        ("blocks.2.attn.hook_z", Site(2, "att")),
    ],
)
def test_the_hook_s_name_says_what_is_read(tmp_path: Path, hook: str, site: Site) -> None:
    assert locate_sae(str(save_saelens(tmp_path / "new", hook)), "m").site == site
    # Before version 6 it stood at the top.
    old = save_saelens(tmp_path / "old", metadata={}, hook_name=hook)
    assert locate_sae(str(old), "m").site == site


@pytest.mark.parametrize("hook", ["blocks.0.hook_resid_pre", "hook_embed", "blocks.2.hook_mlp_in"])
def test_a_hook_that_is_no_site_must_be_told(tmp_path: Path, hook: str) -> None:
    assert "does not say which tensor" in refuse(save_saelens(tmp_path / "mine", hook)).what
