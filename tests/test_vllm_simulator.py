"""A model behind vLLM that rates windows by what it would have written, over real HTTP."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scopenote.evaluate.rating_calls import Rated
from scopenote.evaluate.simulators import Simulated
from scopenote.evaluate.teacher_forced import NO_DIGIT, WindowText, filled_answer, slot_messages
from scopenote.evaluate.vllm_simulator import (
    NOT_FOUND,
    NOT_OFFERED,
    VllmSimulator,
    rated_from,
    slot_digits_of,
    slot_request,
)
from scopenote.label.call_limits import CallLimits
from scopenote.label.call_records import CallRecords, to_record
from scopenote.label.chat import ChatReply, ChatRequest, Message, TokenLogprob
from scopenote.label.endpoint_client import HOPELESS, Patience
from scopenote.label.labelling import NO_REPLY
from scopenote.label.openai_client import OpenAIClient
from scopenote.store.errors import EndpointRefuses, RequestGivenUp
from scopenote.store.records import Call, Label, Windows

from .fake_openai import Answer, Asked, FakeOpenAI, Script, error, in_turn, reply, serve
from .made_up_calls import make_call
from .planted_feature import FEATURE, make_stratum

LABEL = Label(FEATURE, "the word import", None, "highlighted", "1", (1, 2), model="m")
WORDS = {1: " import", 2: "?", 3: " the", 4: "\n", 5: "9", 6: "\t?\n"}
QUICK = Patience(attempts=2, first_backoff_seconds=0.002, longest_backoff_seconds=0.01)
# How tokenizers cut the answer: sign by sign, in words, and with the filler joined to its line
# break (as cl100k and its like do) or to its tab.
CUTS = {
    "signs": r"(?s).",
    "words": r"(?s) ?\w+|.",
    "break joined": r"(?s) ?\w+|[^\w\s]+\n*|.",
    "tab joined": r"(?s) ?\w+|\t\?|.",
}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # No certificates: reading the system's takes longer than most of these tests.
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))


# --- a server in vLLM's form ------------------------------------------------------------------


def shares_for(text: str) -> dict[int, float]:
    """What the scripted model would write behind a line: nine and a little eight, or nothing."""
    return {9: 0.6, 8: 0.2} if "import" in text else {0: 0.5}


def in_vllm_form(
    asked: Asked,
    cut: str = CUTS["words"],
    shares: Callable[[str], dict[int, float]] = shares_for,
    header: str = "<start_of_turn>model\n",
) -> Answer:
    """A completion with the prompt's log probabilities: its own token first, then the likeliest."""
    assert asked.body["continue_final_message"] is True
    assert asked.body["add_generation_prompt"] is False
    *before, last = (each["content"] for each in asked.body["messages"])
    # A template may trim what it is given.
    prompt = "<bos>" + "\n\n".join(before) + header + last.strip()
    logprobs: list[dict[str, Any] | None] = [None]
    at = len("<bos>")
    for token in re.findall(cut, prompt[at:]):
        options = {token: -8.0, "?": -3.0, " 7": -0.5, "the": -2.0}
        line = prompt[:at].rpartition("\n")[2]
        slot = re.fullmatch(r"(\t?)\?\n*", token)
        if slot and (slot[1] or line.endswith("\t")) and (line + slot[1]).count("\t") == 2:
            found = shares(line).items()
            options |= {f"{slot[1]}{digit}": math.log(share) for digit, share in found}
        logprobs.append(
            {
                str(100 + number): {"logprob": value, "rank": number + 1, "decoded_token": text}
                for number, (text, value) in enumerate(options.items())
            }
        )
        at += len(token)
    answer = reply("\n", prompt=len(logprobs), cached=0, written=1)
    return replace(
        answer, body=json.dumps(json.loads(answer.body) | {"prompt_logprobs": logprobs}).encode()
    )


def simulate(fake: FakeOpenAI, windows: Windows, calls: list[Call] | None = None) -> Simulated:
    records = CallRecords({}, "simulate", kept_logprobs=slot_digits_of)

    async def rate_all(rating: Any) -> list[Rated | str]:
        nonlocal client
        async with OpenAIClient(fake.base_url, CallLimits(4), QUICK) as client:
            rated: list[Rated | str] = await rating
            return rated

    async def ask(request: ChatRequest, n_static: int) -> Call:
        assert client is not None
        recorded = to_record(request, n_static)
        try:
            call = records.reply(recorded, await client.complete(request))
        except RequestGivenUp as failure:
            call = records.failure(recorded, failure)
        # As it comes back from the record.
        call = replace(call, reply=json.loads(json.dumps(call.reply)))
        if calls is not None:
            calls.append(call)
        return call

    client: OpenAIClient | None = None
    simulator = VllmSimulator(
        "m", ask, lambda rating: asyncio.run(rate_all(rating)), WORDS.__getitem__, lambda name: (3,)
    )
    assert simulator.name == "vllm/m"
    return simulator.simulate(LABEL, windows)


def windows(*texts: Sequence[int]) -> Windows:
    return make_stratum(texts, n_tokens=max(map(len, texts))).windows


# --- what is asked and what comes of it -------------------------------------------------------


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_slots_are_found_however_the_prompt_was_cut_into_tokens(cut: str) -> None:
    with serve(lambda asked: in_vllm_form(asked, cut)) as fake:
        simulated = simulate(fake, windows([1, 3, 2, 4, 5, 6, 1, 3, 3, 1], [3, 1], [3]))
    high = (9 * 0.6 + 8 * 0.2) / 0.8
    assert simulated.failures == {}
    assert simulated.predicted[0] == pytest.approx([high, 0, 0, 0, 0, 0, high, 0, 0, high])
    assert simulated.predicted[1] == pytest.approx([0, high] + [0] * 8)
    assert simulated.captured_mass == pytest.approx({0: 0.59, 1: 0.65, 2: 0.5})


@pytest.mark.parametrize("header", ["<|im_start|>assistant\n", "[/INST] ", "[/INST]"])
def test_the_first_line_is_found_behind_whatever_a_template_writes(header: str) -> None:
    with serve(lambda asked: in_vllm_form(asked, header=header)) as fake:
        simulated = simulate(fake, windows([1, 3, 2], [1]))
    assert simulated.failures == {}
    assert simulated.predicted[:, 0] == pytest.approx([8.75, 8.75])


def test_tokens_that_are_spelled_without_their_spaces_are_found_too() -> None:
    text = filled_answer([" the", " import"])
    tokens = [None, *(each.strip(" ") for each in re.findall(CUTS["words"], text))]
    logprobs = tuple(
        None if each is None else TokenLogprob(each, -1.0, ((each, -1.0), ("4", -0.5)))
        for each in tokens
    )
    assert slot_digits_of(reply_with(logprobs)) == [[1, [[4, -0.5]]], [2, [[4, -0.5]]]]


def test_a_request_is_in_vllms_words_and_on_record_with_digits_only() -> None:
    calls: list[Call] = []
    with serve(in_vllm_form) as fake:
        simulate(fake, windows([1, 3]), calls)
    (asked,) = fake.asked
    text = WindowText((" the",), (" import", " the"))
    messages = slot_messages("the word import", text.before)
    assert asked.body == {
        "model": "m",
        "messages": [
            *({"role": each.role, "content": each.content} for each in messages),
            {"role": "assistant", "content": "1\t import\t?\n2\t the\t?"},
        ],
        "temperature": 0.0,
        "max_tokens": 1,
        "add_generation_prompt": False,
        "continue_final_message": True,
        "prompt_logprobs": 20,
    }
    (call,) = calls
    assert call.request_hash == slot_request("m", "the word import", text).request_hash
    assert call.n_static == 1
    high = [[8, pytest.approx(math.log(0.2))], [9, pytest.approx(math.log(0.6))]]
    assert call.reply["logprobs"] == [[1, high], [2, [[0, pytest.approx(math.log(0.5))]]]]


def test_a_digit_counts_with_white_space_behind_it_and_with_none() -> None:
    options = (("?\n", -9.0), ("4", math.log(0.2)), ("4\n", math.log(0.1)), ("9 ", math.log(0.1)))
    odd = (("44", -0.1), (" 4", -0.1), ("٣", -0.1), ("5", -math.inf), ("6", math.nan))
    logprobs = (
        None,
        TokenLogprob("1\ta\t", 0.0, (("1\ta\t", 0.0),)),
        TokenLogprob("?\n", -9.0, options + odd),
        TokenLogprob("2\tb\t?", -9.0, (("2\tb\t?", -9.0), ("2\tb\t3", -1.0))),
    )
    (first, second) = slot_digits_of(reply_with(logprobs)) or []
    assert first == [1, [[4, pytest.approx(math.log(0.3))], [9, pytest.approx(math.log(0.1))]]]
    assert second == [2, [[3, -1.0]]]


# --- what goes wrong --------------------------------------------------------------------------


def test_a_slot_without_a_digit_fails_its_window_and_is_no_zero() -> None:
    def script(asked: Asked) -> Answer:
        return in_vllm_form(asked, shares=lambda line: {} if "import" in line else {0: 0.5})

    with serve(script) as fake:
        simulated = simulate(fake, windows([3, 1, 3], [3, 3, 3]))
    assert simulated.failures == {0: NO_DIGIT}
    assert simulated.captured_mass.keys() == {1}


@pytest.mark.parametrize(
    "script",
    [
        in_turn(reply("fine")),
        in_turn(error(400, "Unrecognized request argument supplied: add_generation_prompt")),
        in_turn(error(400, "unknown", param="prompt_logprobs")),
        in_turn(error(422, "Requested prompt logprobs of 20 is greater than max allowed: 10")),
    ],
)
def test_an_endpoint_that_does_not_offer_it_fails_each_window_with_words_that_say_so(
    script: Script,
) -> None:
    calls: list[Call] = []
    with serve(script) as fake:
        simulated = simulate(fake, windows([1, 3], [3, 3]), calls)
    assert simulated.failures == {0: NOT_OFFERED, 1: NOT_OFFERED}
    # Begins as all failures do that `--retry-failed` asks for again, and nothing is asked twice.
    assert NOT_OFFERED.startswith(NO_REPLY)
    assert "prompt_logprobs" in NOT_OFFERED
    assert len(fake.asked) == 2
    assert all(call.reply is None and call.error for call in calls)


def test_an_endpoint_that_never_offers_it_is_not_paid_on_and_on() -> None:
    with serve(in_turn(reply("fine"))) as fake, pytest.raises(EndpointRefuses):
        simulate(fake, windows(*[[1 + n % 5] for n in range(2 * HOPELESS)]))
    assert HOPELESS <= len(fake.asked) < HOPELESS + 4


@pytest.mark.parametrize("given", ["yes", [None, 1], [None, {"7": {}}], [{"7": {"logprob": "x"}}]])
def test_log_probabilities_that_cannot_be_read_are_none(given: Any) -> None:
    def script(asked: Asked) -> Answer:
        answer = reply("fine")
        body = json.loads(answer.body) | {"prompt_logprobs": given}
        return replace(answer, body=json.dumps(body).encode())

    with serve(script) as fake:
        assert simulate(fake, windows([1])).failures == {0: NOT_OFFERED}

        # And no other request minds.
        async def ask() -> ChatReply:
            async with OpenAIClient(fake.base_url, CallLimits(1), QUICK) as client:
                return await client.complete(ChatRequest((Message("user", "?"),), "m", 0.0, 1))

        answered = asyncio.run(ask())
    assert (answered.text, answered.prompt_logprobs) == ("fine", None)


@pytest.mark.parametrize(
    "prompt",
    [
        "1\t a\t?\n2\t b\t?\n",
        "1\t a\t?\n3\t b\t?\n3\t c\t?",
        "2\t a\t?\n3\t b\t?",
        "1\t a\t?\n2\t b ?\n3\t c\t?",
        "1\t a\t?\n2\t b\t?\n3\t c\t? and so on, 4\t d\t?",
        "nothing",
        "",
    ],
)
def test_a_prompt_in_which_the_lines_are_not_found_fails_its_window(prompt: str) -> None:
    logprobs = (None, *(TokenLogprob(sign, -1.0, ((sign, -1.0), ("3", -1.0))) for sign in prompt))
    kept = slot_digits_of(reply_with(logprobs))
    call = make_call(0, reply={"text": "\n", "logprobs": kept})
    assert rated_from(call, 3) == NOT_FOUND


def test_a_call_without_a_reply_fails_its_window_with_its_reason() -> None:
    with serve(in_turn(error(500))) as fake:
        assert simulate(fake, windows([1])).failures == {0: f"{NO_REPLY}: server error"}


def reply_with(logprobs: tuple[TokenLogprob | None, ...]) -> ChatReply:
    return ChatReply("\n", "length", None, None, 1, 0, 1, "m", 0.1, 1, logprobs)


# --- what was on record before ----------------------------------------------------------------


def test_requests_that_ask_for_nothing_new_keep_their_hash() -> None:
    messages = (Message("system", "Be brief."), Message("user", "Hello"))
    plain = ChatRequest(messages, "fake-model", 0.0, 20)
    full = ChatRequest(messages, "fake-model", 0.7, 20, {"type": "object"}, 5, 3)
    # Of the code before there was anything new to ask for.
    assert plain.request_hash == "933652c976fed191"
    assert full.request_hash == "08d8718771029635"
    assert plain.as_dict().keys() == {"model", "messages", "temperature", "max_tokens"}
    others = [
        replace(plain, continues_last=True),
        replace(plain, prompt_logprobs=0),
        replace(plain, prompt_logprobs=20),
        replace(plain, continues_last=True, prompt_logprobs=20),
    ]
    assert len({each.request_hash for each in (plain, *others)}) == 5
