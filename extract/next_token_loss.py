"""What an SAE's error costs the model: next-token loss with its reconstruction spliced in.

The loss is the mean cross-entropy, in nats, of the token after each token of text; a sequence's
last token predicts nothing, and what BOS predicts is not counted. Tokens whose activations are
never recorded (BOS, EOS and other special ones) are left as they are. Beside it stands the loss
with zeros in place of the target, which tells how much there is to lose (Lieberum et al. 2024,
section 4.1).

The vocabulary head is computed for some tokens at a time: the logits of 4,096 tokens of Gemma 2
would take 4 GB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int

from .device_memory import out_of_memory
from .logit_effects import unembedding
from .models import SubjectModel
from .saes import Sae
from .sites import Site
from .splicing import spliced, zeroed
from .windows import SequenceBatch, TokenizedChunk, batch_sequences, take_prefix

LOSS_TOKENS = 8192
"""Losses are taken on the first sequences of the corpus that have at least so many tokens."""

# Logits that are held at once (128 MB).
_LOGITS_AT_ONCE = 1 << 25

Changed = Callable[[Bool[torch.Tensor, "B S"]], AbstractContextManager[None]]
"""Gives the block in which something is changed at these tokens."""


@dataclass(frozen=True, slots=True)
class LossBatch:
    """Rows of sequences that the model sees together, padded on the right.

    Attributes:
        input_ids: sequences, each BOS and text, one after another in a row.
        position_ids: each token's place in its sequence.
        is_recorded: the tokens of text, special ones left out: what is changed.
        predicts: those of them after which the text goes on: what the loss is over.
    """

    input_ids: Int[torch.Tensor, "B S"]
    position_ids: Int[torch.Tensor, "B S"]
    is_recorded: Bool[torch.Tensor, "B S"]
    predicts: Bool[torch.Tensor, "B S"]

    def rows(self, rows: slice) -> LossBatch:
        """Some of the rows."""
        return LossBatch(
            self.input_ids[rows],
            self.position_ids[rows],
            self.is_recorded[rows],
            self.predicts[rows],
        )


@dataclass(frozen=True, slots=True)
class LossText:
    """The text on which losses are taken."""

    batches: tuple[LossBatch, ...]

    @property
    def n_predictions(self) -> int:
        """Tokens whose successor is predicted."""
        return sum(int(batch.predicts.sum()) for batch in self.batches)


def loss_text(
    chunks: Iterable[TokenizedChunk],
    model: SubjectModel,
    max_batch_tokens: int,
    n_tokens: int = LOSS_TOKENS,
) -> LossText:
    """The first sequences of these chunks that have at least so many tokens, or all.

    Args:
        chunks: of the corpus, from its beginning; no more are asked for than are needed.
        model: whose tokenizer made them.
        max_batch_tokens: tokens that the model sees at once; a sequence is never cut.
        n_tokens: of text.
    """
    tokenizer = model.tokenizer
    special = frozenset(tokenizer.all_special_ids)
    bos, pad = tokenizer.bos_token_id, tokenizer.pad_token_id or 0
    return LossText(
        tuple(
            _loss_batch(batch, model.device)
            for chunk in take_prefix(chunks, n_tokens)
            for batch in batch_sequences(chunk, bos, pad, special, max_batch_tokens)
        )
    )


def _loss_batch(batch: SequenceBatch, device: torch.device) -> LossBatch:
    input_ids = torch.from_numpy(batch.input_ids).long()
    is_text = torch.zeros(input_ids.numel(), dtype=torch.bool)
    is_text[torch.from_numpy(batch.flat_positions)] = True
    is_recorded = is_text.clone()
    if batch.is_special is not None:
        is_recorded[torch.from_numpy(batch.flat_positions[batch.is_special])] = False
    is_text, is_recorded = is_text.view_as(input_ids), is_recorded.view_as(input_ids)
    predicts = torch.zeros_like(is_recorded)
    # After a sequence comes another's BOS or padding, neither of which is text.
    predicts[:, :-1] = is_recorded[:, :-1] & is_text[:, 1:]
    positions = torch.from_numpy(batch.position_ids).long()
    tensors = (input_ids, positions, is_recorded, predicts)
    return LossBatch(*(tensor.to(device) for tensor in tensors))


def own_loss(model: SubjectModel, text: LossText) -> float | None:
    """The model's loss as it is; None as in `mean_loss`."""
    return mean_loss(model, text, lambda _: nullcontext())


def spliced_loss(model: SubjectModel, text: LossText, sae: Sae) -> float | None:
    """The loss with the SAE's reconstruction in place of its target; None as in `mean_loss`."""
    return mean_loss(model, text, lambda where: spliced(model.network, sae, where), [sae])


def zeroed_loss(model: SubjectModel, text: LossText, site: Site) -> float | None:
    """The loss with zeros in place of a site's vectors; None as in `mean_loss`."""
    return mean_loss(model, text, lambda where: zeroed(model.network, site, where))


def mean_loss(
    model: SubjectModel, text: LossText, changed: Changed, saes: Iterable[Sae] = ()
) -> float | None:
    """The mean next-token loss, in nats, while something is changed.

    Summed up in float64.

    Args:
        model: whole, with all its layers.
        text: where.
        changed: what is changed.
        saes: what lies on the device beside the model, for the message where there is no room.

    Returns:
        None where nothing is predicted, or the vocabulary head is not loaded (`unembedding`).

    Raises:
        ModelError: the device has no room for one sequence.
    """
    head = unembedding(model)
    n = text.n_predictions
    if head is None or n == 0:
        return None
    with torch.inference_mode():
        return sum(_sum_losses(model, head, batch, changed, saes) for batch in text.batches) / n


def _sum_losses(
    model: SubjectModel,
    head: Float[torch.Tensor, "V D"],
    batch: LossBatch,
    changed: Changed,
    saes: Iterable[Sae],
) -> float:
    """Of a batch; in halves where the device has no room for it."""
    try:
        with changed(batch.is_recorded):
            output = model.network(
                input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
            )
        vectors = output.last_hidden_state[batch.predicts]
        following = batch.input_ids.roll(-1, dims=1)[batch.predicts]
        cap = getattr(model.config, "final_logit_softcapping", None)
        return float(token_losses(vectors, following, head, cap).double().sum())
    except torch.OutOfMemoryError as error:
        n_rows, n_tokens = batch.input_ids.shape
        if n_rows == 1:
            raise out_of_memory(model, saes, n_tokens) from error
    torch.cuda.empty_cache()
    halves = (slice(0, n_rows // 2), slice(n_rows // 2, n_rows))
    return sum(_sum_losses(model, head, batch.rows(half), changed, saes) for half in halves)


def token_losses(
    vectors: Float[torch.Tensor, "T D"],
    following: Int[torch.Tensor, " T"],
    head: Float[torch.Tensor, "V D"],
    cap: float | None,
    at_once: int = _LOGITS_AT_ONCE,
) -> Float[torch.Tensor, " T"]:
    """The cross-entropy of each token's successor, in nats, in float32.

    Args:
        vectors: after the final norm.
        following: the ids of the tokens that come next.
        head: the unembedding.
        cap: the soft cap of the logits, `cap * tanh(logits / cap)`; None for none.
        at_once: logits that are held at once, so that memory does not grow with the vocabulary.
    """
    size = max(1, at_once // len(head))
    losses = []
    blocks = zip(torch.split(vectors, size), torch.split(following, size), strict=True)
    for block, ids in blocks:
        logits = (block.to(head.dtype) @ head.T).float()
        if cap is not None:
            logits.div_(cap).tanh_().mul_(cap)
        losses.append(torch.nn.functional.cross_entropy(logits, ids, reduction="none"))
    return torch.cat(losses)
