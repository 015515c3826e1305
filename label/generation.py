"""Replies of a local model: prompts are read one by one, replies are written side by side.

Reading is bound by arithmetic, of which a batch saves none. So each prompt is read by itself, from
where its shared beginning ends (`prefix_cache.py`), and nothing is padded. Writing is bound by the
way of the weights through memory, where many replies cost hardly more than one. So all go on
together, a token each at every step, their caches stacked with padding on the left. What a row
holds does not depend on its neighbours, but for rounding, which differs with the shape of a batch.

Left out: beams, penalties, top-k and top-p, whatever the model's own settings say of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from random import Random
from threading import Event
from typing import TYPE_CHECKING, Any

from .chat import ChatRequest, TokenLogprob
from .local_model import LocalModel
from .prefix_cache import PrefixCache

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int
    from transformers import DynamicCache


class Stopped(Exception):
    """Nobody waits for the replies any more."""


@dataclass(slots=True)
class Draft:
    """A prompt, and what the model has written after it.

    Attributes:
        request: what was asked.
        prompt: its token ids.
        cached_tokens: those of them that were not computed for it.
        written: token ids, without the one that ended them.
        logprobs: one for each of these, where the request asks for them.
        finish_reason: `stop` or `length`; None while it is unfinished.
        random: one number is drawn for each token, if the temperature is above 0.
    """

    request: ChatRequest
    prompt: list[int]
    cached_tokens: int = 0
    written: list[int] = field(init=False)
    logprobs: list[TokenLogprob] = field(init=False)
    finish_reason: str | None = field(init=False)
    random: Random = field(init=False)

    def __post_init__(self) -> None:
        self.begin_again()

    def begin_again(self) -> None:
        """Forgets what is written, so that it can be written once more."""
        self.written, self.logprobs = [], []
        self.finish_reason = None
        self.random = Random(self.request.request_hash)


def write_replies(
    model: LocalModel, prefixes: PrefixCache, drafts: Sequence[Draft], stopping: Event
) -> None:
    """Writes the replies to all prompts.

    Args:
        model: that writes.
        prefixes: the beginnings of prompts that it has read.
        drafts: nothing written in them yet.
        stopping: set from elsewhere to give up.

    Raises:
        Stopped: it was set.
        torch.OutOfMemoryError: some drafts may be finished even so.
    """
    import torch

    with torch.inference_mode():
        begun: list[Draft] = []
        caches: list[DynamicCache] = []
        for draft in drafts:
            _require_going(stopping)
            cache = _read_prompt(model, prefixes, draft)
            if draft.finish_reason is None:
                begun.append(draft)
                caches.append(cache)
        if begun:
            _write_on(model, begun, _stack(caches), stopping)


def _read_prompt(model: LocalModel, prefixes: PrefixCache, draft: Draft) -> DynamicCache:
    """Reads a prompt to its end and writes the first token after it."""
    import torch

    leading = takewhile(lambda message: message.role == "system", draft.request.messages)
    begun = prefixes.begin(tuple(leading), draft.prompt)
    draft.cached_tokens = 0 if begun.is_new else begun.n_tokens
    n, device = len(draft.prompt), model.device
    output = model.network(
        input_ids=torch.tensor([draft.prompt[begun.n_tokens :]], device=device),
        position_ids=torch.arange(begun.n_tokens, n, device=device)[None],
        past_key_values=begun.cache,
        use_cache=True,
        logits_to_keep=1,
    )
    _write_token(model, [draft], output.logits[:, -1])
    return begun.cache


def _stack(caches: list[DynamicCache]) -> DynamicCache:
    """One cache of several, each a row, all ending at the same place; they are used up."""
    import torch
    from torch.nn.functional import pad
    from transformers import DynamicCache

    longest = max(cache.get_seq_length() for cache in caches)
    together = DynamicCache()
    for number in range(len(caches[0].layers)):
        layers: list[Any] = [cache.layers[number] for cache in caches]
        missing = [longest - layer.get_seq_length() for layer in layers]
        keys, values = (
            torch.cat([pad(x, (0, 0, n, 0)) for x, n in zip(each, missing, strict=True)])
            for each in ([layer.keys for layer in layers], [layer.values for layer in layers])
        )
        together.update(keys, values, number)
        for layer in layers:
            layer.reset()  # what is stacked is needed once only, and memory is what limits a batch
    return together


def _write_on(model: LocalModel, drafts: list[Draft], cache: DynamicCache, stopping: Event) -> None:
    """Writes a token for each draft at a time until all are finished."""
    import torch

    device = model.device
    lengths = torch.tensor([[len(draft.prompt)] for draft in drafts], device=device)
    places = torch.arange(cache.get_seq_length(), device=device)[None]
    mask: Int[torch.Tensor, "B S"] = (places >= places.shape[1] - lengths).long()
    positions: Int[torch.Tensor, "B 1"] = lengths
    while True:
        _require_going(stopping)
        mask = torch.cat([mask, mask.new_ones(len(drafts), 1)], dim=1)
        output = model.network(
            input_ids=torch.tensor([draft.written[-1:] for draft in drafts], device=device),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        _write_token(model, drafts, output.logits[:, -1])
        going = [n for n, draft in enumerate(drafts) if draft.finish_reason is None]
        if not going:
            return
        positions = positions + 1
        if len(going) < len(drafts):
            drafts = [drafts[n] for n in going]
            rows = torch.tensor(going, device=device)
            cache.batch_select_indices(rows)
            mask, positions = mask[rows], positions[rows]


def _write_token(
    model: LocalModel, drafts: Sequence[Draft], logits: Float[torch.Tensor, "B V"]
) -> None:
    """Chooses each draft's next token, and finishes those that end with it."""
    logits = logits.float()
    tokens: list[int] = logits.argmax(-1).tolist()
    drawn = [n for n, draft in enumerate(drafts) if draft.request.temperature > 0]
    if drawn:
        for n, token in zip(drawn, _draw(logits[drawn], [drafts[n] for n in drawn]), strict=True):
            tokens[n] = token
    for draft, token, row in zip(drafts, tokens, logits, strict=True):
        if token in model.end_ids:
            draft.finish_reason = "stop"
            continue
        if draft.request.top_logprobs is not None:
            draft.logprobs.append(_logprob(model, row, token, draft.request.top_logprobs))
        draft.written.append(token)
        if len(draft.written) == draft.request.max_tokens:
            draft.finish_reason = "length"


def _draw(logits: Float[torch.Tensor, "B V"], drafts: Sequence[Draft]) -> list[int]:
    """A token for each draft, at its temperature.

    The number that is drawn picks the token at that share of the distribution, in the order of
    ids: it then changes the choice next to never that rounding differs.
    """
    import torch

    # Apple's GPUs have no float64.
    exact = torch.float32 if logits.device.type == "mps" else torch.float64
    temperatures = [[draft.request.temperature] for draft in drafts]
    numbers = [[draft.random.random()] for draft in drafts]
    scaled = logits.to(exact) / torch.tensor(temperatures, dtype=exact, device=logits.device)
    sums = scaled.softmax(-1).cumsum(-1)
    shares = torch.tensor(numbers, dtype=exact, device=logits.device) * sums[:, -1:]
    found = torch.searchsorted(sums, shares, right=True).clamp(max=logits.shape[1] - 1)
    tokens: list[int] = found[:, 0].tolist()
    return tokens


def _logprob(
    model: LocalModel, logits: Float[torch.Tensor, " V"], token: int, n_alternatives: int
) -> TokenLogprob:
    logprobs = logits.log_softmax(-1)
    likeliest = logprobs.topk(n_alternatives)
    text = model.layout.token_text
    return TokenLogprob(
        text(token),
        logprobs[token].item(),
        tuple(
            (text(each), value)
            for each, value in zip(
                likeliest.indices.tolist(), likeliest.values.tolist(), strict=True
            )
        ),
    )


def _require_going(stopping: Event) -> None:
    if stopping.is_set():
        raise Stopped
