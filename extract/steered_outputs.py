"""What a model says more of while a feature is turned up: next tokens, and short continuations.

For judging a label by what its feature does, beside what other features of the same SAE do. The
vector that is added has one length for all features of an SAE, a share of what the site's own
vectors measure, since thresholds and activations differ between features and between sites. It
is added at the site that the SAE reconstructs, at every token but BOS, of the prompt and of what
is written, as in `steering.py`. Prompts are of one length, so that a batch needs no padding, and
one feature is read at a time: what comes out does not depend on what else was asked for.

Left out: what a label has to do with it (`evaluate/intervention.py`). Each token is written from
a pass over all before it: a pass over a few short prompts takes about as long as reading the
weights, with or without a cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int

from ..store.byte_pieces import join_bytes
from ..store.errors import ModelError
from .device_memory import out_of_memory
from .logit_effects import unembedding
from .models import SubjectModel, token_texts
from .saes import Sae
from .sites import Site
from .splicing import Change, changed_site

NO_DIRECTION = "the feature's decoder row is zero"
NO_NUMBERS = "the model gives no numbers any more when it is steered so strongly"


@dataclass(frozen=True, slots=True)
class SteeredOutputs:
    """What comes out while a feature is turned up.

    Attributes:
        feature: its number.
        changes: by token id, how much the log probability of coming next rises, in nats, the mean
            over the prompts.
        promoted: the texts of the tokens that rise most, falling; special ones are left out.
        written: after each prompt, what the model writes.
    """

    feature: int
    changes: Float32[np.ndarray, " V"]
    promoted: tuple[str, ...]
    written: tuple[str, ...]


@dataclass(frozen=True)
class SteeringBench:
    """A model and one of its SAEs, the text that it goes on from, and how strongly it is steered.

    Attributes:
        model: with all its layers; used by no other thread meanwhile.
        sae: on the model's device.
        prompts: BOS and text in each row.
        norm: of what is added.
        seed: of the draws; the same for all features, so that what differs comes of the feature.
        n_promoted: how many tokens are named that rise most.
        n_written: tokens that are written after each prompt, at most.
    """

    model: SubjectModel
    sae: Sae
    prompts: Int[torch.Tensor, "P S"]
    norm: float
    seed: int
    n_promoted: int
    n_written: int

    @classmethod
    def of(
        cls,
        model: SubjectModel,
        sae: Sae,
        texts: Sequence[Sequence[int]],
        strength: float,
        seed: int,
        n_promoted: int,
        n_written: int,
    ) -> SteeringBench:
        """Puts the SAE on the model's device and measures how long the site's vectors are.

        Args:
            model: with all its layers.
            sae: anywhere.
            texts: token ids without BOS, equally many in each.
            strength: of what is added, as a share of the root mean square of the vectors' lengths.
            seed: of the draws.
            n_promoted: how many tokens are named that rise most.
            n_written: tokens that are written after each prompt, at most.

        Raises:
            ModelError: the unembedding is not loaded, or the device has no room.
        """
        if unembedding(model) is None:
            raise ModelError(
                "The model cannot be steered: it keeps its unembedding in a head that is not "
                "loaded.",
                where=model.source,
                expected="a model that ties it to its embedding, as Gemma does",
                mend="set [score.intervention] features = 0",
            )
        bos = model.tokenizer.bos_token_id
        prompts = torch.tensor([[bos, *text] for text in texts], device=model.device)
        try:
            norm = strength * site_norm(model, sae.target, prompts)
            on_device = sae.to(model.device)
            return cls(model, on_device, prompts, norm, seed, n_promoted, n_written)
        except torch.OutOfMemoryError as error:
            raise out_of_memory(model, [sae], prompts.numel()) from error

    @cached_property
    def unsteered(self) -> Float[torch.Tensor, "P V"]:
        """The log probabilities of what comes next with nothing added."""
        return _next_logprobs(self.model, self.prompts)

    @cached_property
    def is_special(self) -> list[int]:
        """The tokens that are no text."""
        return sorted(self.model.tokenizer.all_special_ids)


def site_norm(model: SubjectModel, site: Site, prompts: Int[torch.Tensor, "P S"]) -> float:
    """The root mean square length of a site's vectors at these tokens, the first of each left out.

    BOS has vectors of a length of their own.
    """
    x = model.read_sites(prompts, [site])[site][:, 1:].double()
    return float(x.square().sum(-1).mean().sqrt())


@torch.inference_mode()
def steered_outputs(bench: SteeringBench, feature: int) -> SteeredOutputs | str:
    """What comes out while this feature is turned up, or why nothing does.

    Raises:
        ModelError: the device has no room.
    """
    row = bench.sae.decoder[feature].float()
    length = row.norm()
    if not bool(length > 0):
        return NO_DIRECTION
    change = _add_after_bos(row * (bench.norm / length))
    try:
        with changed_site(bench.model.network, bench.sae.target, change):
            steered = _next_logprobs(bench.model, bench.prompts)
            if not bool(steered.isfinite().all()):
                return NO_NUMBERS
            written = _write_on(bench, steered)
    except torch.OutOfMemoryError as error:
        raise out_of_memory(bench.model, [bench.sae], bench.prompts.numel()) from error
    changes = (steered - bench.unsteered).mean(0)
    texts = changes.clone()
    texts[bench.is_special] = -torch.inf
    promoted = texts.topk(min(bench.n_promoted, len(texts))).indices.tolist()
    return SteeredOutputs(
        feature=feature,
        changes=changes.cpu().numpy(),
        promoted=tuple(token_texts(bench.model.tokenizer, promoted)),
        written=tuple(_joined(token_texts(bench.model.tokenizer, row)) for row in written),
    )


def single_token(tokenizer: Any, text: str) -> int | None:
    """The token that the tokenizer writes this text as; None where it takes several, or none."""
    ids = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, verbose=False
    ).input_ids
    return int(ids[0]) if len(ids) == 1 else None


def _joined(tokens: Sequence[str]) -> str:
    return "".join(join_bytes(tokens, [0.0] * len(tokens))[0])


def _add_after_bos(vector: Float[torch.Tensor, " D"]) -> Change:
    def change(x: Float[torch.Tensor, "P S D"]) -> Float[torch.Tensor, "P S D"]:
        changed = x.clone()
        changed[:, 1:] += vector.to(x)
        return changed

    return change


def _next_logprobs(
    model: SubjectModel, token_ids: Int[torch.Tensor, "P S"]
) -> Float[torch.Tensor, "P V"]:
    """Of each token to come after each row, in float32; the head is computed there alone."""
    head = unembedding(model)
    assert head is not None, "the bench has made sure"
    with torch.inference_mode():
        vectors = model.network(input_ids=token_ids, use_cache=False).last_hidden_state[:, -1]
        logits = (vectors.to(head.dtype) @ head.T).float()
        cap = getattr(model.config, "final_logit_softcapping", None)
        if cap is not None:
            logits = logits.div_(cap).tanh_().mul_(cap)
        logprobs: torch.Tensor = logits.log_softmax(-1)
    return logprobs


def _write_on(bench: SteeringBench, first: Float[torch.Tensor, "P V"]) -> list[list[int]]:
    """What is written after each prompt; a special token ends it and is not written."""
    draw = torch.Generator().manual_seed(bench.seed)
    ends, token_ids, logprobs = frozenset(bench.is_special), bench.prompts, first
    for n in range(bench.n_written):
        if n:
            logprobs = _next_logprobs(bench.model, token_ids)
        # On the CPU, where draws are the same on every device.
        drawn = torch.multinomial(logprobs.exp().cpu(), 1, generator=draw)
        token_ids = torch.cat([token_ids, drawn.to(token_ids.device)], dim=1)
    written = token_ids[:, bench.prompts.shape[1] :].tolist()
    return [
        row[: next((n for n, token in enumerate(row) if token in ends), None)] for row in written
    ]
