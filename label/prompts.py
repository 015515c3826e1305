"""Prompts: versioned texts, what of a feature goes into them, and how they are made to fit.

The system message is the same for all features of an explainer and comes first, so that providers
who keep the beginnings of requests need to read it once; what is the feature's comes last. The
texts lie in `prompt_texts/`, and the version is a hash of them. Left out: which contexts are shown
(`chosen_contexts.py`), and how each explainer writes them down.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Protocol

from ..store.feature_page import ShownToken
from ..store.records import FeatureContexts, content_hash
from .chat import Message

# What the code adds to the texts: choice, scale, layout. Counted up whenever the same contexts
# would be rendered otherwise, because labels are made again when the version is another.
LAYOUT = 1

DOES_NOT_FIT = "the prompt does not fit, not even with a single context"

# What a request costs beside its text: the marks around two messages and before the answer.
_TOKENS_AROUND = 12
# What counts one token, and the signs of three or four bytes, which count one more.
_UNITS = re.compile(r"[A-Za-z]{1,5}|[^\sA-Za-z]|(?! (?!\s))\s+")
_WIDE = re.compile(r"[^\s\x00-\u07ff]")


@dataclass(frozen=True, slots=True)
class FeatureTexts:
    """What an explainer needs beside the contexts.

    Attributes:
        token_text: spells a token.
        prefix_of: the tokens that the model read before a window, by the window's id.
        raised, lowered: the output tokens that the feature raises and lowers most.
    """

    token_text: Callable[[int], str]
    prefix_of: Callable[[int], Sequence[int]]
    raised: Sequence[ShownToken] = ()
    lowered: Sequence[ShownToken] = ()


@dataclass(frozen=True, slots=True)
class ContextBlock:
    """A context as the prompt shows it."""

    window_id: int
    text: str


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A request's messages, in the parts of which they are made.

    Attributes:
        system: the same for all features of an explainer.
        blocks: the contexts, in the order in which they are shown.
        ending: what follows them.
        prompt_version: what the label is stored under.
        n_dropped: contexts left out because they did not fit.
    """

    system: str
    blocks: tuple[ContextBlock, ...]
    ending: str
    prompt_version: str
    n_dropped: int = 0

    @property
    def messages(self) -> tuple[Message, ...]:
        """What is sent."""
        shown = "".join(block.text for block in self.blocks) + self.ending
        return (Message("system", self.system), Message("user", shown))

    @property
    def window_ids(self) -> tuple[int, ...]:
        """The windows shown, in this order."""
        return tuple(block.window_id for block in self.blocks)

    @property
    def estimated_tokens(self) -> int:
        """About how many tokens the request is, rather too many than too few."""
        texts = [self.system, self.ending, *(block.text for block in self.blocks)]
        return _TOKENS_AROUND + sum(map(estimate_tokens, texts))


@dataclass(frozen=True, slots=True)
class NoPrompt:
    """There is nothing to ask a model about this feature; the reason is stored as a failure."""

    reason: str


class Render(Protocol):
    """What each explainer's module offers."""

    def __call__(self, contexts: FeatureContexts, texts: FeatureTexts) -> RenderedPrompt | NoPrompt:
        """The prompt for a feature; the same values give the same prompt."""
        ...


@cache
def read_prompt(name: str) -> str:
    """A text of `prompt_texts/`, as it is there."""
    folder = files("scopenote.label").joinpath("prompt_texts")
    return folder.joinpath(f"{name}.txt").read_text("utf-8")


@dataclass(frozen=True, slots=True)
class StaticPart:
    """The part of an explainer's prompts that is the same for all features.

    Attributes:
        names: of the texts in `prompt_texts/`, in the order in which they follow one another.
    """

    names: tuple[str, ...]

    @property
    def system(self) -> str:
        """The system message."""
        return "".join(map(read_prompt, self.names))

    @property
    def version(self) -> str:
        """A hash that is another one wherever replies may be others.

        The request for a repair belongs to it, since its reply becomes a label as well.
        """
        return content_hash([LAYOUT, self.system, read_prompt("repair")])

    def ask(self, blocks: tuple[ContextBlock, ...], ending: str = "") -> RenderedPrompt:
        """The prompt for a feature of which this is shown."""
        return RenderedPrompt(self.system, blocks, ending, self.version)


def estimate_tokens(text: str) -> int:
    """About how many tokens a text is for any model: rather too many, at most its bytes in UTF-8.

    Words of Latin letters count one for each five letters begun, other signs one for each two
    bytes begun, and white space one unless it is a single space.
    """
    return len(_UNITS.findall(text)) + len(_WIDE.findall(text))


def drop_to_fit(prompt: RenderedPrompt, max_tokens: int) -> RenderedPrompt | NoPrompt:
    """The prompt without as many contexts, from the end, as it takes to fit.

    Args:
        prompt: as rendered.
        max_tokens: what the request may have, by `estimated_tokens`; room for the answer is the
            caller's to subtract.

    Returns:
        The prompt, `n_dropped` counted up by what was left out; a failure where not even one
        context fits, or where the prompt has none and does not fit.
    """
    spare = max_tokens - replace(prompt, blocks=()).estimated_tokens
    n_fitting = 0
    for block in prompt.blocks:
        spare -= estimate_tokens(block.text)
        if spare < 0:
            break
        n_fitting += 1
    if spare < 0 and n_fitting == 0:
        return NoPrompt(DOES_NOT_FIT)
    return replace(
        prompt,
        blocks=prompt.blocks[:n_fitting],
        n_dropped=prompt.n_dropped + len(prompt.blocks) - n_fitting,
    )
