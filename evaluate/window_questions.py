"""Questions about several windows in one call, and what the answers say of each.

Windows are numbered, and the answer is a line for each: number, tab, one digit. Answers are
joined to windows by number, never by place. Windows that an answer leaves out are asked for once
more; those that then have no answer have failed, with a reason. Left out: which windows are
asked about, and what the answers are worth.

A window's own text is all that is shown of it. What the model had read before would double the
price of a question, and a judge would find there what a label names, where it does not count.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import groupby
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32

from ..label.chat import ChatRequest, Message
from ..label.corpus_data import (
    break_control_tokens,
    line,
    make_harmless,
    show_on_one_line,
    show_pieces,
)
from ..label.labelling import CUT_OFF, Ask
from ..store.records import Call
from .rating_calls import Digits, stored_digits, why_unread

NO_ANSWER = "the answer has no line for the window that can be used"
CONTRADICTED = "the answer says two things of the window"

# A line of an answer, as `token_ratings.digits_of` finds them.
_LINE = re.compile(r"^[ \t]*(\d{1,4})[ \t]*[\t:|,=][ \t]*([0-9])[ \t\r]*$", re.MULTILINE)
# What a line of an answer takes at most, in tokens, and room for a few words.
_TOKENS_A_LINE, _TOKENS_AROUND = 6, 60
_TOP_LOGPROBS = 10


@dataclass(frozen=True, slots=True)
class Answer:
    """What a judge says of one window.

    Attributes:
        probabilities: of the digits that may be answered, in their order; they sum to 1.
        mass: how much of the probability lay on these digits; None without log probabilities,
            where all of it is given to the digit that was written.
    """

    probabilities: tuple[float, ...]
    mass: float | None = None


@dataclass(frozen=True, slots=True)
class Answers:
    """What can be used of a reply: by window, numbered from 1, and those it contradicts itself on.

    Attributes:
        of_window: the answers.
        contradicted: windows with lines that say different things.
    """

    of_window: Mapping[int, Answer]
    contradicted: Collection[int] = ()


@dataclass(frozen=True, slots=True)
class Question:
    """A request about windows.

    Attributes:
        messages: what is sent, the first the same for all questions of a kind.
        n_windows: how many windows are to be answered.
        digits: what may be answered.
        about: what the windows are called in it, if they are none.
    """

    messages: tuple[Message, ...]
    n_windows: int
    digits: tuple[int, ...]
    about: str = "windows"


Replies = list[list[Answer | str]]


@dataclass(frozen=True, slots=True)
class Asker:
    """A language model that is asked about windows.

    Attributes:
        name: what its scores are stored under, such as `chat/gpt-4o-mini`.
        model: its name at the endpoint.
        ask: gives the call of a request.
        run: runs a coroutine to its end and gives its result; calls may be made side by side.
        token_text: spells a token of the subject model.
    """

    name: str
    model: str
    ask: Ask
    run: Callable[[Coroutine[Any, Any, Replies]], Replies]
    token_text: Callable[[int], str]

    def answers(self, questions: Sequence[Question]) -> Replies:
        """To each question, of each of its windows an answer or why there is none."""
        return self.run(self._answer_all(questions))

    def show(
        self, number: int, token_ids: Int32[np.ndarray, " T"], marked: Bool[np.ndarray, " T"]
    ) -> str:
        """A window as it is shown; stretches of marked tokens stand between ⟪ and ⟫."""
        is_token = token_ids >= 0
        tokens = [self.token_text(token_id) for token_id in token_ids[is_token].tolist()]
        pieces = show_pieces(tokens, [0] * len(tokens), marked[is_token].tolist())
        text = ""
        for is_marked, stretch in groupby(pieces, key=lambda piece: piece.is_active):
            content = "".join(piece.text for piece in stretch)
            text += f"⟪{content}⟫" if is_marked else content
        return line(f"window {number}") + text + "\n"

    async def _answer_all(self, questions: Sequence[Question]) -> Replies:
        return await asyncio.gather(*map(self._answer, questions))

    async def _answer(self, question: Question) -> list[Answer | str]:
        numbers = range(1, question.n_windows + 1)
        call = await self.ask(self._request(question.messages, len(numbers)), 1)
        if (why := why_unread(call)) is not None:
            return [why] * len(numbers)
        found = _read(call, question)
        missing = [number for number in numbers if number not in found.of_window]
        if not missing:
            return [found.of_window[number] for number in numbers]
        again = _missing_messages(question, call.reply["text"], missing)
        call = await self.ask(self._request(again, len(missing)), 1)
        why = why_unread(call)
        more = Answers({}) if why is not None else _read(call, question)
        outcomes: list[Answer | str] = []
        for number in numbers:
            answer = (more if number in missing else found).of_window.get(number)
            outcomes.append(answer or why or _unanswered(call, more, number))
        return outcomes

    def _request(self, messages: tuple[Message, ...], n_lines: int) -> ChatRequest:
        return ChatRequest(
            messages=messages,
            model=self.model,
            temperature=0.0,
            max_tokens=_TOKENS_A_LINE * n_lines + _TOKENS_AROUND,
            top_logprobs=_TOP_LOGPROBS,
        )


def compose(prompt: str, labels: str, windows: Sequence[str], digits: tuple[int, ...]) -> Question:
    """A question.

    Args:
        prompt: the name of the text in `prompt_texts/` that says what is asked.
        labels: as `show_label` shows them.
        windows: as `Asker.show` shows them, numbered from 1.
        digits: what may be answered.
    """
    shown = labels + "".join(windows) + line("end of windows")
    return Question(compose_messages(prompt, shown), len(windows), digits)


def compose_messages(prompt: str, shown: str) -> tuple[Message, ...]:
    """What is sent: the text of this name in `prompt_texts/`, and what it is asked about."""
    return (
        Message("system", _static_text(prompt)),
        Message("user", break_control_tokens(shown)),
    )


def show_label(text: str) -> str:
    """A label as a line of a prompt."""
    return show_on_one_line(make_harmless(text)) + "\n"


def read_answers(
    text: str | None,
    n_windows: int,
    digits: Sequence[int],
    options: Digits = (),
) -> Answers:
    """The answers in a reply.

    Args:
        text: the reply.
        n_windows: how many windows were asked about.
        digits: what may be answered.
        options: by the place of a digit in the text, the digits that might have stood there with
            their log probabilities (`token_ratings.digits_of`). Others than `digits` take their
            share of the mass and have no part in the answer.
    """
    options_at = {place: dict(at) for place, at in options}
    stated: dict[int, int] = {}
    answers: dict[int, Answer] = {}
    contradicted: set[int] = set()
    for found in _LINE.finditer(text or ""):
        number, digit = int(found[1]), int(found[2])
        if not 1 <= number <= n_windows:
            continue
        if stated.setdefault(number, digit) != digit:
            contradicted.add(number)
        elif digit in digits and number not in answers:
            answers[number] = _answer(digit, digits, options_at.get(found.start(2), {}))
    usable = {number: each for number, each in answers.items() if number not in contradicted}
    return Answers(usable, contradicted)


@cache
def _static_text(name: str) -> str:
    folder = files("scopenote.evaluate").joinpath("prompt_texts")
    return folder.joinpath(f"{name}.txt").read_text("utf-8")


def _answer(digit: int, digits: Sequence[int], options: Mapping[int, float]) -> Answer:
    """The answer where this digit was written and these might have been."""
    logprobs = [options.get(each, -math.inf) for each in digits]
    highest = max(logprobs)
    if highest == -math.inf:
        return Answer(tuple(float(each == digit) for each in digits), 0.0 if options else None)
    weights = [math.exp(logprob - highest) for logprob in logprobs]
    total = sum(weights)
    mass = min(1.0, total * math.exp(highest))
    return Answer(tuple(weight / total for weight in weights), mass)


def _read(call: Call, question: Question) -> Answers:
    text = call.reply["text"] or ""
    if call.reply["finish_reason"] == "length":
        # The last line may have been going to be another.
        text = text[: text.rfind("\n") + 1]
    return read_answers(text, question.n_windows, question.digits, stored_digits(call))


def _missing_messages(
    question: Question, answer: str | None, missing: Sequence[int]
) -> tuple[Message, ...]:
    """The one attempt at the windows left out: the conversation so far, and their numbers."""
    numbers, allowed = ", ".join(map(str, missing)), ", ".join(map(str, question.digits))
    return (
        *question.messages,
        Message("assistant", answer or "(no answer)"),
        Message(
            "user",
            f"Lines for these {question.about} are missing, say two things, or hold more or other "
            f"than one of the digits {allowed}: {numbers}. Answer with these lines and nothing "
            "else, in the same form.",
        ),
    )


def _unanswered(call: Call, read: Answers, number: int) -> str:
    """Why a window has no answer in the second reply either."""
    if number in read.contradicted:
        return CONTRADICTED
    return CUT_OFF if call.reply["finish_reason"] == "length" else NO_ANSWER
