"""The language model whose features are labelled, loaded only as deep as it is needed."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from transformers import AutoConfig, AutoModel, AutoTokenizer

from ..store.errors import ModelError
from .sites import Site, reading

TOY = "toy"
_SUPPORTED = ("gemma2",)


@dataclass(frozen=True, slots=True)
class SubjectModel:
    """A Gemma 2 without its vocabulary head, cut after the deepest layer that is read.

    Attributes:
        name: as it stands in feature ids, such as `gemma-2-2b`.
        network: the base model (`Gemma2Model`).
        tokenizer: its fast tokenizer.
        config: the configuration of the *whole* model.
        content_hash: of the configuration and the vocabulary; not of the weights, which are
            named by `source`.
        source: where it was loaded from.
    """

    name: str
    network: Any
    tokenizer: Any
    config: Any
    content_hash: str
    source: str

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        device: torch.device = self.network.device
        return device

    def read_sites(
        self, input_ids: Int[torch.Tensor, "B S"], sites: list[Site]
    ) -> dict[Site, Float[torch.Tensor, "B S D"]]:
        """The sites' activations, in one pass.

        Sequences are padded on the right and need no mask: attention is causal, so no token
        sees the padding behind it.
        """
        with torch.inference_mode(), reading(self.network, sites) as seen:
            self.network(input_ids=input_ids.to(self.device), use_cache=False)
            return dict(seen)


def model_path(name: str) -> str:
    """A hub id or folder that transformers can load; `toy` is the model inside this package."""
    if name == TOY:
        return str(files("scopenote.extract.toy").joinpath("toy-gemma-2"))
    return name


def model_name(name: str) -> str:
    """The model's part of feature ids: the last component of its hub id or folder."""
    return Path(model_path(name)).name


def load_model(
    name: str, sites: list[Site], device: str = "auto", dtype: str = "auto"
) -> SubjectModel:
    """Loads the layers that the sites need, and the tokenizer.

    Args:
        name: hub id, local folder, or `toy`.
        sites: what will be read; layers beyond the deepest are not loaded.
        device: a torch device, or `auto` for the first GPU if there is one.
        dtype: `float32`, `bfloat16`, or `auto`: bfloat16 on a GPU, float32 on a CPU.

    Raises:
        ModelError: it cannot be loaded, is not a Gemma 2, or has no such layer.
    """
    source = model_path(name)
    config = _load_config(name, source)
    deepest = max((site.layer for site in sites), default=config.num_hidden_layers - 1)
    for site in sites:
        if not 0 <= site.layer < config.num_hidden_layers:
            raise ModelError(
                f"The model has no layer {site.layer}.",
                where=name,
                found=str(site),
                expected=f"a layer from 0 to {config.num_hidden_layers - 1}",
                mend="correct the SAE's path, or its `layer` in the configuration's [saes]",
            )
    chosen = choose_device(device)
    try:
        network = AutoModel.from_pretrained(
            source,
            num_hidden_layers=deepest + 1,
            layer_types=config.layer_types[: deepest + 1],
            dtype=choose_dtype(dtype, chosen),
            # The only implementation that applies Gemma 2's soft cap everywhere; asked for by
            # name because older versions silently dropped the cap under `sdpa`.
            attn_implementation="eager",
        )
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise _cannot_load(name, error) from error
    if not tokenizer.is_fast:
        raise ModelError(
            "The model's tokenizer has no fast version.",
            where=name,
            expected="a folder or repository with tokenizer.json",
        )
    return SubjectModel(
        name=model_name(name),
        network=network.eval().to(chosen),
        tokenizer=tokenizer,
        config=config,
        content_hash=_describe(config, tokenizer),
        source=name,
    )


def choose_device(device: str) -> torch.device:
    """The torch device of that name; `auto` is the first GPU, or else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            "The device cannot be used.",
            where="model.device",
            found=device,
            expected="auto, cpu, cuda, cuda:0, mps",
            mend=str(error).splitlines()[0],
        ) from error
    return chosen


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The torch dtype of that name; `auto` is bfloat16 on a GPU and float32 on a CPU."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    named: torch.dtype = getattr(torch, dtype)
    return named


def load_token_pieces(tokenizer: Any) -> list[tuple[int, str, bytes]]:
    """Every token's id, readable text and exact bytes.

    A token that is a single byte of a longer character has no text of its own: it is written
    `<0xE2>`, as the vocabulary spells it, and its byte stands in the third column.
    """
    pieces = []
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    for piece, token_id in sorted(vocabulary.items(), key=lambda item: item[1]):
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            content = bytes([int(piece[3:5], 16)])
            text = content.decode() if content[0] < 0x80 else piece
        else:
            text = piece.replace("▁", " ")
            content = text.encode("utf-8", "surrogatepass")
        pieces.append((token_id, text, content))
    return pieces


def _load_config(name: str, source: str) -> Any:
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise _cannot_load(name, error) from error
    config = config.get_text_config()
    if config.model_type not in _SUPPORTED:
        raise ModelError(
            "The model is not one whose sites Scopenote knows.",
            where=name,
            found=f"model_type {config.model_type!r}",
            expected=", ".join(_SUPPORTED),
            mend="set [model] name to a Gemma 2, such as google/gemma-2-2b",
        )
    return config


def _cannot_load(name: str, error: Exception) -> ModelError:
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ModelError(
        "The model cannot be loaded.",
        where=f"[model] name = {name!r}",
        found=said,
        expected="a hub id such as google/gemma-2-2b, a folder with config.json, or toy",
        mend="for Gemma, accept the licence on its hub page and set HF_TOKEN",
    )


def _describe(config: Any, tokenizer: Any) -> str:
    digest = blake2b(digest_size=8)
    digest.update(config.to_json_string(use_diff=False).encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    return digest.hexdigest()
