"""The full model and what can be done to it: probabilities, logit lens, changes at a site.

This is the arithmetic behind `scopenote doctor --golden`, which compares it with published
numbers. How a site is changed is the business of `splicing.py`; features and neurons are changed
as `steering.py` does it for `scopenote steer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..store.errors import ModelError
from .feature_changes import ModelChange, changed_features
from .logit_lens import lens_distributions
from .models import SubjectModel, quiet_loading
from .saes import Sae
from .sites import Site, SiteReader
from .splicing import Change, changed_site
from .steering import continue_prompt, read_prompt


@dataclass(frozen=True, slots=True)
class FullModel:
    """A Gemma 2 with its vocabulary head (`Gemma2ForCausalLM`), in float32, and its tokenizer.

    Attributes:
        reader: reads the sites of the network's base model.
    """

    network: Any
    tokenizer: Any
    reader: SiteReader

    def encode(self, text: str) -> Int[torch.Tensor, "1 S"]:
        """A text's token ids, after BOS."""
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        return torch.tensor([[self.tokenizer.bos_token_id, *ids]])

    @property
    def subject(self) -> SubjectModel:
        """The same model as other modules have it, which make logits of its embedding."""
        config = self.network.config
        name = Path(config.name_or_path).name
        return SubjectModel(
            name, self.network.model, self.reader, self.tokenizer, config, "", config.name_or_path
        )

    def pieces(self, input_ids: Int[torch.Tensor, "1 S"]) -> list[str]:
        """Each token's text, with a space for Gemma's `▁`."""
        pieces = self.tokenizer.convert_ids_to_tokens(input_ids[0].tolist())
        return [piece.replace("▁", " ") for piece in pieces]

    def token_id(self, piece: str) -> int:
        """The id of the token that reads so, such as ` important` with its space.

        Raises:
            ModelError: the vocabulary has no such token.
        """
        token_id = self.tokenizer.convert_tokens_to_ids(piece.replace(" ", "▁"))
        if token_id is None or token_id == self.tokenizer.unk_token_id:
            raise ModelError(
                "The model's vocabulary lacks a token.",
                where="the tokenizer",
                found=f"no token {piece!r}",
                expected="the vocabulary of Gemma 2",
                mend="use the tokenizer that came with the model",
            )
        return int(token_id)


def load_full_model(folder: Path) -> FullModel:
    """Loads a model whole, on the CPU, in float32; nothing is downloaded.

    Args:
        folder: with config.json, the weights and the tokenizer.

    Raises:
        ModelError: it cannot be loaded, or weights are missing.
    """
    # Its types do not say that a report may come with the network.
    loader: Any = AutoModelForCausalLM
    try:
        with quiet_loading():
            network, report = loader.from_pretrained(
                folder,
                dtype=torch.float32,
                # By name: older versions silently dropped Gemma 2's soft cap under `sdpa`.
                attn_implementation="eager",
                local_files_only=True,
                output_loading_info=True,
            )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            "The model cannot be loaded.",
            where=str(folder),
            found=str(error).splitlines()[0] if str(error) else type(error).__name__,
            expected="a folder with the config.json, weights and tokenizer of a Gemma 2",
            mend="download or copy the model again",
        ) from error
    # Weights that the files lack are otherwise filled with random numbers.
    if report["missing_keys"]:
        raise ModelError(
            "The model's files lack weights.",
            where=str(folder),
            found=f"{len(report['missing_keys'])} missing, such as {min(report['missing_keys'])}",
            mend="download or copy the model again",
        )
    return FullModel(network.eval(), tokenizer, SiteReader(network.model))


# --- what comes of it ---------------------------------------------------------------------


def next_token_probabilities(
    model: FullModel,
    input_ids: Int[torch.Tensor, "1 S"],
    site: Site | None = None,
    change: Change | None = None,
) -> Float[torch.Tensor, " V"]:
    """The probability of each token to come next, with the final soft cap.

    Args:
        model: whole.
        input_ids: beginning with BOS.
        site: where something is changed.
        change: what is changed there; both or neither.
    """
    changed = (
        nullcontext()
        if site is None or change is None
        else changed_site(model.network.model, site, change)
    )
    with torch.inference_mode(), changed:
        output = model.network(input_ids=input_ids, use_cache=False, logits_to_keep=1)
    # The soft cap is part of the network's own forward pass.
    probabilities: torch.Tensor = output.logits[0, -1].float().softmax(-1)
    return probabilities


def changed_probabilities(
    model: FullModel, prompt: str, changes: Sequence[ModelChange]
) -> Float[torch.Tensor, " V"]:
    """The same under changes at every position, BOS too, by all that `scopenote steer` does.

    Args:
        model: whole.
        prompt: text that stands after BOS.
        changes: of features and neurons.
    """
    subject = model.subject
    ids = read_prompt(subject, prompt, 1)
    changed = changed_features(subject.network, changes)
    return continue_prompt(subject, ids, 1, changed=changed, with_bos=True).probabilities


def lens_probabilities(
    model: FullModel, input_ids: Int[torch.Tensor, "1 S"], layer: int
) -> Float[torch.Tensor, " V"]:
    """The logit lens: what the last position would predict if the model ended after a layer.

    The residual stream after layer `layer` (from 0) goes through the final norm, the vocabulary
    head and the soft cap.
    """
    residual = read_site(model, input_ids, Site(layer, "res"))[-1:]
    network = model.network
    head, cap = network.lm_head.weight, network.config.final_logit_softcapping
    return lens_distributions(residual, network.model.norm, head, cap)[0]


def read_site(
    model: FullModel, input_ids: Int[torch.Tensor, "1 S"], site: Site
) -> Float[torch.Tensor, "S D"]:
    """A site's vectors at every position of a text, BOS included."""
    with torch.inference_mode():
        return model.reader.read(input_ids, [site])[site][0]


@dataclass(frozen=True, slots=True)
class TextFidelity:
    """How well an SAE does on some tokens.

    Attributes:
        mean_l0: features that fire, on average over tokens.
        fvu: fraction of variance unexplained, about the mean vector.
        explained: 1 minus the squared error's share of the variance of all numbers about their
            one mean, as Gemma Scope's tutorial has it; more than 1 - `fvu`.
    """

    mean_l0: float
    fvu: float
    explained: float


def measure_text_fidelity(
    sae: Sae, x: Float[torch.Tensor, "T D"], target: Float[torch.Tensor, "T E"]
) -> TextFidelity:
    """L0 and variance explained on some tokens, summed in float64; BOS should not be one.

    Args:
        sae: an SAE or a transcoder.
        x: what it reads at each token.
        target: what it is to reconstruct there; of an SAE that is `x` itself.
    """
    with torch.inference_mode():
        f = sae.encode(x)
        exact = target.double()
        error = (exact - sae.add_skip(sae.decode(f), x).double()).square()
        about_mean_vector = (exact - exact.mean(0)).square()
        return TextFidelity(
            mean_l0=float((f > 0).sum(1).double().mean()),
            fvu=float(error.sum() / about_mean_vector.sum()),
            explained=float(1 - error.mean() / exact.var()),
        )
