"""The keys and values of what prompts have in common, computed once and kept.

All prompts of an explainer begin with the same instructions. What a causal model computes at a
token depends on the tokens before it alone, so the instructions' keys and values serve every
prompt that has the same token ids there; where a prompt has others, it is read from there on. The
ids decide, not the texts, since a tokenizer may join the end of one text to the next.

**Sliding windows.** In its sliding layers, transformers' cache for Gemma 2 (`DynamicCache` with a
configuration) forgets what lies behind the window, so that it cannot be cut back to the part that a
prompt shares. The caches here are made without a configuration: every layer keeps all keys and
values, and sliding layers are confined to their window by the attention mask alone. transformers
makes that mask of places in the cache, so it is right as long as the tokens of a row lie side by
side in it: padding may stand before them, never among them. The price is memory, and only where a
prompt is longer than the window (4,096 tokens in Gemma 2).

**Many rows, read once.** Where prompts are only read and nothing is written after them (a
simulator's windows), no row needs its keys and values once its layer is done. `share` gives a
cache for these that every row of a batch begins with and to which nothing is ever added: a layer
sees what is kept and what is new side by side, and what is new is forgotten with it. So the memory
that a batch takes does not grow with the number of layers. Here padding stands behind the tokens
of a row, where no token of the row sees it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .chat import Message
from .chat_layout import common_length

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from transformers import Cache, DynamicCache

# One for each explainer that asks a model.
N_KEPT = 4

Layers = list[tuple["Float[torch.Tensor, '1 K S D']", "Float[torch.Tensor, '1 K S D']"]]


@dataclass(frozen=True, slots=True)
class _Kept:
    token_ids: list[int]
    layers: Layers


@dataclass(frozen=True, slots=True)
class Begun:
    """A cache to read a prompt with, in which the prompt's beginning is already.

    Attributes:
        cache: for this prompt alone.
        n_tokens: how many of the prompt's tokens are in it.
        is_new: whether they were computed for this prompt.
    """

    cache: DynamicCache
    n_tokens: int
    is_new: bool


class PrefixCache:
    """The beginnings that were needed last; for one thread, within `torch.inference_mode`."""

    def __init__(
        self,
        network: Any,
        beginning: Callable[[tuple[Message, ...]], list[int]],
        n_kept: int = N_KEPT,
    ) -> None:
        """An empty one.

        Args:
            network: a causal language model of transformers, all of whose layers are attention.
            beginning: the token ids that all prompts share which begin with these messages.
            n_kept: beginnings kept at most.
        """
        self._network = network
        self._beginning = beginning
        self._n_kept = n_kept
        self._kept: OrderedDict[tuple[Message, ...] | tuple[int, ...], _Kept] = OrderedDict()

    def begin(self, leading: tuple[Message, ...], prompt: Sequence[int]) -> Begun:
        """A cache with the prompt's beginning, as far as it is the one of its leading messages.

        Args:
            leading: the messages that the prompt shares with others.
            prompt: token ids; the last at least is left to be read, for what follows it.
        """
        from transformers import DynamicCache

        is_new = leading not in self._kept
        if is_new:
            self._kept[leading] = self._compute(self._beginning(leading))
        kept = self._used(leading)
        n = min(common_length(kept.token_ids, prompt), len(prompt) - 1)
        # A new cache copies what it is given, so what is kept stays as it is.
        layers = [(keys[:, :, :n], values[:, :, :n]) for keys, values in kept.layers]
        return Begun(DynamicCache(layers) if n else DynamicCache(), n, is_new)

    def share(self, leading: tuple[Message, ...], token_ids: Sequence[int]) -> Cache:
        """A cache that any number of rows begin with, batch after batch: it stays as it is.

        Args:
            leading: the messages with which the token ids begin, and others' may.
            token_ids: all that the rows have in common, one token at least.
        """
        key = tuple(token_ids)
        if key not in self._kept:
            begun = self.begin(leading, key)
            self._read(key[begun.n_tokens :], begun.cache)
            self._kept[key] = _Kept(list(key), _layers_of(begun.cache))
        return _shared(self._used(key).layers)

    def clear(self) -> None:
        """Forgets all, for the memory it takes."""
        self._kept.clear()

    def _used(self, key: tuple[Message, ...] | tuple[int, ...]) -> _Kept:
        """What is kept under a key; others that were needed longest ago go."""
        self._kept.move_to_end(key)
        while len(self._kept) > self._n_kept:
            self._kept.popitem(last=False)
        return self._kept[key]

    def _compute(self, token_ids: list[int]) -> _Kept:
        from transformers import DynamicCache

        cache = DynamicCache()
        if token_ids:
            self._read(token_ids, cache)
        return _Kept(token_ids, _layers_of(cache))

    def _read(self, token_ids: Sequence[int], cache: DynamicCache) -> None:
        """Adds what the network makes of tokens to the cache of those before them."""
        import torch

        self._network(
            input_ids=torch.tensor([list(token_ids)], device=self._network.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )


def _layers_of(cache: DynamicCache) -> Layers:
    return [(keys, values) for keys, values, *_ in cache]


def _shared(layers: Layers) -> Cache:
    from transformers import Cache
    from transformers.cache_utils import DynamicLayer

    kind: Any = type("SharedLayer", (DynamicLayer,), {"update": _side_by_side})
    shared: list[Any] = []
    for keys, values in layers:
        layer = kind()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        shared.append(layer)
    return Cache(layers=shared)


def _side_by_side(
    layer: Any,
    keys: Float[torch.Tensor, "B K S D"],
    values: Float[torch.Tensor, "B K S D"],
    *args: Any,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a layer keeps in front of what is new, row by row; it keeps no more than before."""
    import torch

    before = (each.expand(len(keys), -1, -1, -1) for each in (layer.keys, layer.values))
    both = (torch.cat(pair, dim=-2) for pair in zip(before, (keys, values), strict=True))
    return next(both), next(both)
