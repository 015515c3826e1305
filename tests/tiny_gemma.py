"""A tiny random Gemma 2 with a tokenizer and SAEs that suit it, saved as the real ones are.

    model = save_tiny_gemma(tmp_path / "tiny-gemma-2")
    sae = save_tiny_sae(tmp_path / "saes", "res", 1, 64, 16, inputs=site_inputs(model, "res", 1))

Layers differ in every weight, norms included, so that no site can be mistaken for another.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scopenote.extract.sites import Site, SiteKind, SiteReader
from transformers import (
    AutoModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaTokenizer,
)
from transformers.utils import logging as transformers_logging

PAD, EOS, BOS, UNK = 0, 1, 2, 3
SPECIALS = ("<pad>", "<eos>", "<bos>", "<unk>")
# Characters of their own and a few merges; all other characters fall back to bytes.
CHARACTERS = "▁\nabcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'-()é"
MERGES = (("t", "h"), ("th", "e"), ("▁", "the"), ("i", "n"), ("in", "g"), ("e", "r"), ("a", "n"))


def tiny_tokenizer() -> GemmaTokenizer:
    """Gemma's own tokenizer class over some 340 tokens."""
    pieces = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), *CHARACTERS]
    pieces += ["".join(pair) for pair in MERGES]
    return GemmaTokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)},
        merges=list(MERGES),
        mask_token=None,
        add_bos_token=True,
    )


def tiny_config(
    *, layers: int = 3, hidden: int = 16, heads: int = 2, kv_heads: int = 1, head_dim: int = 12
) -> Gemma2Config:
    """Gemma 2 with all its peculiarities at work: soft caps low enough to bend, GQA, RoPE."""
    return Gemma2Config(
        **_sizes(layers, hidden, heads, kv_heads, head_dim),
        attn_logit_softcapping=2.0,
        final_logit_softcapping=30.0,
        sliding_window=1024,
        tie_word_embeddings=True,
    )


def tiny_gemma_3_config(
    *, layers: int = 3, hidden: int = 16, heads: int = 2, kv_heads: int = 1, head_dim: int = 12
) -> Gemma3TextConfig:
    """Gemma 3 for text: no soft caps, norms of queries and keys, two kinds of layers."""
    return Gemma3TextConfig(
        **_sizes(layers, hidden, heads, kv_heads, head_dim),
        sliding_window=5,
        layer_types=[
            "sliding_attention" if n % 2 == 0 else "full_attention" for n in range(layers)
        ],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 10_000.0},
        },
    )


def _sizes(layers: int, hidden: int, heads: int, kv_heads: int, head_dim: int) -> dict[str, Any]:
    """What the configurations of both generations call alike."""
    return {
        "vocab_size": len(tiny_tokenizer()),
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "query_pre_attn_scalar": 10,
        "max_position_embeddings": 2048,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "bos_token_id": BOS,
    }


def save_tiny_gemma(
    folder: Path,
    *,
    generation: Literal[2, 3] = 2,
    seed: int = 0,
    layers: int = 3,
    hidden: int = 16,
    heads: int = 2,
    kv_heads: int = 1,
    head_dim: int = 12,
) -> Path:
    """Writes model and tokenizer into `folder`, whose name becomes the model's; gives it back.

    Attention's site is `heads * head_dim` wide, unlike the residual stream's `hidden`.
    """
    make_config = tiny_config if generation == 2 else tiny_gemma_3_config
    config = make_config(
        layers=layers, hidden=hidden, heads=heads, kv_heads=kv_heads, head_dim=head_dim
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Gemma2ForCausalLM(config) if generation == 2 else Gemma3ForCausalLM(config)
        for name, weight in model.named_parameters():
            scale = 0.3 if weight.ndim == 1 or "embed" in name else weight.shape[1] ** -0.5
            torch.nn.init.normal_(weight, std=scale)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def site_inputs(model: Path, kind: SiteKind, layer: int, n_tokens: int = 512) -> np.ndarray:
    """What a site of a saved model carries on random tokens, to fit an SAE to."""
    network = AutoModel.from_pretrained(model, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(1)
    shape = (n_tokens // 32, 33)
    ids = torch.randint(len(SPECIALS) + 256, network.config.vocab_size, shape, generator=generator)
    ids[:, 0] = BOS
    site = Site(layer, kind)
    with torch.inference_mode():
        x = SiteReader(network).read(ids, [site])[site][:, 1:]
    return x.reshape(-1, x.shape[-1]).numpy().copy()


def sae_arrays(
    width: int, d_in: int, *, l0: int = 5, seed: int = 0, inputs: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """An SAE of random directions whose thresholds let `l0` features fire per token.

    That is on `inputs` (tokens by d_in; standard normal if absent), each feature on an equal
    share of them; the decoder is fitted to reconstruct them.
    """
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((512, d_in)) if inputs is None else inputs.astype(np.float64)
    centre = x.mean(0)
    encoder = rng.standard_normal((d_in, width))
    encoder /= np.linalg.norm(encoder, axis=0)
    bias = -centre @ encoder
    pre = x @ encoder + bias
    threshold = np.maximum(np.quantile(pre, 1 - l0 / width, axis=0), 1e-6)
    f = np.where(pre > threshold, pre, 0)
    decoder = np.linalg.solve(f.T @ f + np.eye(width), f.T @ (x - centre))
    arrays = {
        "W_enc": encoder,
        "W_dec": decoder,
        "b_enc": bias,
        "b_dec": centre,
        "threshold": threshold,
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def save_tiny_sae(
    folder: Path,
    site_kind: SiteKind,
    layer: int,
    width: int,
    d_in: int,
    *,
    l0: int = 5,
    seed: int = 0,
    inputs: np.ndarray | None = None,
) -> Path:
    """Writes `{site_kind}/layer_N/width_W/average_l0_M/params.npz` under `folder`; gives it.

    Two of these with one seed are the same; without `inputs` the sparsity is that of standard
    normal vectors, which a model's are not quite.
    """
    file = folder / site_kind / f"layer_{layer}/width_{width}/average_l0_{l0}" / "params.npz"
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {**sae_arrays(width, d_in, l0=l0, seed=seed, inputs=inputs)}
    np.savez(file, **arrays)
    return file


@contextmanager
def hearing_transformers() -> Iterator[list[str]]:
    """What transformers warns of within the block.

    Its own handler may hold a stderr that is older than the one pytest captures, so messages
    are caught where they start.
    """
    said: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    ear = Ear(logging.WARNING)
    transformers_logging.add_handler(ear)
    try:
        yield said
    finally:
        transformers_logging.remove_handler(ear)
