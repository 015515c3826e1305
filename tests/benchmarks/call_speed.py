"""How many calls a second labelling makes beside the bare `openai` client, and in what memory.

A scripted server on loopback, in a process of its own, answers every request in 50 ms with a
label. The bare loop is the asynchronous `openai` client alone, so many requests at once, replies
thrown away. Asking is what a run does with ready prompts: limits, retries, the record of calls
made before, the journal with its flushes, the reply read and turned into a label. Both run in
turn. Then memory is watched over many calls, and the ledger compared with the server's own count.

    python tests/benchmarks/call_speed.py [--calls N] [--rounds N] [--concurrency N]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

from scopenote.label.call_limits import CallLimits
from scopenote.label.call_records import CallRecords
from scopenote.label.labelling import Asking, write_label
from scopenote.label.openai_client import OpenAIClient
from scopenote.label.pricing import load_prices
from scopenote.label.prompts import ContextBlock, RenderedPrompt
from scopenote.label.recorded_client import RecordedClient
from scopenote.store.calls import absorb_journals, spent
from scopenote.store.database import open_store, open_work, publish
from scopenote.store.journal import Journal
from scopenote.store.known_calls import KnownCalls
from scopenote.store.records import FeatureId

MODEL = "gpt-4o-mini"
SYSTEM = "Say in a few words what these contexts have in common. " * 40
CONTEXT = "the parser returns None if there is nothing left to read\n" * 6
PROMPT_TOKENS, CACHED_TOKENS, REPLY_TOKENS = 1200, 1024, 40


def prompt(number: int) -> RenderedPrompt:
    """A prompt of some 6 kB, as those of the explainers are."""
    blocks = tuple(
        ContextBlock(row, f"context {row} of feature {number}\n{CONTEXT}") for row in range(12)
    )
    return RenderedPrompt(SYSTEM, blocks, "", "benchmark")


async def ask_bare(base_url: str, calls: int, concurrency: int) -> None:
    """The `openai` client and nothing else."""
    from openai import AsyncOpenAI

    at_once = asyncio.Semaphore(concurrency)
    async with AsyncOpenAI(api_key="none", base_url=base_url, max_retries=0) as client:

        async def one(number: int) -> None:
            async with at_once:
                messages = [
                    {"role": each.role, "content": each.content} for each in prompt(number).messages
                ]
                await client.chat.completions.create(
                    model=MODEL, messages=messages, temperature=0, max_tokens=500
                )

        await in_stretches(one, calls)


async def ask_recorded(base_url: str, calls: int, concurrency: int, folder: Path) -> None:
    """All that a run does with a prompt."""
    with open_store(folder) as store, Journal(folder / "journal") as journal:
        known = KnownCalls(store, folder / "journal")
        async with OpenAIClient(base_url, CallLimits(concurrency)) as client:
            records = CallRecords(load_prices(), "explain")
            recorded = RecordedClient(client, known, journal, records)
            asking = Asking(MODEL, 0.0, 500)

            async def one(number: int) -> None:
                feature = FeatureId("toy/1-res", number)
                label = await write_label(
                    feature, "benchmark", prompt(number), "1", asking, 0, recorded.ask
                )
                assert label.status == "done", label.reason

            await in_stretches(one, calls)


async def in_stretches(one: Callable[[int], Awaitable[None]], calls: int) -> None:
    """Begins 512 at a time, as the batches of a run do, so that not all prompts are held."""
    waiting: set[asyncio.Task[None]] = set()
    for number in range(calls):
        if len(waiting) >= 512:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                each.result()
        waiting.add(asyncio.ensure_future(one(number)))
    await asyncio.gather(*waiting)


@contextmanager
def server() -> Iterator[str]:
    """The scripted server in a process of its own; gives its address."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, stdin=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def serve_for_ever() -> None:
    """Answers each request after 50 ms; says where on standard output."""
    text = json.dumps(
        {"explanation": "They all return.", "near_miss": "Raising.", "label": "returning None"}
    )
    body = json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "fake",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": text},
                }
            ],
            "usage": {
                "prompt_tokens": PROMPT_TOKENS,
                "completion_tokens": REPLY_TOKENS,
                "total_tokens": PROMPT_TOKENS + REPLY_TOKENS,
                "prompt_tokens_details": {"cached_tokens": CACHED_TOKENS},
            },
        }
    ).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    answer = head.encode() + b"\r\n" + body

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                asked = await reader.readuntil(b"\r\n\r\n")
                length = asked.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
                await reader.readexactly(int(length))
                await asyncio.sleep(0.05)
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def serve() -> None:
        listening = await asyncio.start_server(converse, "127.0.0.1", 0, backlog=1024)
        port = listening.sockets[0].getsockname()[1]
        say(f"http://127.0.0.1:{port}/v1")
        await listening.serve_forever()

    asyncio.run(serve())


def prepared(folder: Path) -> Path:
    """A run's folder with nothing in its database."""
    (folder / "journal").mkdir(parents=True)
    with open_work(folder) as work:
        publish(work, folder)
    return folder


def say(line: str) -> None:
    """A line of the result, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def clocked(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def resident_mib() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20


def compare(calls: int, rounds: int, concurrency: int) -> None:
    """Calls a second of both, in turn."""
    shares: list[float] = []
    rates: list[tuple[float, float]] = []
    with server() as base_url, tempfile.TemporaryDirectory() as folder:
        asyncio.run(ask_bare(base_url, 200, concurrency))  # imports and first connections
        for number in range(rounds + 1):
            run = prepared(Path(folder) / str(number))
            bare = clocked(lambda: asyncio.run(ask_bare(base_url, calls, concurrency)))
            ours = clocked(lambda: asyncio.run(ask_recorded(base_url, calls, concurrency, run)))  # noqa: B023
            if number:  # the first also loads what is loaded once
                shares.append(bare / ours)
                rates.append((calls / bare, calls / ours))
    bare_rate, our_rate = (statistics.median(column) for column in zip(*rates, strict=True))
    say(
        f"| {calls:,} | {concurrency} | {rounds} | {bare_rate:,.0f} | {our_rate:,.0f} | "
        f"{statistics.median(shares):.1%} | {min(shares):.1%} to {max(shares):.1%} |"
    )


def measure_memory(calls: int, concurrency: int) -> None:
    """Memory while so many calls are made, and the ledger against what the server charged."""
    with server() as base_url, tempfile.TemporaryDirectory() as folder:
        run = prepared(Path(folder) / "run")
        seen: list[int] = []

        async def watched() -> None:
            asking = asyncio.ensure_future(ask_recorded(base_url, calls, concurrency, run))
            began = time.monotonic()
            while not asking.done():
                await asyncio.wait({asking}, timeout=1)
                if time.monotonic() - began > 5:
                    seen.append(resident_mib())
            asking.result()

        asyncio.run(watched())
        tenth = max(1, len(seen) // 10)
        early, late = statistics.mean(seen[:tenth]), statistics.mean(seen[-tenth:])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        say(
            f"\n{calls:,} calls: {early:,.0f} MiB when they begin, {late:,.0f} MiB when they end, "
            f"peak {peak:,} MiB"
        )
        with open_work(run) as work:
            absorb_journals(work, run / "journal")
            (found,) = spent(work)
        tokens = (found.prompt_tokens, found.cached_tokens, found.completion_tokens)
        charged = tuple(calls * n for n in (PROMPT_TOKENS, CACHED_TOKENS, REPLY_TOKENS))
        usd = load_prices()[MODEL].cost(PROMPT_TOKENS, CACHED_TOKENS, REPLY_TOKENS) * calls
        say(f"ledger: {found.n_calls:,} calls, {tokens} tokens, ${found.usd}")
        say(f"server: {calls:,} calls, {charged} tokens, ${usd}")
        assert (found.n_calls, tokens, found.usd) == (calls, charged, Decimal(usd))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--memory-calls", type=int, default=20_000)
    parser.add_argument("--only", choices=["speed", "memory"])
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve_for_ever()
    if asked.only != "memory":
        say("| calls | at once | rounds | bare, calls/s | asking, calls/s | share | range |")
        say("|---|---|---|---|---|---|---|")
        compare(asked.calls, asked.rounds, asked.concurrency)
    if asked.only != "speed":
        measure_memory(asked.memory_calls, asked.concurrency)


if __name__ == "__main__":
    main()
