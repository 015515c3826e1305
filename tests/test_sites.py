"""Every site of every layer, against Gemma 2 and Gemma 3 written out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from scopenote.extract.attention import BLOCKED_ATTENTION
from scopenote.extract.models import SubjectModel, load_model
from scopenote.extract.sites import SITE_KINDS, Site, SiteKind, site_width
from torch import Tensor
from transformers import AutoModel

from .tiny_gemma import BOS, PAD, save_tiny_gemma

LAYERS = 3
EMBEDDING = Site(0, "embedding")
SITES = [EMBEDDING] + [
    Site(layer, kind) for layer in range(LAYERS) for kind in SITE_KINDS if kind != "embedding"
]
IDS = torch.tensor(
    [
        [BOS, 336, 264, 262, 281, 338, 280, 263, 276, 280, 261, 300],
        [BOS, 290, 4, 66, 201, 338, 338, 336, 262, 297, 331, 265],
    ]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_gemma(
        tmp_path_factory.mktemp("model") / "tiny", layers=LAYERS, heads=4, kv_heads=2
    )


@pytest.fixture(scope="module")
def model(folder: Path) -> SubjectModel:
    return load_model(str(folder), SITES, "cpu", "float32")


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * (1 + gain)


def rotate(x: Tensor, theta: float, factor: float = 1.0) -> Tensor:
    """Rotary embedding of (head, position, d): coordinate i turns with coordinate i + d/2."""
    half = x.shape[-1] // 2
    position = torch.arange(x.shape[1])[:, None] / factor
    angle = position * theta ** -(torch.arange(half).double() / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def weights_of_layer(weights: dict[str, Tensor], layer: int) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"layers.{layer}.").removesuffix(".weight"): weight
        for name, weight in weights.items()
        if name.startswith(f"layers.{layer}.")
    }


def plain_mlp(
    x: Tensor, own: dict[str, Tensor], eps: float, seen: dict[Site, Tensor], layer: int
) -> Tensor:
    """What a layer's MLP adds to x; what is read before it goes into `seen`."""
    seen[Site(layer, "transcoder")] = rms_norm(x, torch.zeros(()), eps)
    h = rms_norm(x, own["pre_feedforward_layernorm"], eps)
    seen[Site(layer, "mlp_in")] = h
    gate = torch.nn.functional.gelu(h @ own["mlp.gate_proj"].T, approximate="tanh")
    h = (gate * (h @ own["mlp.up_proj"].T)) @ own["mlp.down_proj"].T
    return rms_norm(h, own["post_feedforward_layernorm"], eps)


def plain_gemma2(
    weights: dict[str, Tensor],
    config: object,
    ids: Tensor,
    changes: Mapping[Site, Callable[[Tensor], Tensor]] = MappingProxyType({}),
) -> dict[Site, Tensor]:
    """Gemma 2 on one sequence, in float64, one line of the paper at a time.

    Without the sliding window, which is longer than any sequence here. A site that is changed
    is changed for all that comes after it.
    """
    c, w = vars(config), {name: weight.double() for name, weight in weights.items()}
    n_heads, n_groups, d = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
    eps, theta = c["rms_norm_eps"], c["rope_parameters"]["rope_theta"]
    cap, scale = c["attn_logit_softcapping"], c["query_pre_attn_scalar"] ** -0.5
    seen = {EMBEDDING: w["embed_tokens.weight"][ids]}

    def changed(kind: SiteKind, x: Tensor) -> Tensor:
        change = changes.get(Site(layer, kind))
        return x if change is None else change(x)

    x = seen[EMBEDDING] * math.sqrt(c["hidden_size"])
    for layer in range(c["num_hidden_layers"]):
        own = weights_of_layer(w, layer)
        h = rms_norm(x, own["input_layernorm"], eps)
        q, k, v = (
            (h @ own[f"self_attn.{which}_proj"].T).unflatten(-1, (-1, d)).transpose(0, 1)
            for which in "qkv"
        )
        q, k = rotate(q, theta), rotate(k, theta)
        k, v = (t.repeat_interleave(n_heads // n_groups, 0) for t in (k, v))
        logits = cap * torch.tanh(q @ k.transpose(1, 2) * scale / cap)
        future = torch.ones(len(ids), len(ids)).triu(1).bool()
        heads = logits.masked_fill(future, -math.inf).softmax(-1) @ v
        seen[Site(layer, "att")] = changed("att", heads.transpose(0, 1).flatten(1))
        attended = seen[Site(layer, "att")] @ own["self_attn.o_proj"].T
        x = x + rms_norm(attended, own["post_attention_layernorm"], eps)
        h = plain_mlp(x, own, eps, seen, layer)
        seen[Site(layer, "mlp")] = changed("mlp", h)
        x = changed("res", x + seen[Site(layer, "mlp")])
        seen[Site(layer, "res")] = x
    return seen


def plain_gemma3(weights: dict[str, Tensor], config: object, ids: Tensor) -> dict[Site, Tensor]:
    """Gemma 3's text model on one sequence, in float64.

    Beside Gemma 2 it norms queries and keys, has no soft cap, and turns the layers that see
    everything by another angle than those that see a few tokens.
    """
    c, w = vars(config), {name: weight.double() for name, weight in weights.items()}
    n_heads, n_groups, d = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
    eps, scale = c["rms_norm_eps"], c["query_pre_attn_scalar"] ** -0.5
    seen = {EMBEDDING: w["embed_tokens.weight"][ids]}
    x = seen[EMBEDDING] * math.sqrt(c["hidden_size"])
    distance = torch.arange(len(ids))[:, None] - torch.arange(len(ids))[None, :]
    for layer in range(c["num_hidden_layers"]):
        own = weights_of_layer(w, layer)
        kind = c["layer_types"][layer]
        rope = c["rope_parameters"][kind]
        h = rms_norm(x, own["input_layernorm"], eps)
        q, k, v = (
            (h @ own[f"self_attn.{which}_proj"].T).unflatten(-1, (-1, d)).transpose(0, 1)
            for which in "qkv"
        )
        q, k = (
            rotate(
                rms_norm(t, own[f"self_attn.{which}_norm"], eps),
                rope["rope_theta"],
                rope.get("factor", 1.0),
            )
            for t, which in ((q, "q"), (k, "k"))
        )
        k, v = (t.repeat_interleave(n_heads // n_groups, 0) for t in (k, v))
        hidden = distance < 0
        if kind == "sliding_attention":
            hidden = hidden | (distance >= c["sliding_window"])
        logits = (q @ k.transpose(1, 2) * scale).masked_fill(hidden, -math.inf)
        seen[Site(layer, "att")] = (logits.softmax(-1) @ v).transpose(0, 1).flatten(1)
        attended = seen[Site(layer, "att")] @ own["self_attn.o_proj"].T
        x = x + rms_norm(attended, own["post_attention_layernorm"], eps)
        seen[Site(layer, "mlp")] = plain_mlp(x, own, eps, seen, layer)
        x = x + seen[Site(layer, "mlp")]
        seen[Site(layer, "res")] = x
    return seen


@pytest.fixture(scope="module")
def gemma_3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny-gemma-3"
    return save_tiny_gemma(folder, generation=3, layers=LAYERS, heads=4, kv_heads=2)


@pytest.mark.parametrize("deepest", range(LAYERS))
def test_a_site_is_the_tensor_that_a_plain_gemma_3_has_there(gemma_3: Path, deepest: int) -> None:
    sites = [site for site in SITES if site.layer <= deepest]
    model = load_model(str(gemma_3), sites, "cpu", "float32")
    assert len(model.network.layers) == deepest + 1
    whole = AutoModel.from_pretrained(gemma_3)
    read = model.read_sites(IDS, sites)
    for row, ids in enumerate(IDS):
        plain = plain_gemma3(whole.state_dict(), whole.config, ids)
        for site in sites:
            torch.testing.assert_close(read[site][row].double(), plain[site], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("site", SITES, ids=str)
def test_a_site_is_the_tensor_that_a_plain_gemma_2_has_there(
    model: SubjectModel, site: Site
) -> None:
    read = model.read_sites(IDS, [site])[site]
    weights = model.network.state_dict()
    for row, ids in enumerate(IDS):
        expected = plain_gemma2(weights, model.config, ids)[site]
        torch.testing.assert_close(read[row].double(), expected, rtol=1e-5, atol=1e-5)


def test_one_pass_reads_all_sites(model: SubjectModel) -> None:
    together = model.read_sites(IDS, SITES)
    assert set(together) == set(SITES)
    for site in SITES:
        assert torch.equal(together[site], model.read_sites(IDS, [site])[site])


def test_the_sites_differ_from_each_other(model: SubjectModel) -> None:
    read = model.read_sites(IDS, SITES)
    by_width: dict[int, list[Tensor]] = {}
    for x in read.values():
        by_width.setdefault(x.shape[-1], []).append(x)
    for alike in by_width.values():
        for i, x in enumerate(alike):
            assert all((x - other).abs().mean() > 0.1 for other in alike[:i])


@pytest.mark.parametrize("kind", SITE_KINDS)
def test_a_site_is_as_wide_as_it_says(model: SubjectModel, kind: SiteKind) -> None:
    site = Site(1, kind)
    width = model.read_sites(IDS, [site])[site].shape[-1]
    assert width == site_width(site, model.config) == (48 if kind == "att" else 16)


@pytest.mark.parametrize("kind", SITE_KINDS)
def test_only_what_reads_before_the_mlp_reconstructs_another_site(kind: SiteKind) -> None:
    target = Site(2, "mlp") if kind in ("transcoder", "mlp_in") else Site(2, kind)
    assert Site(2, kind).target == target


def test_the_gain_of_the_norm_is_all_that_tells_the_two_transcoder_inputs_apart(
    model: SubjectModel,
) -> None:
    plain, scaled = Site(LAYERS - 1, "transcoder"), Site(LAYERS - 1, "mlp_in")
    read = model.read_sites(IDS, [plain, scaled])
    gain = 1 + model.network.layers[LAYERS - 1].pre_feedforward_layernorm.weight.detach()
    torch.testing.assert_close(read[plain] * gain, read[scaled])
    root_mean_square = read[plain].square().mean(-1).sqrt()
    torch.testing.assert_close(root_mean_square, torch.ones(IDS.shape), rtol=1e-3, atol=0)


def test_the_embedding_alone_is_read_without_running_the_model(folder: Path) -> None:
    model = load_model(str(folder), [EMBEDDING], "cpu", "float32")
    model.network.layers[0].register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    assert model.read_sites(IDS, [EMBEDDING])[EMBEDDING].shape == (*IDS.shape, 16)


def test_the_last_residual_is_read_before_the_final_norm(folder: Path, model: SubjectModel) -> None:
    last = Site(LAYERS - 1, "res")
    whole = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.inference_mode():
        normed = whole(input_ids=IDS).last_hidden_state
        read = model.read_sites(IDS, [last])[last]
        torch.testing.assert_close(whole.norm(read), normed)
    assert not torch.allclose(read, normed, atol=0.1)


def test_padding_on_the_right_changes_no_real_token(model: SubjectModel) -> None:
    whole = model.read_sites(IDS, SITES)
    padded = torch.cat([IDS, torch.full((2, 9), PAD)], dim=1)
    padded[0, 6:] = PAD
    mixed = model.read_sites(padded, SITES)
    for site in SITES:
        torch.testing.assert_close(mixed[site][0, :6], whole[site][0, :6], rtol=0, atol=1e-5)
        torch.testing.assert_close(mixed[site][1, :12], whole[site][1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("attention", ["eager", BLOCKED_ATTENTION])
@pytest.mark.parametrize("generation", ["folder", "gemma_3"])
def test_sequences_that_share_a_row_do_not_see_each_other(
    request: pytest.FixtureRequest, generation: str, attention: str
) -> None:
    packed = load_model(str(request.getfixturevalue(generation)), SITES, "cpu", "float32")
    packed.network.set_attn_implementation(attention)
    lengths = (5, 4, 3)
    ids = torch.cat([IDS[1, :n].roll(n, 0) for n in lengths])
    positions = torch.cat([torch.arange(n) for n in lengths])
    # Beside it a row of one sequence and padding.
    row = torch.cat([IDS[0, :7], torch.full((5,), PAD)])
    place = torch.cat([torch.arange(7), torch.zeros(5, dtype=torch.long)])
    read = packed.read_sites(torch.stack([ids, row]), SITES, torch.stack([positions, place]))
    alone = [packed.read_sites(part[None], SITES) for part in ids.split(lengths)]
    for site in SITES:
        expected = torch.cat([each[site][0] for each in alone])
        torch.testing.assert_close(read[site][0], expected, rtol=0, atol=1e-5)
        expected = packed.read_sites(IDS[:1, :7], [site])[site][0]
        torch.testing.assert_close(read[site][1, :7], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("deepest", range(LAYERS))
def test_loading_fewer_layers_changes_nothing_at_those_that_are_left(
    folder: Path, model: SubjectModel, deepest: int
) -> None:
    sites = [site for site in SITES if site.layer <= deepest]
    cut = load_model(str(folder), sites, "cpu", "float32")
    assert len(cut.network.layers) == deepest + 1
    whole, read = model.read_sites(IDS, sites), cut.read_sites(IDS, sites)
    for site in sites:
        assert torch.equal(read[site], whole[site])


def count_hooks(network: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def test_hooks_do_not_pile_up(model: SubjectModel) -> None:
    model.read_sites(IDS, SITES)
    before = count_hooks(model.network)
    model.read_sites(IDS, SITES)
    with pytest.raises(IndexError):
        model.read_sites(torch.tensor([[10**6]]), SITES)
    with pytest.raises(IndexError):
        model.read_sites(IDS, [SITES[0], Site(99, "res")])
    assert count_hooks(model.network) == before


def test_passes_side_by_side_do_not_mix(model: SubjectModel) -> None:
    texts = [IDS.roll(shift, dims=1) for shift in range(8)]
    alone = [model.read_sites(ids, SITES) for ids in texts]
    with ThreadPoolExecutor(4) as executor:
        together = list(executor.map(lambda ids: model.read_sites(ids, SITES), texts * 5))
    for number, read in enumerate(together):
        for site in SITES:
            torch.testing.assert_close(read[site], alone[number % len(texts)][site])


def test_a_pass_that_is_cancelled_ends_at_its_next_layer(model: SubjectModel) -> None:
    model.reader.cancelled.set()
    try:
        with pytest.raises(CancelledError):
            model.read_sites(IDS, SITES)
    finally:
        model.reader.cancelled.clear()
    assert set(model.read_sites(IDS, SITES)) == set(SITES)


@pytest.mark.parametrize("kind", [kind for kind in SITE_KINDS if kind != "embedding"])
def test_a_pass_ends_after_the_deepest_layer_that_is_asked_for(
    model: SubjectModel, kind: SiteKind
) -> None:
    entered: list[int] = []
    handles = [
        layer.mlp.register_forward_pre_hook(lambda *_, n=number: entered.append(n))
        for number, layer in enumerate(model.network.layers)
    ]
    model.read_sites(IDS, [Site(0, kind)])
    shallow, entered[:] = list(entered), []
    model.network(input_ids=IDS)  # not begun by the reader
    for handle in handles:
        handle.remove()
    assert shallow == [0]
    assert entered == [0, 1, 2]
