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
    from transformers import DynamicCache

# One for each explainer that asks a model.
N_KEPT = 4


@dataclass(frozen=True, slots=True)
class _Kept:
    token_ids: list[int]
    layers: list[tuple[Float[torch.Tensor, "1 K S D"], Float[torch.Tensor, "1 K S D"]]]


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
        self._kept: OrderedDict[tuple[Message, ...], _Kept] = OrderedDict()

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
        self._kept.move_to_end(leading)
        while len(self._kept) > self._n_kept:
            self._kept.popitem(last=False)
        kept = self._kept[leading]
        n = min(common_length(kept.token_ids, prompt), len(prompt) - 1)
        # A new cache copies what it is given, so what is kept stays as it is.
        layers = [(keys[:, :, :n], values[:, :, :n]) for keys, values in kept.layers]
        return Begun(DynamicCache(layers) if n else DynamicCache(), n, is_new)

    def clear(self) -> None:
        """Forgets all, for the memory it takes."""
        self._kept.clear()

    def _compute(self, token_ids: list[int]) -> _Kept:
        import torch
        from transformers import DynamicCache

        cache = DynamicCache()
        if token_ids:
            self._network(
                input_ids=torch.tensor([token_ids], device=self._network.device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        return _Kept(token_ids, [(keys, values) for keys, values, *_ in cache])
