"""A request as OpenAI's chat completions take it, and without what an endpoint does not offer."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from .endpoint_trouble import Trouble


def request_body(request: Mapping[str, Any], lacking: Container[str]) -> dict[str, Any]:
    """What is sent for a request.

    Args:
        request: as it is stored (`ChatRequest.as_dict`).
        lacking: what the endpoint does not offer and is not asked for: `logprobs`,
            `json_schema`, `json_object`.
    """
    body = {name: request[name] for name in ("model", "messages", "temperature", "max_tokens")}
    if "top_logprobs" in request and "logprobs" not in lacking:
        body |= {"logprobs": True, "top_logprobs": request["top_logprobs"]}
    if "reply_schema" in request:
        schema = {"name": "reply", "strict": True, "schema": request["reply_schema"]}
        if "json_schema" not in lacking:
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif "json_object" not in lacking:
            body["response_format"] = {"type": "json_object"}
    # In vLLM's words. An endpoint that refuses them could not answer what is asked without.
    if request.get("continues_last"):
        body |= {"add_generation_prompt": False, "continue_final_message": True}
    if "prompt_logprobs" in request:
        body["prompt_logprobs"] = request["prompt_logprobs"]
    return body


def missing_feature(trouble: Trouble, body: Mapping[str, Any]) -> str | None:
    """What the endpoint refused that the request can do without, in a word that `lacking` has."""
    if "logprobs" in body and trouble.names("logprobs"):
        return "logprobs"
    if "response_format" in body and trouble.names("response_format", "json_"):
        return str(body["response_format"]["type"])
    return None


def objects_to_prompt_logprobs(trouble: Trouble, body: Mapping[str, Any]) -> bool:
    """Whether the endpoint refused what no request for the prompt's log probabilities can lack."""
    return "prompt_logprobs" in body and trouble.names(
        "prompt_logprobs", "prompt logprobs", "continue_final_message", "add_generation_prompt"
    )


def prompt_bytes(request: Mapping[str, Any]) -> int:
    """Bytes of a stored request's messages, which a tokenizer makes no more tokens of."""
    return sum(len(each["content"].encode("utf-8", "replace")) for each in request["messages"])


def estimated_tokens(request: Mapping[str, Any]) -> int:
    """What a stored request takes at most, roughly: four bytes a token, and the longest reply."""
    return prompt_bytes(request) // 4 + int(request["max_tokens"])
