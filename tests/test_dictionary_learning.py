"""SAEs in the files of dictionary_learning: the same features, or a clear refusal."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scopenote.extract.activations import find_firings
from scopenote.extract.local_files import find_local_sae, read_sae_shapes
from scopenote.extract.sae_sources import locate_sae
from scopenote.extract.saes import Sae, load_sae
from scopenote.extract.sites import Site
from scopenote.store.errors import SaeError
from torch import Tensor

from .tiny_gemma import tiny_config

HIDDEN, WIDTH, K = 16, 40, 4
CONFIG = tiny_config(hidden=HIDDEN, heads=2, head_dim=12)
X = torch.randn(30, HIDDEN, generator=torch.Generator().manual_seed(5))

State = dict[str, Tensor]


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(b_dec: str, **more: Tensor) -> State:
    """The tensors of two `Linear`s, the decoder's rows of any length."""
    return {
        "encoder.weight": numbers(WIDTH, HIDDEN, seed=1),
        "encoder.bias": numbers(WIDTH, seed=2),
        "decoder.weight": numbers(HIDDEN, WIDTH, seed=3),
        b_dec: numbers(HIDDEN, seed=4),
        **more,
    }


def plain(**more: Tensor) -> State:
    return {
        "W_enc": numbers(HIDDEN, WIDTH, seed=1),
        "b_enc": numbers(WIDTH, seed=2),
        "W_dec": numbers(WIDTH, HIDDEN, seed=3),
        "b_dec": numbers(HIDDEN, seed=4),
        **more,
    }


K_HERE, THRESHOLD = torch.tensor(K, dtype=torch.int), torch.tensor(2.5)
STATES: dict[str, State] = {
    "AutoEncoder": linear("bias"),
    "AutoEncoderTopK": linear("b_dec", k=K_HERE, threshold=torch.tensor(-1.0)),
    "BatchTopKSAE": linear("b_dec", k=K_HERE, threshold=THRESHOLD),
    "MatryoshkaBatchTopKSAE": plain(
        k=K_HERE, threshold=THRESHOLD, group_sizes=torch.tensor([10, WIDTH - 10])
    ),
    "JumpReluAutoEncoder": plain(threshold=numbers(WIDTH, seed=5)),
}


def by_hand(name: str, state: State) -> tuple[Tensor, Tensor]:
    """Features and reconstruction of X, class by class, one number at a time where it matters."""
    w = {key: tensor.double() for key, tensor in state.items()}
    x = X.double()
    if "W_enc" in w:
        w_enc, w_dec, b_enc = w["W_enc"], w["W_dec"], w["b_enc"]
    else:
        w_enc, w_dec, b_enc = w["encoder.weight"].T, w["decoder.weight"].T, w["encoder.bias"]
    b_dec = w["bias"] if name == "AutoEncoder" else w["b_dec"]
    pre = (x if name == "JumpReluAutoEncoder" else x - b_dec) @ w_enc + b_enc
    f = pre.clamp(min=0)
    if name == "AutoEncoderTopK":
        rank = (-f).argsort(dim=1).argsort(dim=1)
        f = torch.where(rank < K, f, 0.0)
    elif "threshold" in w:
        f = torch.where(pre > w["threshold"], f, 0.0)
    reconstruction = f @ w_dec + b_dec
    if name == "AutoEncoder":
        # As it is loaded by its own package: for decoder rows of unit norm.
        f = f * w_dec.norm(dim=1)
    return f, reconstruction


def save(
    folder: Path, name: str, state: Any = None, *, is_legacy: bool = False, **settings: Any
) -> Path:
    """A folder as dictionary_learning writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    content = STATES[name] if state is None else state
    torch.save(content, folder / "ae.pt", _use_new_zipfile_serialization=not is_legacy)
    trainer = {"dict_class": name, "submodule_name": "resid_post_layer_1", "layer": 1}
    config = {"trainer": trainer | settings, "buffer": {"d_submodule": HIDDEN, "io": "out"}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def load(folder: Path, **told: Any) -> Sae:
    return load_sae(locate_sae(str(folder), "tiny", **told), CONFIG)


def refuse(folder: Path) -> SaeError:
    with pytest.raises(SaeError) as refused:
        load(folder)
    return refused.value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", STATES)
def test_an_sae_fires_as_it_would_itself(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    state = {
        key: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for key, tensor in STATES[name].items()
    }
    sae = load(save(tmp_path / "trainer_0", name, state))
    assert (sae.site, sae.sae_id) == (Site(1, "res"), "tiny/trainer_0")
    features, reconstruction = by_hand(name, state)
    assert 0 < (features > 0).float().mean() < 0.6
    np.testing.assert_allclose(sae.encode(X), features, atol=1e-4)
    np.testing.assert_allclose(sae.reconstruct(X), reconstruction, atol=1e-4)
    found = find_firings(sae, X)
    feature, token = np.nonzero(features.T.numpy())
    np.testing.assert_array_equal(found.feature, feature)
    np.testing.assert_array_equal(found.token, token)


def test_files_of_before_torch_1_6_are_read_as_well(tmp_path: Path) -> None:
    new, old = (
        load(save(tmp_path / str(legacy), "BatchTopKSAE", is_legacy=legacy))
        for legacy in (False, True)
    )
    assert torch.equal(new.encode(X), old.encode(X))


@pytest.mark.parametrize("name", STATES)
def test_an_sae_in_memory_no_longer_needs_its_file(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path, name)
    sae = load(folder)
    before = sae.reconstruct(X)
    with (folder / "ae.pt").open("r+b") as file:
        file.write(b"\xff" * (folder / "ae.pt").stat().st_size)
    assert torch.equal(sae.reconstruct(X), before)


@pytest.mark.parametrize("name", STATES)
def test_shapes_are_those_that_it_has_in_memory(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path, name)
    file = find_local_sae(str(folder))
    assert file is not None
    shapes = read_sae_shapes(file)
    sae = load(folder)
    assert shapes["W_enc"] == (HIDDEN, WIDTH)
    assert shapes["W_dec"] == (WIDTH, HIDDEN)
    assert 4 * sum(int(np.prod(shape)) for shape in shapes.values()) == sae.n_bytes


def test_the_k_may_stand_in_either_place_but_must_be_one(tmp_path: Path) -> None:
    without = {key: v for key, v in STATES["AutoEncoderTopK"].items() if key != "k"}
    assert load(save(tmp_path, "AutoEncoderTopK", without, k=3)).k == 3
    assert load(save(tmp_path, "AutoEncoderTopK", k=K)).k == K
    assert refuse(save(tmp_path, "AutoEncoderTopK", k=3)).found == f"k {K}"
    assert refuse(save(tmp_path, "AutoEncoderTopK", without)).found == "k None"
    assert refuse(save(tmp_path, "AutoEncoderTopK", without, k=WIDTH + 1)).found == "k 41"


def test_a_feature_without_a_direction_stays_finite(tmp_path: Path) -> None:
    state = linear("bias")
    state["decoder.weight"][:, 3] = 0
    sae = load(save(tmp_path, "AutoEncoder", state))
    _, reconstruction = by_hand("AutoEncoder", state)
    np.testing.assert_allclose(sae.reconstruct(X), reconstruction, atol=1e-4)


def test_another_class_is_another_sae(tmp_path: Path) -> None:
    top_k, batch = (
        load(save(tmp_path / name, name, STATES["BatchTopKSAE"]))
        for name in ("AutoEncoderTopK", "BatchTopKSAE")
    )
    assert top_k.content_hash != batch.content_hash


@pytest.mark.parametrize(
    ("settings", "buffer"),
    [
        ({"submodule_name": "mlp_out_layer_1"}, {"io": "out"}),
        ({"submodule_name": None}, {"io": "out"}),
        ({}, {"io": "in"}),
        ({}, {"io": "in_and_out"}),
    ],
)
def test_what_is_no_residual_stream_must_be_told(
    tmp_path: Path, settings: dict[str, Any], buffer: dict[str, str]
) -> None:
    folder = save(tmp_path, "AutoEncoder", **settings)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"buffer": buffer}))
    assert "does not say which tensor" in refuse(folder).what
    assert load(folder, kind="mlp", layer=1).site == Site(1, "mlp")


@pytest.mark.parametrize("name", ["GatedAutoEncoder", "CrossCoder", None])
def test_other_classes_are_refused_by_name(tmp_path: Path, name: Any) -> None:
    folder = save(tmp_path, name, STATES["AutoEncoder"])
    refused = refuse(folder)
    assert refused.what == "The SAE is of a kind that Scopenote does not compute."
    assert refused.found == f"dict_class {name!r} of trainer"
    assert "BatchTopKSAE" in (refused.expected or "")
    with pytest.raises(SaeError, match="does not compute"):
        read_sae_shapes(folder / "ae.pt")


def test_a_threshold_that_was_never_set_is_refused(tmp_path: Path) -> None:
    state = STATES["BatchTopKSAE"] | {"threshold": torch.tensor(-1.0)}
    assert refuse(save(tmp_path, "BatchTopKSAE", state)).found == "threshold -1"


class RunsCode:
    """What a pickle must not do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize(
    "write",
    [
        lambda file: torch.save(torch.nn.Linear(2, 2), file),
        lambda file: torch.save({"encoder.weight": RunsCode()}, file),
        lambda file: file.write_bytes(pickle.dumps(RunsCode(), protocol=2)),
        lambda file: file.write_bytes(b"no longer"),
    ],
    ids=["module", "object", "pickle", "garbage"],
)
def test_a_pickle_of_more_than_tensors_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(save(tmp_path, "AutoEncoder") / "ae.pt")
    refused = refuse(tmp_path)
    assert refused.what == (
        "The SAE's file holds something other than plain tensors, and is not opened."
    )
    assert "weights_only" not in str(refused)
    assert not (tmp_path / "ran").exists()


def shortened(file: Path, to: int) -> None:
    file.write_bytes(file.read_bytes()[:to])


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: shortened(file, -100),
        lambda file: shortened(file, 3000),
        lambda file: shortened(file, 0),
        lambda file: torch.save([torch.ones(3)], file),
        lambda file: torch.save({"encoder.weight": 3}, file),
        lambda file: torch.save(STATES["AutoEncoder"] | {"bias": torch.eye(3).to_sparse()}, file),
        lambda file: torch.save(
            STATES["AutoEncoder"] | {"bias": torch.ones(3, device="meta")}, file
        ),
        lambda file: torch.save(STATES["AutoEncoder"] | {"encoder.bias": torch.ones(7)}, file),
        lambda file: torch.save(STATES["AutoEncoder"] | {"encoder.weight": torch.ones(7)}, file),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = save(tmp_path, "AutoEncoder")
    damage(folder / "ae.pt")
    refused = refuse(folder)
    assert refused.what.startswith("The SAE's file cannot be read")
    assert refused.where == str(folder / "ae.pt")


def test_tensors_of_another_class_are_named(tmp_path: Path) -> None:
    refused = refuse(save(tmp_path, "JumpReluAutoEncoder", STATES["AutoEncoder"]))
    assert refused.what == "The SAE's file lacks arrays."
    assert "W_enc" in (refused.expected or "")
    assert "encoder.weight" in (refused.found or "")


def test_what_is_not_finite_is_refused(tmp_path: Path) -> None:
    state = linear("b_dec", k=K_HERE, threshold=THRESHOLD)
    state["decoder.weight"][2, 3] = float("nan")
    refused = refuse(save(tmp_path, "BatchTopKSAE", state))
    assert refused.what == "The SAE has weights that are not finite."
    assert "W_dec" in (refused.where or "")


def test_weights_without_their_settings_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, "AutoEncoder")
    (folder / "config.json").write_text("{")
    assert refuse(folder).what == "The SAE's config.json cannot be read."
    (folder / "config.json").unlink()
    with pytest.raises(SaeError, match=r"config\.json cannot be read"):
        load(folder, kind="res", layer=1)
    assert "does not say which tensor" in refuse(folder).what


def test_an_sae_of_another_model_is_refused(tmp_path: Path) -> None:
    state = {key: v[..., :12] if "encoder.w" in key else v for key, v in linear("bias").items()}
    state["decoder.weight"], state["bias"] = state["decoder.weight"][:12], state["bias"][:12]
    assert "do not fit the model's" in refuse(save(tmp_path, "AutoEncoder", state)).what
