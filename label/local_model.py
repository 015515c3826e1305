"""A language model that runs in this process, loaded with all that asking it takes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..store.errors import ModelError
from .chat_layout import ChatLayout

if TYPE_CHECKING:
    import torch

# What a model is for and where it is named, in the words of an error.
_WRITES_LABELS, _NAMED_IN = "write labels", "[explain.chat] model"
# Layers whose keys and values can be kept apart token by token.
_LAYERS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A language model with its head, and how it is talked to.

    Attributes:
        name: hub id or folder.
        network: a causal language model of transformers.
        layout: how its tokenizer writes conversations.
        end_ids: the tokens with which it ends a reply.
        context_tokens: what it takes, prompt and reply together; None where it does not say.
    """

    name: str
    network: Any
    layout: ChatLayout
    end_ids: frozenset[int]
    context_tokens: int | None

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        device: torch.device = self.network.device
        return device


def load_local_model(
    name: str, device: str, purpose: str = _WRITES_LABELS, setting: str = _NAMED_IN
) -> LocalModel:
    """Loads a model and its tokenizer, in bfloat16 or, on a CPU, in float32.

    Args:
        name: hub id or folder.
        device: a torch device, or `auto` for the first GPU if there is one.
        purpose: what it is to do, for the message if it cannot be loaded.
        setting: the key that names it, likewise.

    Raises:
        ModelError: it cannot be loaded, or is no causal language model whose layers are all
            attention.
    """
    from transformers import AutoTokenizer

    cannot_load = partial(_cannot_load, name, purpose, setting)
    if not Path(name).is_dir() and name.startswith(("/", ".", "~")):
        raise cannot_load(FileNotFoundError("there is no folder of that name"))
    chosen = _device(device)
    with _quiet_loading():
        # A broken tokenizer.json makes the tokenizers library raise bare Exception.
        try:
            tokenizer = AutoTokenizer.from_pretrained(name)
        except Exception as error:
            raise cannot_load(error) from error
        network = _load_network(name, chosen, cannot_load)
    _require_fitting(name, network, tokenizer)
    layout = ChatLayout.of(tokenizer, name)
    config = network.config.get_text_config()
    ends = (
        network.generation_config.eos_token_id,
        getattr(config, "eos_token_id", None),
        tokenizer.eos_token_id,
        layout.turn_end,
    )
    return LocalModel(
        name=name,
        network=network,
        layout=layout,
        end_ids=frozenset(end for each in ends for end in _as_set(each)),
        context_tokens=getattr(config, "max_position_embeddings", None),
    )


def _load_network(
    name: str, device: torch.device, cannot_load: Callable[[Exception], ModelError]
) -> Any:
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    loader: Any = AutoModelForCausalLM  # its types leave out that a report may come as well
    unreadable = (SafetensorError, StrictDataclassError)
    try:
        network, report = loader.from_pretrained(name, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, ImportError, *unreadable) as error:
        raise cannot_load(error) from error
    # Weights that the files lack are otherwise filled with random numbers.
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ModelError(
            "The model's files lack weights.",
            where=name,
            found=f"{len(missing)} missing, such as {missing[0]}",
            expected=f"all weights of a {type(network).__name__}",
            mend="download or copy the model again, or name one that writes text",
        )
    n_bytes = sum(weight.nbytes for weight in network.parameters())
    try:
        return network.to(device).eval()
    except torch.OutOfMemoryError as error:
        raise ModelError(
            "The device's memory is too small for the model.",
            where=str(device),
            found=str(error).splitlines()[0],
            expected=f"{n_bytes / 2**30:.2f} GiB for the weights alone",
            mend="name a smaller model, or end what else uses the device",
        ) from error


def _require_fitting(name: str, network: Any, tokenizer: Any) -> None:
    """Makes sure that prompts can be read in parts, and that the two belong together."""
    layers = set(getattr(network.config.get_text_config(), "layer_types", None) or ())
    if layers - _LAYERS or getattr(network, "_is_stateful", False):
        raise ModelError(
            "The model has layers of which a shared beginning cannot be kept.",
            where=name,
            found=f"model_type {network.config.model_type!r} with layers of "
            + (", ".join(sorted(layers)) or "a state"),
            expected="attention in all layers, full or in a sliding window",
            mend="name another model, or serve this one and set `base_url`",
        )
    n_embeddings = network.get_input_embeddings().num_embeddings
    if tokenizer.vocab_size > n_embeddings:
        raise ModelError(
            "The model's tokenizer is another model's.",
            where=name,
            found=f"{tokenizer.vocab_size:,} tokens",
            expected=f"at most the {n_embeddings:,} that the model knows",
            mend="use the tokenizer that came with the model",
        )


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            "The device cannot be used.",
            found=name,
            expected="auto, cpu, cuda, cuda:0, mps",
            mend=str(error).splitlines()[0],
        ) from error
    return device


def _as_set(ends: int | list[int] | None) -> set[int]:
    if ends is None:
        return set()
    return {ends} if isinstance(ends, int) else set(ends)


def _cannot_load(name: str, purpose: str, setting: str, error: Exception) -> ModelError:
    from huggingface_hub.errors import GatedRepoError

    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    if Path(name).exists() or name.count("/") != 1:
        mend = "name a folder with config.json, the weights and the tokenizer, or a hub id"
    elif isinstance(error.__cause__, GatedRepoError):
        mend = "accept its terms on its hub page, then set HF_TOKEN to a token of that account"
    else:
        mend = "correct the name; if its hub page is gated, be let in there and set HF_TOKEN"
    return ModelError(
        f"The model that is to {purpose} cannot be loaded.",
        where=f"{setting} = {name!r}",
        found=said,
        expected="a hub id such as google/gemma-2-9b-it, or a folder with config.json",
        mend=mend,
    )


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Keeps transformers' progress bar and report off the terminal, on which ours is drawn."""
    from transformers.utils import logging as transformers_logging

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
