"""Conversations as the token ids that a local model continues, by its tokenizer's chat template.

Where a template has no place for a system message (Gemma's), its text goes in front of the next
message of the user. A tokenizer without a template, that of a model which was never taught to
chat, gets a plain layout, after BOS if it has one:

    System:
    (text)

    User:
    (text)

    Assistant:

Control tokens that stand in a message are read as the signs they are made of, so that no text can
end its turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from ..store.errors import ModelError
from .chat import Message

# A word that no template says by itself.
_PROBE = "scopenote"
# Two texts without a common beginning, as texts and as tokens.
_UNLIKE = ("Say", "0")


@dataclass(frozen=True, slots=True)
class ChatLayout:
    """How a tokenizer writes conversations.

    Attributes:
        tokenizer: of the model.
        has_template: whether it has a chat template.
        takes_system: whether that has a place for a system message.
        turn_end: the control token that it writes after a message of the assistant.
    """

    tokenizer: Any
    has_template: bool
    takes_system: bool
    turn_end: int | None

    @classmethod
    def of(cls, tokenizer: Any, model: str) -> ChatLayout:
        """The layout that a tokenizer prescribes, or the plain one.

        Args:
            tokenizer: of the model.
            model: its name, for the message.

        Raises:
            ModelError: its template does not even take a question and an answer.
        """
        if not getattr(tokenizer, "chat_template", None):
            return cls(tokenizer, has_template=False, takes_system=True, turn_end=None)
        answered = [Message("user", "?"), Message("assistant", _PROBE)]
        try:
            text = tokenizer.apply_chat_template(_as_dicts(answered), tokenize=False)
        except (TemplateError, ValueError) as error:
            raise ModelError(
                "The model's chat template cannot be used.",
                where=model,
                found=str(error),
                expected="a template that writes messages of `user` and `assistant` in turn",
                mend="name a chat model whose template is made for conversations in text",
            ) from error
        return cls(tokenizer, True, _takes_system(tokenizer), _turn_end(tokenizer, text))

    def token_ids(self, messages: Sequence[Message]) -> list[int]:
        """What the model reads: the messages, and how a message of its own begins.

        Raises:
            TemplateError: the template takes no such conversation.
            ValueError: a control token within a text cannot be written as text.
        """
        if not self.has_template:
            return self._plain_ids(messages)
        shown = messages if self.takes_system else _without_system(messages)
        ids: list[int] = self.tokenizer.apply_chat_template(
            _as_dicts(shown),
            add_generation_prompt=True,
            sanitize_control_tokens=True,
            return_dict=False,
        )
        return ids

    def beginning(self, leading: Sequence[Message]) -> list[int]:
        """The token ids with which all conversations begin that begin with these messages.

        Raises:
            TemplateError: the template takes no such conversation.
            ValueError: a control token within a text cannot be written as text.
        """
        one, other = (self.token_ids([*leading, Message("user", text)]) for text in _UNLIKE)
        return one[: common_length(one, other)]

    def text_of(self, token_ids: Sequence[int]) -> str:
        """The text of a reply, without control tokens."""
        text: str = self.tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text

    def token_text(self, token_id: int) -> str:
        """A token's text by itself; of one that is part of a character, a replacement sign."""
        text: str = self.tokenizer.decode([token_id])
        return text

    def _plain_ids(self, messages: Sequence[Message]) -> list[int]:
        turns = [f"{each.role.capitalize()}:\n{each.content}\n\n" for each in messages]
        encoded = self.tokenizer(
            "".join([*turns, "Assistant:\n"]), add_special_tokens=False, split_special_tokens=True
        )
        ids: list[int] = encoded["input_ids"]
        bos = self.tokenizer.bos_token_id
        return ids if bos is None else [bos, *ids]


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences have in common from the beginning."""
    differing = (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differing, min(len(one), len(other)))


def _as_dicts(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": each.role, "content": each.content} for each in messages]


def _takes_system(tokenizer: Any) -> bool:
    messages = _as_dicts([Message("system", _PROBE), Message("user", "?")])
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False)
    except TemplateError:
        return False
    # Some templates leave out what they have no place for, and say nothing.
    return _PROBE in text


def _turn_end(tokenizer: Any, answered: str) -> int | None:
    """The first control token behind the assistant's words; not all models list it as an end."""
    behind = answered.rpartition(_PROBE)[2]
    ids: list[int] = tokenizer(behind, add_special_tokens=False)["input_ids"]
    added = tokenizer.added_tokens_decoder
    return next((each for each in ids if each in added and added[each].special), None)


def _without_system(messages: Sequence[Message]) -> list[Message]:
    """The same conversation, the system's texts in front of the user's."""
    shown: list[Message] = []
    held: list[str] = []
    for each in messages:
        if each.role == "system":
            held.append(each.content)
        elif each.role == "user" and held:
            shown.append(Message("user", "\n\n".join([*held, each.content])))
            held.clear()
        else:
            shown.append(each)
    return [*shown, Message("user", "\n\n".join(held))] if held else shown
