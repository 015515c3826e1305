"""How much collecting costs beside the bare loop, and whether its memory grows with the text.

The bare loop is the forward pass to the sites and the SAEs' encoding, JumpReLU included, on
token ids that lie ready, in the leanest form that we know: the same batches side by side, the
same blocks of features, buffers used again. Collecting is everything, from text to absorbed
parts: reading, tokenizing, forward, encoding, sketches, writing, merging, building the tables.

Both run in turn in one process, so that the ratio holds on a noisy machine. The model has random
weights: a Gemma 2 of four layers, 256 wide (`--model small`), or layers 0 to 20 of Gemma 2 2B at
its true shape (`--model gemma-2-2b`, for a GPU); `--model toy` is the embedded toy, cut after
layer 1, which is the hardest case: what collecting adds for a token costs the same at any size
of the model, and Gemma 2 2B computes a thousand times as much for it. The SAEs are random, with
thresholds set so that each feature fires equally often and 64 fire on each token, about as in
Gemma Scope; one reads the last layer's residual stream, three all sites of that layer, fifteen
(of `gemma-2-2b`) all sites of five layers.

    python tests/benchmarks/collect_speed.py [--only speed] [--tokens N] [--rounds N]
    python tests/benchmarks/collect_speed.py --only speed --model gemma-2-2b --saes 1 15 \\
        --widths 16384 --tokens 1000000
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Event
from typing import TypeVar

import pyarrow as pa
import torch
from scopenote.extract.activations import block_values_on
from scopenote.extract.attention import BLOCKED_ATTENTION, register_blocked_attention
from scopenote.extract.collect_job import CollectJob
from scopenote.extract.collector import CollectedPart
from scopenote.extract.corpus import CorpusSource, RowCounts, read_documents
from scopenote.extract.models import (
    SubjectModel,
    choose_device,
    choose_dtype,
    load_model,
    model_path,
)
from scopenote.extract.saes import Sae, SaeSource
from scopenote.extract.sites import Site, SiteKind, SiteReader
from scopenote.extract.sketches import SketchSizes
from scopenote.extract.toy.standard_library import iterate_documents
from scopenote.extract.windows import (
    SequenceBatch,
    TokenizedChunk,
    WindowShape,
    batch_sequences,
    cut_chunks,
)
from scopenote.extract.workers import batch_workers
from scopenote.store.absorb import absorb_collected
from scopenote.store.database import open_work
from scopenote.store.parts import write_part
from transformers import AutoTokenizer, Gemma2Config, Gemma2Model

LAYERS = {"small": (3,), "toy": (1,), "gemma-2-2b": (20, 16, 12, 8, 4)}
KINDS: tuple[SiteKind, ...] = ("res", "mlp", "att")
L0 = 64
# A firing that is kept as it is: a feature and a token in four bytes each, and a float.
NONZERO_BYTES = 12
Result = TypeVar("Result")


def small_config() -> Gemma2Config:
    """A Gemma 2 of 8 million multiplications a token."""
    return Gemma2Config(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        query_pre_attn_scalar=64,
        initializer_range=0.1,
    )


def gemma_2_2b_config() -> Gemma2Config:
    """Gemma 2 2B, cut after layer 20."""
    return Gemma2Config(
        vocab_size=256_000,
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=21,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        query_pre_attn_scalar=256,
    )


def load(kind: str, sites: list[Site]) -> SubjectModel:
    """The toy, or a model of random weights with the toy's tokenizer."""
    if kind == "toy":
        return load_model("toy", sites)
    config = small_config() if kind == "small" else gemma_2_2b_config()
    device = choose_device("auto")
    if device.type == "cpu":
        register_blocked_attention()
    config._attn_implementation = BLOCKED_ATTENTION if device.type == "cpu" else "eager"
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(choose_dtype("auto", device))
    try:
        with device:
            network = Gemma2Model(config).eval()
    finally:
        torch.set_default_dtype(before)
    tokenizer = AutoTokenizer.from_pretrained(model_path("toy"))
    reader = SiteReader(network, sites)
    return SubjectModel(kind, network, reader, tokenizer, config, "random", "random weights")


def make_sae(
    model: SubjectModel, site: Site, width: int, chunk: TokenizedChunk, job: CollectJob
) -> Sae:
    """A random SAE whose features each fire on L0 / width of the chunk's tokens."""
    torch.manual_seed(0)
    read = [vectors(model, [site], batch)[site] for batch in islice(batches(job, chunk), 2)]
    x = torch.cat(read).float()
    center = x.mean(0)
    directions = torch.randn(width, x.shape[1], device=x.device)
    decoder = torch.nn.functional.normalize(directions, dim=1)
    # Directions in which the site varies, as a trained SAE's are.
    decoder = torch.nn.functional.normalize(decoder @ torch.cov(x.T), dim=1)
    bias = -(decoder @ center)
    sample = x[torch.randperm(len(x))[:4096]]
    firing = round(len(sample) * L0 / width)
    strongest = (decoder @ sample.T + bias[:, None]).topk(firing, dim=1).values
    threshold = strongest[:, -1].clamp(min=1e-3)
    name = f"{model.name}/{site.layer}-{site.kind}-random-{width}"
    source = SaeSource(name, Path(), site, None, "random")
    return Sae(source, decoder.contiguous(), bias, threshold, decoder, center, f"random-{width}")


def batches(job: CollectJob, chunk: TokenizedChunk) -> list[SequenceBatch]:
    tokenizer = job.model.tokenizer
    special = frozenset(tokenizer.all_special_ids)
    bos, pad = tokenizer.bos_token_id, tokenizer.pad_token_id
    return list(batch_sequences(chunk, bos, pad, special, job.max_batch_tokens))


def vectors(
    model: SubjectModel, sites: list[Site], batch: SequenceBatch
) -> dict[Site, torch.Tensor]:
    ids, positions = (torch.from_numpy(x).long() for x in (batch.input_ids, batch.position_ids))
    read = model.read_sites(ids, sites, positions)
    places = torch.from_numpy(batch.flat_positions).to(model.device)
    return {site: x.reshape(-1, x.shape[-1])[places] for site, x in read.items()}


def run_bare(job: CollectJob, ready: list[SequenceBatch]) -> None:
    """Forward and encoding alone, batches side by side as in collecting."""
    waiting = deque(ready)
    with batch_workers(job.model.device, Event()) as (executor, n):
        for future in [executor.submit(encode_all, job, waiting) for _ in range(n)]:
            future.result()


def encode_all(job: CollectJob, waiting: deque[SequenceBatch]) -> None:
    sites = sorted({sae.site for sae in job.saes})
    device = job.model.device
    room = block_values_on(device)
    pre = torch.empty(room, device=device)
    fires = torch.empty(room, dtype=torch.bool, device=device)
    with torch.inference_mode():
        while waiting:
            batch = waiting.popleft()
            x_t = {site: x.float().T for site, x in vectors(job.model, sites, batch).items()}
            n_tokens = len(batch.flat_positions)
            for sae in job.saes:
                rows = max(1, min(sae.width, room // n_tokens))
                for begin in range(0, sae.width, rows):
                    end = min(begin + rows, sae.width)
                    f = pre[: (end - begin) * n_tokens].view(-1, n_tokens)
                    mask = fires[: (end - begin) * n_tokens].view(-1, n_tokens)
                    bias, weights = sae.encoder_bias[begin:end, None], sae.encoder[begin:end]
                    torch.addmm(bias, weights, x_t[sae.site], out=f)
                    torch.gt(f, sae.threshold[begin:end, None], out=mask)
                    f.mul_(mask)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def operations_per_token(job: CollectJob) -> float:
    """Of the bare loop's matrix products: the model's, half of attention's square, the SAEs'."""
    network = job.model.network
    weights = sum(w.numel() for name, w in network.named_parameters() if "embed" not in name)
    config = network.config
    seen = job.shape.sequence_tokens / 2
    attention = 2 * seen * config.num_attention_heads * config.head_dim * len(network.layers)
    encoders = sum(sae.encoder.numel() for sae in job.saes)
    return float(2 * (weights + attention + encoders))


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of the largest matrix product that is worth waiting for."""
    n = 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(10):
        _, seconds, _ = clocked(lambda: (a @ b)[0, 0].item())
        best = max(best, 2 * n**3 / seconds)
    return best


def clocked(work: Callable[[], Result]) -> tuple[Result, float, float]:
    """What it gives, the seconds it took, and the seconds of all processors."""
    started, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - started, time.process_time() - cpu


def write_corpus(folder: Path) -> CorpusSource:
    """The standard library with its tests as a file: finding it is not part of reading it."""
    file = folder / "corpus.jsonl"
    with file.open("w") as lines:
        for text in iterate_documents(include_tests=True):
            lines.write(json.dumps({"text": text}) + "\n")
    return CorpusSource(path=str(file))


@dataclass(frozen=True)
class Collected:
    """What a collection was, in numbers; `absorbing` in seconds."""

    n_tokens: int
    absorbing: float
    n_firings: int
    database_bytes: int


def first_documents(text: CorpusSource, n: int) -> CorpusSource:
    """A corpus of the first so many documents of another."""
    whole = Path(text.path or "")
    few = whole.with_name(f"first-{n}.jsonl")
    with whole.open() as lines:
        few.write_text("".join(islice(lines, n)))
    return CorpusSource(path=str(few))


def run_collect(job: CollectJob, text: CorpusSource, max_tokens: int) -> Collected:
    """All of collecting."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        documents = read_documents(text, RowCounts())
        n_tokens = write_collected(
            job, job.pending_chunks(cut_chunks(documents), {}, max_tokens), run
        )
        collected = time.perf_counter()
        pieces = pa.table({"token_id": [0], "text": [""], "bytes": [b""]})
        with open_work(run) as work:
            absorb_collected(work, run / "parts", lambda: pieces)
        absorbing = time.perf_counter() - collected
        with open_work(run) as work:
            work.execute("CHECKPOINT")
            ((n_firings,),) = work.execute("SELECT sum(n_active) FROM features").fetchall()
        return Collected(n_tokens, absorbing, n_firings, (run / "work.duckdb").stat().st_size)


def write_collected(job: CollectJob, chunks: Iterator[TokenizedChunk], run: Path) -> int:
    # The random SAE reconstructs nothing.
    *_, part = job.collect(chunks, allow_mismatch=True, folder=run)
    assert isinstance(part, CollectedPart)
    rows = part.tables["chunks"].to_pylist()
    write_part(run / "parts", job.part_id(rows), "collect", part.tables, job.manifest(rows))
    return part.n_tokens


def make_job(kind: str, width: int, n_saes: int, text: CorpusSource) -> CollectJob:
    sites = [Site(layer, site) for layer in LAYERS[kind] for site in KINDS][:n_saes]
    model = load(kind, sites)
    job = CollectJob(model, [], WindowShape(), SketchSizes(), 4096)
    first = next(job.pending_chunks(cut_chunks(read_documents(text, RowCounts())), {}, None))
    saes = [make_sae(model, site, width, first, job) for site in sites]
    return CollectJob(model, saes, job.shape, job.sizes, job.max_batch_tokens)


def compare(
    kind: str, text: CorpusSource, width: int, n_saes: int, tokens: int, rounds: int
) -> None:
    job = make_job(kind, width, n_saes, text)
    documents = read_documents(text, RowCounts())
    chunks = list(job.pending_chunks(cut_chunks(documents), {}, tokens))
    ready = [batch for chunk in chunks for batch in batches(job, chunk)]
    # What is imported, compiled or read once in a process is not paid for each text.
    run_bare(job, ready[:20])
    run_collect(job, first_documents(text, 20), tokens)
    rows = []
    for _ in range(rounds):
        _, bare, bare_cpu = clocked(lambda: run_bare(job, ready))
        found, whole, whole_cpu = clocked(lambda: run_collect(job, text, tokens))
        n, absorbing = found.n_tokens, found.absorbing / whole
        rows.append((n / bare, n / whole, whole / bare, whole_cpu / bare_cpu, absorbing))
    bare_rate, rate, ratio, cpu_ratio, absorbing = map(statistics.median, zip(*rows, strict=True))
    ratios = [row[2] for row in rows]
    peak = matmul_peak(job.model.device, job.model.network.dtype) / operations_per_token(job)
    say(
        f"| {n_saes} | {width:,} | {n:,} | {bare_rate:,.0f} | {rate:,.0f} | {ratio - 1:+.1%} "
        f"| {min(ratios) - 1:+.1%} to {max(ratios) - 1:+.1%} | {cpu_ratio - 1:+.1%} "
        f"| {absorbing:.1%} | {bare_rate / peak:.0%} | {rate / peak:.0%} |"
    )


def measure_memory(text: CorpusSource, width: int, tokens: int) -> None:
    """In a process of its own: the peak is the process's."""
    here = [sys.executable, __file__, "--one-memory", str(text.path), str(width), str(tokens)]
    say(subprocess.run(here, check=True, capture_output=True, text=True).stdout.strip())


def report_memory(text: CorpusSource, width: int, tokens: int) -> None:
    job = make_job("toy", width, 1, text)
    found, seconds, _ = clocked(lambda: run_collect(job, text, tokens))
    n, firings = found.n_tokens, found.n_firings
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    say(
        f"| {width:,} | {n:,} | {peak:,.0f} MiB | {found.database_bytes / width:,.0f} "
        f"| {found.database_bytes / n:,.0f} | {firings / n:.1f} "
        f"| {firings * NONZERO_BYTES / width:,.0f} | {firings * NONZERO_BYTES / n:,.0f} "
        f"| {n / seconds:,.0f} |"
    )


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", choices=["speed", "memory"], help="leave the other out")
    options.add_argument("--model", choices=list(LAYERS), default="small")
    options.add_argument("--tokens", type=int, default=300_000)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--widths", type=int, nargs="+", default=[4096, 16384])
    options.add_argument("--saes", type=int, nargs="+", choices=(1, 3, 15), default=[1, 3])
    options.add_argument("--memory-tokens", type=int, nargs="+", default=[500_000, 8_000_000])
    options.add_argument("--one-memory", nargs=3, help=argparse.SUPPRESS)
    asked = options.parse_args()
    if max(asked.saes) > len(KINDS) * len(LAYERS[asked.model]):
        options.error(f"{asked.model} has no sites for {max(asked.saes)} SAEs")
    if asked.one_memory:
        path, width, tokens = asked.one_memory
        report_memory(CorpusSource(path=path), int(width), int(tokens))
        return
    with tempfile.TemporaryDirectory() as folder:
        text = write_corpus(Path(folder))
        if asked.only != "memory":
            report_speed(asked, text)
        if asked.only != "speed":
            report_memories(asked, text)


def report_memories(asked: argparse.Namespace, text: CorpusSource) -> None:
    """Of the toy with one SAE: the other models would take hours."""
    say(
        "\n| features | tokens | peak memory | database, bytes a feature | bytes a token "
        "| firings a token | all of them, bytes a feature | bytes a token | tokens/s |"
    )
    say("|---|---|---|---|---|---|---|---|---|")
    for width in asked.widths:
        for tokens in asked.memory_tokens:
            measure_memory(text, width, tokens)


def report_speed(asked: argparse.Namespace, text: CorpusSource) -> None:
    threads = torch.get_num_threads()
    device = choose_device("auto")
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    say(f"{card}, {threads} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}\n")  # fmt: skip
    say(
        "| SAEs | features | tokens | bare, tokens/s | collect, tokens/s | on top | range "
        "| on top, processor time | absorbing | bare, of matmul peak | collect, of matmul peak |"
    )
    say("|---|---|---|---|---|---|---|---|---|---|---|")
    for n_saes in asked.saes:
        for width in asked.widths:
            compare(asked.model, text, width, n_saes, asked.tokens, asked.rounds)


if __name__ == "__main__":
    main()
