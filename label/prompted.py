"""The explainers that ask a language model, by the names that a configuration gives them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from . import highlighted, max_activations, output_tokens, with_logits
from .prompts import Render, StaticPart


@dataclass(frozen=True, slots=True)
class PromptedExplainer:
    """An explainer that turns a feature into a prompt.

    Attributes:
        name: what its labels are stored under.
        static: the part of its prompts that is the same for all features.
        render: gives the prompt for a feature.
    """

    name: str
    static: StaticPart
    render: Render

    @property
    def version(self) -> str:
        """Another one whenever the same contexts may give another label."""
        return self.static.version


_ALL = (
    PromptedExplainer(max_activations.NAME, max_activations.STATIC, max_activations.render),
    PromptedExplainer(highlighted.NAME, highlighted.STATIC, highlighted.render),
    PromptedExplainer(with_logits.NAME, with_logits.STATIC, with_logits.render),
    PromptedExplainer(output_tokens.NAME, output_tokens.STATIC, output_tokens.render),
)
PROMPTED: Mapping[str, PromptedExplainer] = {each.name: each for each in _ALL}
