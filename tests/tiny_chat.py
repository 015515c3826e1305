"""Tiny random chat models of several families, saved as real ones are, and what they would say.

    folder = save_chat_model(tmp_path / "tiny", "gemma2")
    slow_reply(folder, request)

The slow way is the obvious one: the whole sequence through the model for each token, alone,
without a cache.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from scopenote.label.chat import ChatRequest
from transformers import (
    AddedToken,
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
)

from .tiny_gemma import BOS, EOS, PAD, tiny_tokenizer

TURN, END = "<start_of_turn>", "<end_of_turn>"
CONTEXT_TOKENS = 512
# Beside EOS and the end of a turn, so that random models come to an end now and then.
MORE_ENDS = tuple(range(100, 130))

_TURNS = "'" + TURN + "' + {role} + '\n' + {content} + '" + END + "\n'"
_ANSWER = "{% if add_generation_prompt %}{{ '" + TURN + "{role}\n' }}{% endif %}"
# Gemma's: no system message, and roles in turn.
WITHOUT_SYSTEM = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}{{ "
    + _TURNS.format(
        role="('model' if message['role'] == 'assistant' else message['role'])",
        content="message['content'] | trim",
    )
    + " }}{% endfor %}"
    + _ANSWER.replace("{role}", "model")
)
WITH_SYSTEM = (
    "{% for message in messages %}{{ "
    + _TURNS.format(role="message['role']", content="message['content']")
    + " }}{% endfor %}"
    + _ANSWER.replace("{role}", "assistant")
)
FAMILIES = ("gemma2", "gemma3_text", "llama", "mistral")
TEMPLATES = {
    "gemma2": WITHOUT_SYSTEM,
    "gemma3_text": WITHOUT_SYSTEM,
    "llama": WITH_SYSTEM,
    "mistral": None,
}


def chat_tokenizer(template: str | None) -> Any:
    """The tiny tokenizer with the tokens for turns and a chat template."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(TURN, special=True), AddedToken(END, special=True)])
    tokenizer.chat_template = template
    return tokenizer


def save_chat_model(folder: Path, family: str, more_ends: tuple[int, ...] = MORE_ENDS) -> Path:
    """Writes a model and its tokenizer into `folder`; gives it back."""
    tokenizer = chat_tokenizer(TEMPLATES[family])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(FAMILIES.index(family))
        network = AutoModelForCausalLM.from_config(config_of(family, len(tokenizer)))
        for name, weight in network.named_parameters():
            if weight.ndim == 2:
                scale = 0.3 if "embed" in name else weight.shape[1] ** -0.5
                torch.nn.init.normal_(weight, std=scale)
    network.generation_config.eos_token_id = [EOS, *more_ends]
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def config_of(family: str, vocab_size: int) -> Any:
    """Windows shorter than any prompt where there are some, and all else of the family at work."""
    sizes = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": CONTEXT_TOKENS,
        "tie_word_embeddings": True,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "bos_token_id": BOS,
    }
    if family == "gemma2":
        caps = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 30.0}
        return Gemma2Config(**sizes, **caps, query_pre_attn_scalar=16, sliding_window=16)
    if family == "gemma3_text":
        layers = ["sliding_attention", "full_attention", "sliding_attention"]
        return Gemma3TextConfig(
            **sizes, query_pre_attn_scalar=16, sliding_window=5, layer_types=layers
        )
    if family == "mistral":
        return MistralConfig(**sizes, sliding_window=16)
    return LlamaConfig(**sizes)


# --- the slow way -----------------------------------------------------------------------------


@dataclass(frozen=True)
class SlowReply:
    """What the model says; `logprobs` has all tokens of the vocabulary at each written one."""

    text: str | None
    finish_reason: str
    prompt_tokens: int
    written: tuple[int, ...]
    logprobs: tuple[dict[str, float], ...]


@cache
def slow_reply(folder: Path, request: ChatRequest) -> SlowReply:
    network, tokenizer = load_slowly(folder)
    prompt = tokenizer(shown(tokenizer, request), add_special_tokens=False)["input_ids"]
    written: list[int] = []
    logprobs: list[dict[str, float]] = []
    numbers = random.Random(request.request_hash)
    ends = set(network.generation_config.eos_token_id)
    if tokenizer.chat_template is not None:
        ends.add(tokenizer.convert_tokens_to_ids(END))
    finish_reason = "length"
    while len(written) < request.max_tokens:
        with torch.inference_mode():
            logits = network(torch.tensor([prompt + written])).logits[0, -1].double()
        if request.temperature == 0:
            token = int(logits.argmax())
        else:
            shares = (logits / request.temperature).softmax(-1).tolist()
            number = numbers.random()
            token = next(n for n, share in enumerate(accumulate(shares)) if share > number)
        if token in ends:
            finish_reason = "stop"
            break
        written.append(token)
        logprobs.append({str(n): value for n, value in enumerate(logits.log_softmax(-1).tolist())})
    text = tokenizer.decode(written, skip_special_tokens=True) or None
    return SlowReply(text, finish_reason, len(prompt), tuple(written), tuple(logprobs))


def shown(tokenizer: Any, request: ChatRequest) -> str:
    """The prompt as the template was meant to write it, by hand."""
    messages = [(each.role, each.content) for each in request.messages]
    if tokenizer.chat_template is None:
        turns = "".join(f"{role.capitalize()}:\n{content}\n\n" for role, content in messages)
        return f"<bos>{turns}Assistant:\n"
    if tokenizer.chat_template == WITH_SYSTEM:
        turns = "".join(f"{TURN}{role}\n{content}{END}\n" for role, content in messages)
        return f"{turns}{TURN}assistant\n"
    (_, system), (_, user), *more = messages
    names = {"user": "user", "assistant": "model"}
    turns = "".join(
        f"{TURN}{names[role]}\n{content.strip()}{END}\n"
        for role, content in [("user", f"{system}\n\n{user}"), *more]
    )
    return f"<bos>{turns}{TURN}model\n"


@cache
def load_slowly(folder: Path) -> tuple[Any, Any]:
    network = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    return network.eval(), AutoTokenizer.from_pretrained(folder)


@contextmanager
def one_thread() -> Iterator[None]:
    """So small a model is computed many times slower by threads that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- what a model is given --------------------------------------------------------------------


@contextmanager
def watching() -> Iterator[list[tuple[int, int]]]:
    """The shape, rows by tokens, of whatever is given to a model within the block."""
    shapes: list[tuple[int, int]] = []

    def note(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        if isinstance(module, torch.nn.Embedding):
            n_rows, n_tokens = args[0].shape
            shapes.append((n_rows, n_tokens))

    handle = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield shapes
    finally:
        handle.remove()


@contextmanager
def memory_for(rows: int = 10**9, tokens: int = 10**9) -> Iterator[None]:
    """Whoever gives a model more rows, or more tokens in a row, is out of memory in the block."""

    def refuse(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        if isinstance(module, torch.nn.Embedding) and (
            args[0].shape[0] > rows or args[0].shape[1] > tokens
        ):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nAnd so on")

    handle = torch.nn.modules.module.register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()
