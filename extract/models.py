"""The language model whose features are labelled, loaded only as deep as it is needed."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import GatedRepoError, StrictDataclassError
from jaxtyping import Float, Int
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from ..store.errors import ModelError
from .attention import BLOCKED_ATTENTION, register_blocked_attention
from .hub_files import HUB
from .sites import Site, SiteReader

if TYPE_CHECKING:
    from .windows import SequenceBatch

TOY = "toy"
_SUPPORTED = ("gemma2", "gemma3_text")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class SubjectModel:
    """A Gemma without its vocabulary head, cut after the deepest layer that is read.

    Attributes:
        name: as it stands in feature ids, such as `gemma-2-2b`.
        network: the base model (`Gemma2Model` or `Gemma3TextModel`).
        tokenizer: its fast tokenizer.
        config: the configuration of the *whole* model.
        content_hash: of the configuration and the vocabulary; not of the weights, which are
            named by `source`.
        source: where it was loaded from.
        reader: reads the network's sites.
    """

    name: str
    network: Any
    reader: SiteReader
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
        self,
        input_ids: Int[torch.Tensor, "B S"],
        sites: list[Site],
        position_ids: Int[torch.Tensor, "B S"] | None = None,
    ) -> dict[Site, Float[torch.Tensor, "B S D"]]:
        """The sites' activations, in one pass; from any thread.

        Rows are padded on the right and need no mask: attention is causal, so no token sees the
        padding behind it.

        Args:
            input_ids: BOS and text in each row, or several such sequences.
            sites: what is read.
            position_ids: each token's place in its sequence, from 0, where rows hold several;
                attention then stays inside each.
        """
        positions = None if position_ids is None else position_ids.to(self.device)
        with torch.inference_mode():
            return self.reader.read(input_ids.to(self.device), sites, positions)


def read_vectors(
    model: SubjectModel, batch: SequenceBatch, sites: list[Site]
) -> dict[Site, Float[torch.Tensor, "T D"]]:
    """The sites' vectors at the batch's text tokens, on the model's device."""
    activations = model.read_sites(
        torch.from_numpy(batch.input_ids).long(),
        sites,
        torch.from_numpy(batch.position_ids).long(),
    )
    places = torch.from_numpy(batch.flat_positions).to(model.device)
    return {
        site: x.reshape(-1, x.shape[-1]).index_select(0, places) for site, x in activations.items()
    }


def model_path(name: str) -> str:
    """A hub id or folder that transformers can load; `toy` is the model inside this package."""
    if name == TOY:
        return str(files("scopenote.extract.toy").joinpath("toy-gemma-2"))
    return name


def model_name(name: str) -> str:
    """The model's part of feature ids: the last component of its hub id or folder."""
    path = model_path(name)
    return Path(os.path.abspath(path) if Path(path).is_dir() else path).name


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
        ModelError: it cannot be loaded, is no Gemma 2 or 3, or has no such layer.
    """
    source = model_path(name)
    if not Path(source).is_dir() and source.startswith(("/", ".", "~")):
        raise _cannot_load(name, FileNotFoundError("there is no folder of that name"))
    with quiet_loading():
        config = _load_config(name, source)
        _check_layers(name, sites, config)
        tokenizer = _load_tokenizer(name, source, config)
        chosen = choose_device(device)
        deepest = max((site.layer for site in sites), default=config.num_hidden_layers - 1)
        network = _load_network(name, source, config, deepest + 1, choose_dtype(dtype, chosen))
        if chosen.type == "cpu":
            register_blocked_attention()
            network.set_attn_implementation(BLOCKED_ATTENTION)
    return SubjectModel(
        name=model_name(name),
        network=network.to(chosen),
        reader=SiteReader(network, sites),
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
    if dtype not in _DTYPES:
        raise ModelError(
            "The model cannot be computed in this type.",
            where="model.dtype",
            found=dtype,
            expected=", ".join(["auto", *_DTYPES]),
        )
    return _DTYPES[dtype]


def require_supported(name: str, config: Any) -> None:
    """Makes sure that a configuration is of a model whose sites are known.

    Args:
        name: of the model, for the message.
        config: as its config.json has it. A Gemma 3 with images is none of them, although its
            text part would be.

    Raises:
        ModelError: it is not.
    """
    found = f"model_type {config.model_type!r}"
    if getattr(config, "use_bidirectional_attention", False):
        found += " with attention to later tokens"
    elif config.model_type in _SUPPORTED:
        return
    raise ModelError(
        "The model is not one whose sites Scopenote knows.",
        where=name,
        found=found,
        expected=", ".join(_SUPPORTED),
        mend="set [model] name to a Gemma 2, such as google/gemma-2-2b, or to a Gemma 3 for text "
        "alone, such as google/gemma-3-1b-pt",
    )


def load_token_pieces(tokenizer: Any) -> list[tuple[int, str, bytes]]:
    """Every token's id, readable text and exact bytes, in Gemma's alphabet, by rising id.

    `▁` is written as the space it stands for. A token that is a single byte of a longer
    character has no text of its own: it is written `<0xE2>`, as the vocabulary spells it, and its
    byte stands in the third column.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    by_id = sorted(vocabulary.items(), key=lambda item: item[1])
    return [(token_id, *_text_and_bytes(piece)) for piece, token_id in by_id]


def token_texts(tokenizer: Any, token_ids: Sequence[int]) -> list[str]:
    """The readable text of each of these tokens, as `load_token_pieces` has it."""
    return [_text_and_bytes(piece)[0] for piece in tokenizer.convert_ids_to_tokens(token_ids)]


def _text_and_bytes(piece: str) -> tuple[str, bytes]:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        content = bytes([int(piece[3:5], 16)])
        return content.decode() if content[0] < 0x80 else piece, content
    text = piece.replace("▁", " ")
    return text, text.encode("utf-8", "surrogatepass")


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keeps transformers' own progress bar and load report off the terminal, within the block.

    The report lists the layers left out on purpose; what matters of it is checked instead. Bars
    of downloads are not affected.
    """

    def without_bar(make: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return make(*args, **{**kwargs, "disable": True})

    verbosity = transformers_logging.get_verbosity()
    hook = transformers_logging.set_tqdm_hook(without_bar)
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.set_tqdm_hook(hook)


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model alone.

    Raises:
        ModelError: it cannot be loaded or used.
    """
    source = model_path(name)
    with quiet_loading():
        return _load_tokenizer(name, source, _load_config(name, source))


def load_model_config(name: str) -> Any:
    """The configuration of a model alone.

    Raises:
        ModelError: it cannot be read, or is of no model whose sites are known.
    """
    with quiet_loading():
        return _load_config(name, model_path(name))


def _load_config(name: str, source: str) -> Any:
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError, StrictDataclassError) as error:
        raise _cannot_load(name, error) from error
    require_supported(name, config)
    return config


def _check_layers(name: str, sites: list[Site], config: Any) -> None:
    for site in sites:
        if not 0 <= site.layer < config.num_hidden_layers:
            raise ModelError(
                f"The model has no layer {site.layer}.",
                where=name,
                found=str(site),
                expected=f"a layer from 0 to {config.num_hidden_layers - 1}",
                mend="correct the SAE's path, or its `layer` in the configuration's [saes]",
            )


def _load_network(name: str, source: str, config: Any, n_layers: int, dtype: torch.dtype) -> Any:
    try:
        network, report = AutoModel.from_pretrained(
            source,
            num_hidden_layers=n_layers,
            layer_types=config.layer_types[:n_layers],
            dtype=dtype,
            # Of transformers' own the one that applies Gemma 2's soft cap everywhere; asked
            # for by name because older versions silently dropped the cap under `sdpa`.
            attn_implementation="eager",
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _cannot_load(name, error) from error
    # Weights that the files lack are otherwise filled with random numbers.
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ModelError(
            "The model's files lack weights.",
            where=name,
            found=f"{len(missing)} missing, such as {missing[0]}",
            expected=f"the weights of {config.num_hidden_layers} layers of {config.model_type}",
            mend="download or copy the model again",
        )
    return network.eval()


def _load_tokenizer(name: str, source: str, config: Any) -> Any:
    # A broken tokenizer.json makes the tokenizers library raise bare Exception.
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:
        raise _cannot_load(name, error) from error
    vocabulary = tokenizer.get_vocab()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        fault = "no fast version (tokenizer.json)"
    elif backend.decoder is None or b"ByteFallback" not in backend.decoder.__getstate__():
        fault = "an alphabet other than Gemma's, perhaps byte-level BPE"
    elif tokenizer.bos_token_id is None:
        fault = "no BOS token"
    elif max(vocabulary.values()) >= config.vocab_size:
        fault = f"token ids up to {max(vocabulary.values())}, beyond the model's vocabulary"
    else:
        return tokenizer
    raise ModelError(
        "The model's tokenizer is not one that Scopenote can use.",
        where=name,
        found=fault,
        expected=f"Gemma's: BPE with byte fallback, a BOS, ids below {config.vocab_size}",
        mend="use the tokenizer that came with the model",
    )


def _cannot_load(name: str, error: Exception) -> ModelError:
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ModelError(
        "The model cannot be loaded.",
        where=f"[model] name = {name!r}",
        found=said,
        expected="a hub id such as google/gemma-2-2b, a folder with config.json, or toy",
        mend=_mend_loading(name, error),
    )


def _mend_loading(name: str, error: Exception) -> str:
    if Path(name).exists() or name.count("/") != 1:
        return "for Gemma, accept the licence on its hub page and set HF_TOKEN"
    page = f"{HUB}/{name}"
    if isinstance(error.__cause__, GatedRepoError):
        return f"accept its terms at {page}, then set HF_TOKEN to a token of that account"
    return f"correct the name; if {page} is gated or private, be let in there and set HF_TOKEN"


def _describe(config: Any, tokenizer: Any) -> str:
    digest = blake2b(digest_size=8)
    described = config.to_dict()
    # Who wrote the file does not change what the model computes.
    described.pop("transformers_version", None)
    described.pop("_name_or_path", None)
    digest.update(json.dumps(described, sort_keys=True, default=str).encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    return digest.hexdigest()
