"""Text of a corpus as data in a prompt: delimited, and unable to pass for anything else.

A prompt is built of lines in the signs ⟦ and ⟧, and marks active tokens by ⟪ and ⟫. These four
signs are ours alone: whatever comes from a corpus has others in their place, so where one stands
in a prompt, we put it. What cannot be seen is spelled out, and the tokens by which chat templates
mark turns are broken, since a local model would read them as such. Left out: what text *says*;
the prompts tell the model that it is never an instruction.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..store.byte_pieces import join_bytes

# Look-alikes of the delimiters go as well; 《 and 》 stay, being quotation marks of Chinese.
_HARMLESS = str.maketrans({"⟦": "[", "⟧": "]", "〚": "[", "〛": "]", "⟪": "«", "⟫": "»", "\r": "␍"})
# The tokens for turns, beginnings and ends in the templates of Gemma, ChatML, Llama, Mistral,
# Phi and DeepSeek. Others' local models take them from text as well as from the template.
_CONTROL_TOKEN = re.compile(
    r"<(?=[|｜]|</?SYS>>|/?(?:s|bos|eos|pad|unk|mask)>|(?:start|end)_of_\w+>)"
    r"|\[(?=/?INST\]|/?(?:AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|SYSTEM_PROMPT)\])",
    re.IGNORECASE,
)
_BREAKS = re.compile(r"([\n\t])")
_BROKEN = {"<": "‹", "[": "［"}


@dataclass(frozen=True, slots=True)
class ShownPiece:
    """A token, or several that are the bytes of one character, as a prompt shows it.

    Attributes:
        text: harmless but for line breaks and tabs, which are as they were.
        strength: 0 to 10, the highest of its tokens.
        is_active: whether the feature fires at one of them.
    """

    text: str
    strength: int
    is_active: bool


def line(text: str) -> str:
    """A line that says what follows, in the signs that no text of a corpus can hold."""
    return f"⟦{text}⟧\n"


def show_pieces(
    tokens: Sequence[str], strengths: Sequence[int], are_active: Sequence[bool]
) -> list[ShownPiece]:
    """Tokens' texts made harmless one by one, bytes of one character joined."""
    # Joining takes the largest of its bytes' numbers: one that orders both at once.
    joined, ranks = join_bytes(
        tokens, [2 * s + is_active for s, is_active in zip(strengths, are_active, strict=True)]
    )
    return [
        ShownPiece(_harmless_token(text), int(rank) // 2, int(rank) % 2 == 1)
        for text, rank in zip(joined, ranks, strict=True)
    ]


def show_text(tokens: Sequence[str]) -> str:
    """Tokens' texts made harmless together, bytes of one character joined."""
    return make_harmless("".join(join_bytes(tokens, [0] * len(tokens))[0]))


def make_harmless(text: str) -> str:
    """A text without delimiters or marks, with what cannot be seen spelled out.

    Line breaks and tabs stay. Control tokens of chat templates are whole only when text is, so
    `break_control_tokens` is for what is finished.
    """
    parts = _BREAKS.split(text.translate(_HARMLESS))
    return "".join(part if part.isprintable() else _spell(part) for part in parts)


# The same tokens come again and again.
_harmless_token = lru_cache(1 << 15)(make_harmless)


def show_on_one_line(text: str) -> str:
    """A harmless text with signs for line breaks and tabs."""
    return text.replace("\n", "⏎").replace("\t", "⇥")


def break_control_tokens(text: str) -> str:
    """A text in which no tokenizer finds the control tokens of a chat template; as long."""
    return _CONTROL_TOKEN.sub(lambda found: _BROKEN[found[0]], text)


def _spell(part: str) -> str:
    if part in "\n\t":
        return part
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape", "surrogatepass").decode()
        for sign in part
    )
