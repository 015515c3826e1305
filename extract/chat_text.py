"""Conversations as the text that a chat model was trained on, by its tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jinja2 import TemplateError

from ..store.errors import CorpusError

Render = Callable[[Any], str]


class NoConversationError(Exception):
    """What was to be rendered is no conversation that the template takes; says why."""


def chat_renderer(tokenizer: Any, model: str) -> Render:
    """A function from a conversation to its text, turns marked by the template's special tokens.

    A conversation is a list of messages, each with a `role` and a `content` that are text. The
    function raises NoConversationError for anything else, for roles or an order that the
    template refuses, and for messages that spell a special token: a corpus cannot end a turn
    from inside.

    Args:
        tokenizer: the model's.
        model: its name, for the message.

    Raises:
        CorpusError: the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise CorpusError(
            "The model has no chat template.",
            where=f"[model] name = {model!r}",
            found="[corpus] chat = true",
            expected="the tokenizer of a chat model, such as google/gemma-2-9b-it",
            mend="name a chat model, or set chat = false for plain text",
        )
    special = tuple(tokenizer.all_special_tokens)

    def render(conversation: Any) -> str:
        if not isinstance(conversation, list) or not conversation:
            raise NoConversationError("no list of messages")
        for message in conversation:
            if not isinstance(message, dict) or not all(
                isinstance(message.get(key), str) for key in ("role", "content")
            ):
                raise NoConversationError("a message without role and content")
            if any(token in message["content"] for token in special):
                raise NoConversationError("a message that spells a special token")
        try:
            text: str = tokenizer.apply_chat_template(conversation, tokenize=False)
        except TemplateError as error:
            raise NoConversationError(f"refused by the template ({error})") from error
        # BOS begins every sequence anyway.
        return text.removeprefix(tokenizer.bos_token)

    return render
