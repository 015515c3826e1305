"""An endpoint's answer to a chat completion, read without trusting it.

The `openai` package takes whatever JSON comes for a completion and hands web pages on as text;
here every field that is used is checked. Left out: HTTP, and what is done about a bad answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from .chat import ChatReply, Reason, TokenLogprob

# More than any prompt will ever have; the ledger takes no more.
_TOO_MANY_TOKENS = 10**12


class _Answered(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class _Alternative(_Answered):
    token: str
    logprob: float


class _Token(_Alternative):
    top_logprobs: tuple[_Alternative, ...] | None = None


class _Logprobs(_Answered):
    content: tuple[_Token, ...] | None = None


class _Message(_Answered):
    content: str | None = None
    refusal: str | None = None


class _Choice(_Answered):
    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


def _believable(count: int | None) -> int | None:
    """A count of tokens; one that none can be counts as none stated, for the reply is good."""
    return count if count is not None and 0 <= count < _TOO_MANY_TOKENS else None


TokenCount = Annotated[int | None, AfterValidator(_believable)]


class _PromptDetails(_Answered):
    cached_tokens: TokenCount = None


class _Usage(_Answered):
    prompt_tokens: TokenCount = None
    completion_tokens: TokenCount = None
    prompt_tokens_details: _PromptDetails | None = None


class _Error(_Answered):
    message: str = "an error without a message"
    code: int | str | None = None


class _Completion(_Answered):
    choices: tuple[_Choice, ...] | None = None
    usage: _Usage | None = None
    model: str | None = None
    prompt_logprobs: Any = None  # two megabytes, checked in one go with taking out what is used
    error: _Error | str | None = None


@dataclass(frozen=True, slots=True)
class UnusableAnswer:
    """An answer with status 200 that is no reply.

    Attributes:
        reason: why it cannot be used.
        message: what was found, in words.
        status: the HTTP status that the answer itself claims in its body, where it does.
        code: the endpoint's word for its error, where it gives one.
        prompt_tokens, cached_tokens, completion_tokens: what was charged, as far as it says.
    """

    reason: Reason
    message: str
    status: int | None = None
    code: str | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None


def read_completion(
    body: bytes, seconds: float, attempts: int, needs_prompt_logprobs: bool = False
) -> ChatReply | UnusableAnswer:
    """The reply in the body of an answer with status 200, or why there is none.

    Args:
        body: as it came.
        seconds: to be noted in the reply.
        attempts: likewise.
        needs_prompt_logprobs: whether a reply without the prompt's log probabilities is none.
    """
    if is_web_page(body):
        return UnusableAnswer("web_page", "a web page instead of JSON")
    try:
        completion = _Completion.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        if first["type"] == "json_invalid":
            return UnusableAnswer("not_json", f"{len(body)} bytes that are not JSON")
        place = ".".join(str(step) for step in first["loc"])
        return UnusableAnswer("unreadable", f"no chat completion: {place or 'it'}: {first['msg']}")
    usage = completion.usage or _Usage()
    details = usage.prompt_tokens_details or _PromptDetails()
    # An endpoint that counts the prompt and says nothing of a cache has read none from one.
    cached = details.cached_tokens or (None if usage.prompt_tokens is None else 0)
    charged = (usage.prompt_tokens, cached, usage.completion_tokens)
    if not completion.choices:
        if isinstance(completion.error, str):
            return UnusableAnswer("unreadable", completion.error, None, None, *charged)
        if completion.error is not None:
            code = str(completion.error.code)
            status = int(code) if code.isdecimal() else None
            return UnusableAnswer("unreadable", completion.error.message, status, code, *charged)
        return UnusableAnswer("no_choices", "a reply without any choice", None, None, *charged)
    prompt_logprobs = _prompt_logprobs(completion.prompt_logprobs)
    if needs_prompt_logprobs and prompt_logprobs is None:
        found = "a reply without the `prompt_logprobs` that were asked for"
        return UnusableAnswer("no_prompt_logprobs", found, None, None, *charged)
    choice = completion.choices[0]
    return ChatReply(
        text=choice.message.content,
        finish_reason=choice.finish_reason,
        refusal=choice.message.refusal,
        logprobs=_logprobs(choice.logprobs),
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=cached,
        completion_tokens=usage.completion_tokens,
        model=completion.model or "",
        seconds=seconds,
        attempts=attempts,
        prompt_logprobs=prompt_logprobs,
    )


def is_web_page(body: bytes) -> bool:
    """Whether this is HTML: a proxy's error, a login page, a wrong address."""
    return body[:200].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html"))


def _logprobs(given: _Logprobs | None) -> tuple[TokenLogprob, ...] | None:
    if given is None or given.content is None:
        return None
    return tuple(
        TokenLogprob(
            token.token,
            token.logprob,
            tuple((other.token, other.logprob) for other in token.top_logprobs or ()),
        )
        for token in given.content
    )


def _prompt_logprobs(given: Any) -> tuple[TokenLogprob | None, ...] | None:
    """vLLM's: at each token the options by their ids, first the one that the prompt has.

    No reply hangs on them but where they were asked for, so what cannot be read is none.
    """
    if not isinstance(given, list):
        return None
    try:
        return tuple(map(_prompt_token, given))
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _prompt_token(options: Any) -> TokenLogprob | None:
    if not options:
        return None
    spelled = tuple(
        (str(each.get("decoded_token") or ""), float(each["logprob"])) for each in options.values()
    )
    return TokenLogprob(*spelled[0], spelled)
