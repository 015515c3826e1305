"""From a prompt and what the model replies to a label, or to the reason why there is none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from scopenote.label.chat import ChatRequest
from scopenote.label.label_reply import BROKEN_OFF, EMPTY
from scopenote.label.labelling import CUT_OFF, DECLINED, WITHHELD, Asking, write_label
from scopenote.label.prompts import (
    DOES_NOT_FIT,
    ContextBlock,
    NoPrompt,
    RenderedPrompt,
    estimate_tokens,
)
from scopenote.store.records import Call, FeatureId, Label

from .made_up_calls import make_call

FEATURE = FeatureId("toy/1-res", 7)
ASKING = Asking("gpt-4o-mini", 0.0, 200)
GOOD = json.dumps({"explanation": "They import.", "near_miss": "Exports.", "label": "imports"})


def prompt(n_blocks: int = 3) -> RenderedPrompt:
    blocks = tuple(ContextBlock(10 + n, f"context {n} " * 20) for n in range(n_blocks))
    return RenderedPrompt("Say what they share.", blocks, "", "v1")


def said(text: str | None, finish: str = "stop", refusal: str | None = None) -> dict[str, Any]:
    return {"text": text, "finish_reason": finish, "refusal": refusal, "model": "m"}


class Endpoint:
    """Answers in turn; an error is one that a call ended with."""

    def __init__(self, *answers: dict[str, Any] | str) -> None:
        self.answers = list(answers)
        self.asked: list[ChatRequest] = []

    async def ask(self, request: ChatRequest, n_static: int) -> Call:
        self.asked.append(request)
        answer = self.answers.pop(0)
        found = {"reply": answer} if isinstance(answer, dict) else {"reply": None, "error": answer}
        return make_call(0, request_hash=request.request_hash, **found)


def label_from(
    endpoint: Endpoint,
    shown: RenderedPrompt | NoPrompt | None = None,
    asking: Asking = ASKING,
    draw: int = 0,
) -> Label:
    asked = prompt() if shown is None else shown
    return asyncio.run(write_label(FEATURE, "highlighted", asked, "v1", asking, draw, endpoint.ask))


def test_a_good_reply_becomes_a_label_that_says_where_it_is_from() -> None:
    endpoint = Endpoint(said(GOOD))
    label = label_from(endpoint, draw=2)
    assert (label.status, label.text, label.reason) == ("done", "imports", None)
    assert label.explanation == "They import.\nNear miss: Exports."
    assert (label.explainer, label.prompt_version, label.model) == (
        "highlighted", "v1", "gpt-4o-mini",
    )  # fmt: skip
    assert label.window_ids == (10, 11, 12)
    assert (label.draw, label.n_dropped_contexts) == (2, 0)
    assert label.request_hash == endpoint.asked[0].request_hash
    assert endpoint.asked[0].reply_schema is not None


def test_two_models_two_draws_and_two_features_have_labels_of_their_own() -> None:
    ids = {
        label_from(Endpoint(said(GOOD)), asking=asking, draw=draw).label_id
        for asking in (ASKING, Asking("llama", 0.0, 200))
        for draw in (0, 1)
    }
    assert len(ids) == 4


def test_a_bad_reply_is_repaired_once() -> None:
    endpoint = Endpoint(said('{"label": "cut o'), said(GOOD))
    label = label_from(endpoint)
    assert (label.status, label.text) == ("done", "imports")
    first, second = endpoint.asked
    assert label.request_hash == second.request_hash != first.request_hash
    assert second.messages[: len(first.messages)] == first.messages
    assert BROKEN_OFF in second.messages[-1].content


def test_a_reply_that_stays_bad_is_a_stored_failure_with_its_last_fault() -> None:
    label = label_from(Endpoint(said('{"label": "cut o'), said("  ")))
    assert (label.status, label.text, label.explanation) == ("failed", None, None)
    assert label.reason == EMPTY
    assert label.window_ids == (10, 11, 12)


def test_a_refusal_and_a_withheld_reply_are_not_repaired() -> None:
    for answer, reason in (
        (said(None, refusal="I cannot."), DECLINED),
        (said(None, finish="content_filter"), WITHHELD),
    ):
        endpoint = Endpoint(answer)
        assert label_from(endpoint).reason == reason
        assert len(endpoint.asked) == 1


def test_a_reply_that_was_cut_off_is_asked_for_again() -> None:
    endpoint = Endpoint(said('{"label": "cut o', finish="length"), said("no", finish="length"))
    assert label_from(endpoint).reason == CUT_OFF
    assert CUT_OFF in endpoint.asked[1].messages[-1].content


def test_what_got_no_reply_has_the_reason_of_its_call() -> None:
    label = label_from(Endpoint("rate_limited: rate limited (HTTP 429): slow down, after 8"))
    assert label.reason == "no reply from the model: rate limited"
    label = label_from(Endpoint(said("what?"), "timeout: no complete answer, after 8 attempts"))
    assert label.reason == "the reply holds no JSON object; then no reply from the model: timeout"
    assert label.status == "failed"


def test_a_feature_without_a_prompt_asks_nobody() -> None:
    endpoint = Endpoint()
    label = label_from(endpoint, NoPrompt("never active"))
    assert (label.status, label.reason, label.request_hash) == ("failed", "never active", None)
    assert (label.window_ids, label.n_dropped_contexts) == ((), None)


def windows_shown(requests: Sequence[ChatRequest]) -> list[int]:
    return [
        sum(f"context {n} " in asked.messages[1].content for n in range(9)) for asked in requests
    ]


def test_contexts_are_dropped_until_the_endpoint_takes_the_prompt() -> None:
    too_long = "context_too_long: more than 8192 tokens, after 1 attempts"
    endpoint = Endpoint(too_long, too_long, said(GOOD))
    label = label_from(endpoint, prompt(8))
    assert windows_shown(endpoint.asked) == [8, 6, 4]
    assert label.window_ids == (10, 11, 12, 13)
    assert label.n_dropped_contexts == 4
    assert label.request_hash == endpoint.asked[2].request_hash


def test_a_prompt_of_which_nothing_fits_fails_after_few_requests() -> None:
    endpoint = Endpoint(*["context_too_long: no, after 1 attempts"] * 20)
    label = label_from(endpoint, prompt(8))
    assert label.reason == DOES_NOT_FIT
    assert windows_shown(endpoint.asked) == [8, 6, 4, 3, 2, 1]


def test_what_the_model_takes_is_kept_to_before_anything_is_sent() -> None:
    shown = prompt(8)
    a_block = estimate_tokens(shown.blocks[0].text)
    fits = shown.estimated_tokens - 3 * a_block + ASKING.max_reply_tokens
    endpoint = Endpoint(said(GOOD))
    label = label_from(endpoint, shown, Asking("gpt-4o-mini", 0.0, 200, context_tokens=fits))
    assert windows_shown(endpoint.asked) == [5]
    assert label.n_dropped_contexts == 3
