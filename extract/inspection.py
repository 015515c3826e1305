"""What a model and its SAEs make of one prompt, token by token, from a single pass.

The prompt is one sequence after BOS, tokenized as a corpus is. Collecting cuts longer texts
(`windows.py`), so that features are what it would record for a text of up to a sequence; a longer
prompt is seen whole here, up to the model's context. BOS is fed and never shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int32

from ..store.errors import UserMistake
from .activations import Firings, find_firings, reconstruct
from .device_memory import out_of_memory
from .logit_lens import LogitLens, lens_sites, read_lens
from .models import SubjectModel, token_texts
from .own_text import tokenize_own_text
from .saes import Sae
from .sites import Site
from .windows import WindowShape

# Next tokens of the lens that are kept.
N_NEXT = 5


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text as the model sees it.

    Attributes:
        token_ids: without BOS.
        tokens: their texts, as `pieces` has them.
        is_special: those that are special tokens after all, at which no feature is active.
    """

    token_ids: Int32[np.ndarray, " T"]
    tokens: tuple[str, ...]
    is_special: Bool[np.ndarray, " T"]


@dataclass(frozen=True, slots=True)
class Unexplained:
    """What an SAE leaves of the vectors that it is to reconstruct, in float64.

    Attributes:
        error_sq: of each token ‖x − x̂‖².
        distance_sq: ‖x − mean‖², about the mean over the run's text.
    """

    error_sq: Float64[np.ndarray, " T"]
    distance_sq: Float64[np.ndarray, " T"]

    @property
    def by_token(self) -> Float64[np.ndarray, " T"]:
        """The share of each token's distance from the mean; it may well exceed 1."""
        share: np.ndarray = self.error_sq / self.distance_sq
        return share

    def over(self, tokens: Bool[np.ndarray, " T"]) -> float | None:
        """The share of these tokens together: a fraction of variance unexplained."""
        distance = float(self.distance_sq[tokens].sum())
        return float(self.error_sq[tokens].sum()) / distance if distance > 0 else None


@dataclass(frozen=True, slots=True)
class SaeReading:
    """What one SAE makes of a prompt.

    Attributes:
        firings: what fires on each token, by token, the strongest first.
        unexplained: None where nothing is reconstructed, or no mean is known.
    """

    sae_id: str
    site: Site
    firings: Firings
    unexplained: Unexplained | None


@dataclass(frozen=True, slots=True)
class PromptInspection:
    """A prompt through all of some SAEs, and through the logit lens.

    Attributes:
        lens: None where the model's unembedding is not loaded.
    """

    prompt: Prompt
    saes: tuple[SaeReading, ...]
    lens: LogitLens | None


def inspect_prompt(
    model: SubjectModel,
    sites: Sequence[Site],
    saes: Iterable[Sae],
    means: Mapping[str, Float64[np.ndarray, " D"]],
    text: str,
    is_chat: bool = False,
) -> PromptInspection:
    """Feeds the prompt once; each SAE then reads what stood at its site.

    Args:
        model: with all its layers.
        sites: at which the SAEs read.
        saes: on the model's device, in turn: one after another may be loaded.
        means: of what they reconstruct, by SAE; where one lacks, so does the unexplained share.
        text: the prompt.
        is_chat: special tokens in the text are what they spell.

    Raises:
        UserMistake: the prompt has no token, or more than the model sees at once.
        ModelError: the device has no room.
    """
    prompt = tokenize_prompt(model, text, is_chat)
    wanted = {site for each in sites for site in (each, each.target)}
    ids = torch.tensor([[model.tokenizer.bos_token_id, *prompt.token_ids.tolist()]])
    try:
        rows = model.read_sites(ids, sorted(wanted | set(lens_sites(model))))
        vectors = {site: x[0, 1:] for site, x in rows.items()}
        lens = read_lens(model, vectors, N_NEXT)
        # What only the lens looked at is let go before SAEs are loaded.
        vectors = {site: vectors[site] for site in wanted}
        readings = tuple(_read_sae(sae, vectors, prompt, means.get(sae.sae_id)) for sae in saes)
    except torch.OutOfMemoryError as error:
        raise out_of_memory(model, [], ids.numel()) from error
    return PromptInspection(prompt, readings, lens)


def tokenize_prompt(model: SubjectModel, text: str, is_chat: bool = False) -> Prompt:
    """The prompt's tokens.

    Raises:
        UserMistake: there is none, or there are more than the model sees at once.
    """
    token_ids = tokenize_own_text(model.tokenizer, model.name, text, WindowShape(), is_chat).tokens
    most = int(model.config.max_position_embeddings) - 1
    if len(token_ids) > most:
        raise UserMistake(
            "The prompt is longer than what the model sees at once.",
            found=f"{len(token_ids):,} tokens",
            expected=f"at most {most:,}, beside BOS",
            mend="shorten it",
        )
    return Prompt(
        token_ids=token_ids,
        tokens=tuple(token_texts(model.tokenizer, token_ids.tolist())),
        is_special=np.isin(token_ids, model.tokenizer.all_special_ids),
    )


@torch.inference_mode()
def _read_sae(
    sae: Sae,
    vectors: Mapping[Site, Float[torch.Tensor, "T D"]],
    prompt: Prompt,
    mean: Float64[np.ndarray, " D"] | None,
) -> SaeReading:
    x, target = vectors[sae.site], vectors[sae.target]
    firings = find_firings(sae, x)
    unexplained = None
    if mean is not None and not sae.source.is_neuron_basis:
        unexplained = measure_unexplained(target, reconstruct(sae, firings, x), mean)
    firings = firings.where(~prompt.is_special[firings.token])
    strongest_first = np.lexsort((firings.feature, -firings.value, firings.token))
    return SaeReading(sae.sae_id, sae.site, firings.where(strongest_first), unexplained)


def measure_unexplained(
    target: Float[torch.Tensor, "T D"],
    reconstruction: Float[torch.Tensor, "T D"],
    mean: Float64[np.ndarray, " D"],
) -> Unexplained:
    """How far a reconstruction is from its target, and the target from a mean."""
    # On the host: not every device has float64.
    exact = target.cpu().double()
    return Unexplained(
        error_sq=(exact - reconstruction.cpu().double()).square().sum(-1).numpy(),
        distance_sq=(exact - torch.from_numpy(mean)).square().sum(-1).numpy(),
    )
