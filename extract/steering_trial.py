"""A prompt continued without changes and with each of several, and how much sense is left.

A sweep over strengths is such a trial. Large strengths make a model babble, which shows in the
*perplexity* of what it wrote: the exponential of the mean cross-entropy, in nats, of the written
tokens under the *unchanged* model, each given the prompt and what was written before it. It is
low where the model by itself would write the same, and also for a phrase that repeats forever,
which any model soon expects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .device_memory import out_of_memory
from .feature_changes import FeatureChange, ModelChange, ReadBack, changed_features
from .models import SubjectModel, token_texts
from .next_token_loss import token_losses
from .steering import Continuation, continue_prompt, read_prompt, require_head


@dataclass(frozen=True, slots=True)
class PromptReading:
    """What stood at one change at each token of the prompt.

    Attributes:
        before: the feature's activation, or the neuron's value, ahead of the change.
        after: behind it, encoded again; None where the SAE does not read what it changes.
    """

    before: tuple[float, ...]
    after: tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class Written:
    """What the model wrote under some changes.

    Attributes:
        changes: none, of what it writes by itself.
        continuation: what it wrote.
        perplexity: of that under the unchanged model; None where nothing was written.
        readings: of each change.
    """

    changes: tuple[ModelChange, ...]
    continuation: Continuation
    perplexity: float | None
    readings: tuple[PromptReading, ...]


@dataclass(frozen=True, slots=True)
class SteeringTrial:
    """A prompt continued by the model itself, and under changes.

    Attributes:
        prompt: its tokens' texts, without BOS.
        plain: without changes.
        steered: with them, in the order that was asked.
    """

    prompt: tuple[str, ...]
    plain: Written
    steered: tuple[Written, ...]


@torch.inference_mode()
def try_changes(
    model: SubjectModel,
    settings: Sequence[Sequence[ModelChange]],
    prompt: str,
    n_tokens: int,
    seed: int | None = None,
    with_bos: bool = False,
) -> SteeringTrial:
    """Continues a prompt without changes, and under each of several sets of them.

    Args:
        model: with all its layers; used by no other thread meanwhile.
        settings: sets of changes, each made at once.
        prompt: text that stands after BOS.
        n_tokens: how many are written at most.
        seed: of the draws, the same for each; None takes the most probable token each time.
        with_bos: whether BOS is changed too.

    Raises:
        UserMistake: the prompt has no token, or too many for the model; a neuron that it does not
            have; or it gives no numbers any more, changed so strongly.
        ModelError: the unembedding is not loaded, or the device has no room.
    """
    prompt_ids = read_prompt(model, prompt, n_tokens)
    try:
        plain, *steered = [
            _write(model, prompt_ids, tuple(changes), n_tokens, seed, with_bos)
            for changes in ((), *settings)
        ]
    except torch.OutOfMemoryError as error:
        changes = [it for each in settings for it in each if isinstance(it, FeatureChange)]
        saes = {it.sae.sae_id: it.sae for it in changes}
        raise out_of_memory(model, saes.values(), len(prompt_ids) + n_tokens) from error
    return SteeringTrial(tuple(token_texts(model.tokenizer, prompt_ids[1:])), plain, tuple(steered))


def _write(
    model: SubjectModel,
    prompt_ids: Sequence[int],
    changes: tuple[ModelChange, ...],
    n_tokens: int,
    seed: int | None,
    with_bos: bool,
) -> Written:
    told = [ReadBack() for _ in changes]
    changed = changed_features(model.network, changes, told)
    written = continue_prompt(model, prompt_ids, n_tokens, seed, changed, with_bos)
    first = 1 if with_bos else 0
    of_prompt = slice(first, first + len(prompt_ids) - 1)
    readings = tuple(
        PromptReading(tuple(it.before[of_prompt]), tuple(it.after[of_prompt]) or None)
        for it in told
    )
    return Written(changes, written, perplexity(model, prompt_ids, written.token_ids), readings)


@torch.inference_mode()
def perplexity(
    model: SubjectModel, prompt_ids: Sequence[int], written: Sequence[int]
) -> float | None:
    """Of what was written after a prompt, under the model as it is; from 1, without limit.

    Args:
        model: with all its layers, unchanged.
        prompt_ids: BOS and the prompt.
        written: the tokens after it.

    Returns:
        None where nothing was written.

    Raises:
        ModelError: the unembedding is not loaded.
    """
    if not written:
        return None
    ids = torch.tensor([[*prompt_ids, *written]], device=model.device)
    vectors = model.network(input_ids=ids, use_cache=False).last_hidden_state[0]
    # What stands at a token predicts the next.
    losses = token_losses(
        vectors[len(prompt_ids) - 1 : -1],
        ids[0, len(prompt_ids) :],
        require_head(model),
        getattr(model.config, "final_logit_softcapping", None),
    )
    return float(losses.double().mean().exp())
