"""What a model writes while some of its features are changed, beside what it writes without.

What a change is stands in `feature_changes.py`. It is made at every token of the prompt and of what
is written; BOS, whose activations are enormous and recorded nowhere, is left alone unless asked.
`steering_trial.py` tries several strengths and says how much sense is left in what is written.

The vocabulary head is the embedding, to which Gemma ties it, so that the model needs no other
weights than those it is read with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from transformers import DynamicCache

from ..store.errors import ModelError, UserMistake
from .device_memory import out_of_memory
from .feature_changes import FeatureChange, changed_features
from .logit_effects import unembedding
from .models import SubjectModel, token_texts
from .saes import Sae

N_NEXT = 5


@dataclass(frozen=True, slots=True)
class Continuation:
    """What a model wrote after a prompt.

    Attributes:
        token_ids: of what was written; a special token, which ends it, is none of them.
        tokens: their texts, as `pieces` has them.
        has_ended: whether the model ended it before as many tokens were written as wanted.
        probabilities: of each token of the vocabulary to come first after the prompt, in float32.
    """

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    has_ended: bool
    probabilities: Float[torch.Tensor, " V"]


@dataclass(frozen=True, slots=True)
class NextToken:
    """A token that may come next, and how probable it is without and with the feature."""

    text: str
    probability: float
    steered_probability: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """A prompt continued twice.

    Attributes:
        prompt: its tokens' texts, without BOS.
        plain: what the model writes by itself.
        steered: what it writes with the feature turned up.
        next_tokens: the five most probable after the prompt of either, by falling probability
            without the feature.
    """

    prompt: tuple[str, ...]
    plain: Continuation
    steered: Continuation
    next_tokens: tuple[NextToken, ...]


@contextmanager
def steered(model: SubjectModel, sae: Sae, feature: int, strength: float) -> Iterator[None]:
    """Within the block, strength times the feature's decoder row is added at every token.

    Args:
        model: whose forward passes are changed, in whatever thread they run.
        sae: on the model's device.
        feature: its number.
        strength: in units of the feature's activation; negative takes away.
    """
    with changed_features(model.network, [FeatureChange(sae, feature, "add", strength)]):
        yield


@torch.inference_mode()
def compare_steered(
    model: SubjectModel,
    sae: Sae,
    feature: int,
    strength: float,
    prompt: str,
    n_tokens: int,
    seed: int | None = None,
) -> Comparison:
    """Continues a prompt without and with a feature turned up; both draw with the same seed.

    Args:
        model: with all its layers; used by no other thread meanwhile.
        sae: on the model's device.
        feature: its number.
        strength: in units of the feature's activation.
        prompt: text that stands after BOS.
        n_tokens: how many are written at most.
        seed: of the draws, from the model's own distribution; None takes the most probable token
            each time.

    Raises:
        UserMistake: the prompt has no token, or too many for the model; or the model gives no
            numbers any more, steered so strongly.
        ModelError: the unembedding is not loaded, or the device has no room.
    """
    prompt_ids = read_prompt(model, prompt, n_tokens)
    try:
        plain = continue_prompt(model, prompt_ids, n_tokens, seed)
        changed = steered(model, sae, feature, strength)
        other = continue_prompt(model, prompt_ids, n_tokens, seed, changed)
    except torch.OutOfMemoryError as error:
        raise out_of_memory(model, [sae], len(prompt_ids) + n_tokens) from error
    return Comparison(
        prompt=tuple(token_texts(model.tokenizer, prompt_ids[1:])),
        plain=plain,
        steered=other,
        next_tokens=next_tokens_of(model.tokenizer, plain.probabilities, other.probabilities),
    )


@torch.inference_mode()
def continue_prompt(
    model: SubjectModel,
    prompt_ids: Sequence[int],
    n_tokens: int,
    seed: int | None = None,
    changed: AbstractContextManager[object] | None = None,
    with_bos: bool = False,
) -> Continuation:
    """Writes on after a prompt, till a special token comes or as many as wanted are written.

    Args:
        model: with all its layers; used by no other thread meanwhile.
        prompt_ids: BOS and at least one token.
        n_tokens: how many are written at most; at least 1.
        seed: of the draws; None takes the most probable token each time.
        changed: a block in which the model is changed.
        with_bos: whether it also holds for BOS, as in numbers that some publish.

    Raises:
        UserMistake: the logits are not finite.
        ModelError: the unembedding is not loaded.
    """
    head = require_head(model)
    draw = None if seed is None else torch.Generator().manual_seed(seed)
    ends = frozenset(model.tokenizer.all_special_ids)
    cache = DynamicCache()
    written: list[int] = []
    first: torch.Tensor | None = None
    with _attending_with_cache(model.network), ExitStack() as block:
        if changed is not None and with_bos:
            block.enter_context(changed)
        _read_on(model, prompt_ids[:1], cache)
        if changed is not None and not with_bos:
            block.enter_context(changed)
        unread = list(prompt_ids[1:])
        for _ in range(n_tokens):
            vector = _read_on(model, unread, cache)
            probabilities = _probabilities(model, head, vector)
            first = probabilities if first is None else first
            token = _choose(probabilities, draw)
            if token in ends:
                break
            written.append(token)
            unread = [token]
    if first is None:
        raise ValueError("nothing was to be written")
    tokens = tuple(token_texts(model.tokenizer, written))
    return Continuation(tuple(written), tokens, len(written) < n_tokens, first)


def read_prompt(model: SubjectModel, prompt: str, n_tokens: int) -> list[int]:
    """BOS and the prompt's tokens; special ones that are spelled in it are text.

    Raises:
        UserMistake: it has no token, or too many for as many more to follow.
    """
    ids = model.tokenizer(
        prompt, add_special_tokens=False, split_special_tokens=True, verbose=False
    ).input_ids
    if not ids:
        raise UserMistake("The text is empty.", expected="a few words that the model goes on from")
    most = int(model.config.max_position_embeddings) - 1 - n_tokens
    if len(ids) > most:
        raise UserMistake(
            "The text is longer than what the model sees at once.",
            found=f"{len(ids):,} tokens",
            expected=f"at most {most:,}, so that {n_tokens:,} can follow",
            mend="shorten it",
        )
    return [model.tokenizer.bos_token_id, *ids]


def require_head(model: SubjectModel) -> Float[torch.Tensor, "V D"]:
    """The unembedding.

    Raises:
        ModelError: it is not loaded.
    """
    head = unembedding(model)
    if head is None:
        raise ModelError(
            "The model cannot write: it keeps its unembedding in a head that is not loaded.",
            where=model.source,
            expected="a model that ties it to its embedding, as Gemma does",
        )
    return head


@contextmanager
def _attending_with_cache(network: Any) -> Iterator[None]:
    """Within the block the model attends as transformers does, which knows of a cache."""
    before = network.config._attn_implementation
    network.set_attn_implementation("eager")
    try:
        yield
    finally:
        network.set_attn_implementation(before)


def _read_on(
    model: SubjectModel, token_ids: Sequence[int], cache: DynamicCache
) -> Float[torch.Tensor, " D"]:
    """The last of these tokens after the final norm; the cache then holds all of them."""
    output = model.network(
        input_ids=torch.tensor([list(token_ids)], device=model.device),
        past_key_values=cache,
        use_cache=True,
    )
    vector: torch.Tensor = output.last_hidden_state[0, -1]
    return vector


def _probabilities(
    model: SubjectModel, head: Float[torch.Tensor, "V D"], vector: Float[torch.Tensor, " D"]
) -> Float[torch.Tensor, " V"]:
    """Of each token to come next, on the CPU, where draws are the same on every device."""
    logits = (head @ vector.to(head.dtype)).float()
    cap = getattr(model.config, "final_logit_softcapping", None)
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    if not bool(logits.isfinite().all()):
        raise UserMistake(
            "The model gives no numbers any more.",
            found="logits that are not finite",
            mend="take a strength that is nearer to 0",
        )
    return logits.softmax(-1).cpu()


def _choose(probabilities: Float[torch.Tensor, " V"], draw: torch.Generator | None) -> int:
    if draw is None:
        return int(probabilities.argmax())
    return int(torch.multinomial(probabilities, 1, generator=draw))


def next_tokens_of(
    tokenizer: Any, plain: Float[torch.Tensor, " V"], steered: Float[torch.Tensor, " V"]
) -> tuple[NextToken, ...]:
    """The five most probable tokens of either, by falling probability without the change.

    Args:
        tokenizer: the model's.
        plain: each token's probability to come next.
        steered: the same where the model is changed.
    """
    ids = {int(n) for each in (plain, steered) for n in each.topk(N_NEXT).indices}
    ordered = sorted(ids, key=lambda n: (-float(plain[n]), n))
    texts = token_texts(tokenizer, ordered)
    return tuple(
        NextToken(text, float(plain[n]), float(steered[n]))
        for n, text in zip(ordered, texts, strict=True)
    )
