"""How much collecting costs beside the bare loop, and whether its memory grows with the text.

The bare loop is the forward pass to the site and the SAE's encoding, JumpReLU included, on
token ids that lie ready, in the leanest form that we know: the same batches side by side, the
same blocks of features, buffers used again. Collecting is everything, from text to absorbed
parts: reading, tokenizing, forward, encoding, sketches, writing, merging, building the tables.

Both run in turn in one process, so that the ratio holds on a noisy machine. The model is a
Gemma 2 of four layers and random weights, 256 wide (`--model small`), or the embedded toy, cut
after layer 1 (`--model toy`), which is the hardest case: what collecting adds for a token costs
the same at any size of the model, and Gemma 2 2B computes a thousand times as much for it. The
SAE is random, with thresholds set so that each feature fires equally often and 64 fire on each
token, about as in Gemma Scope.

    python tests/benchmarks/collect_speed.py [--tokens N] [--rounds N] [--memory]
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
from itertools import islice
from pathlib import Path
from threading import Event
from typing import TypeVar

import pyarrow as pa
import torch
from scopenote.extract.activations import _BLOCK_VALUES
from scopenote.extract.collect_job import CollectJob
from scopenote.extract.collector import CollectedPart
from scopenote.extract.corpus import CorpusSource, RowCounts, read_documents
from scopenote.extract.models import SubjectModel, load_model, model_path
from scopenote.extract.saes import Sae, SaeSource
from scopenote.extract.sites import Site, SiteKind
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

LAYER = {"small": 3, "toy": 1}
KINDS: tuple[SiteKind, ...] = ("res", "mlp", "att")
L0 = 64
Result = TypeVar("Result")


def save_small_model(folder: Path) -> str:
    """A Gemma 2 of 8 million multiplications a token, with the toy's tokenizer."""
    torch.manual_seed(0)
    config = Gemma2Config(
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
    Gemma2Model(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_path("toy")).save_pretrained(folder)
    return str(folder)


def make_sae(
    model: SubjectModel, site: Site, width: int, chunk: TokenizedChunk, job: CollectJob
) -> Sae:
    """A random SAE whose features each fire on L0 / width of the chunk's tokens."""
    torch.manual_seed(0)
    read = [vectors(model, [site], batch)[site] for batch in islice(batches(job, chunk), 2)]
    x = torch.cat(read)
    center = x.mean(0)
    decoder = torch.nn.functional.normalize(torch.randn(width, x.shape[1]), dim=1)
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
    places = torch.from_numpy(batch.flat_positions)
    return {site: x.reshape(-1, x.shape[-1])[places] for site, x in read.items()}


def run_bare(job: CollectJob, ready: list[SequenceBatch]) -> None:
    """Forward and encoding alone, batches side by side as in collecting."""
    waiting = deque(ready)
    with batch_workers(job.model.device, Event()) as (executor, n):
        for future in [executor.submit(encode_all, job, waiting) for _ in range(n)]:
            future.result()


def encode_all(job: CollectJob, waiting: deque[SequenceBatch]) -> None:
    sites = sorted({sae.site for sae in job.saes})
    pre, fires = torch.empty(_BLOCK_VALUES), torch.empty(_BLOCK_VALUES, dtype=torch.bool)
    with torch.inference_mode():
        while waiting:
            batch = waiting.popleft()
            x_t = {site: x.T for site, x in vectors(job.model, sites, batch).items()}
            n_tokens = len(batch.flat_positions)
            for sae in job.saes:
                rows = max(1, min(sae.width, _BLOCK_VALUES // n_tokens))
                for begin in range(0, sae.width, rows):
                    end = min(begin + rows, sae.width)
                    f = pre[: (end - begin) * n_tokens].view(-1, n_tokens)
                    mask = fires[: (end - begin) * n_tokens].view(-1, n_tokens)
                    bias, weights = sae.encoder_bias[begin:end, None], sae.encoder[begin:end]
                    torch.addmm(bias, weights, x_t[sae.site], out=f)
                    torch.gt(f, sae.threshold[begin:end, None], out=mask)
                    f.mul_(mask)


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


def run_collect(job: CollectJob, text: CorpusSource, max_tokens: int) -> tuple[float, int]:
    """All of collecting: seconds of it spent absorbing, and tokens."""
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
        return time.perf_counter() - collected, n_tokens


def write_collected(job: CollectJob, chunks: Iterator[TokenizedChunk], run: Path) -> int:
    # The random SAE reconstructs nothing.
    *_, part = job.collect(chunks, allow_mismatch=True, folder=run)
    assert isinstance(part, CollectedPart)
    rows = part.tables["chunks"].to_pylist()
    write_part(run / "parts", job.part_id(rows), "collect", part.tables, job.manifest(rows))
    return part.n_tokens


def make_job(kind: str, folder: Path, width: int, n_saes: int, text: CorpusSource) -> CollectJob:
    sites = [Site(LAYER[kind], site) for site in KINDS[:n_saes]]
    model = load_model(
        "toy" if kind == "toy" else save_small_model(folder / "small-gemma-2"), sites
    )
    job = CollectJob(model, [], WindowShape(), SketchSizes(), 4096)
    first = next(job.pending_chunks(cut_chunks(read_documents(text, RowCounts())), {}, None))
    saes = [make_sae(model, site, width, first, job) for site in sites]
    return CollectJob(model, saes, job.shape, job.sizes, job.max_batch_tokens)


def compare(
    kind: str, text: CorpusSource, width: int, n_saes: int, tokens: int, rounds: int
) -> None:
    job = make_job(kind, Path(text.path or "").parent, width, n_saes, text)
    documents = read_documents(text, RowCounts())
    chunks = list(job.pending_chunks(cut_chunks(documents), {}, tokens))
    ready = [batch for chunk in chunks for batch in batches(job, chunk)]
    run_bare(job, ready[:20])  # warm up
    rows = []
    for _ in range(rounds):
        _, bare, bare_cpu = clocked(lambda: run_bare(job, ready))
        (absorb, n), whole, whole_cpu = clocked(lambda: run_collect(job, text, tokens))
        rows.append((n / bare, n / whole, whole / bare, whole_cpu / bare_cpu, absorb / whole))
    bare_rate, rate, ratio, cpu_ratio, absorbing = map(statistics.median, zip(*rows, strict=True))
    ratios = [row[2] for row in rows]
    say(
        f"| {n_saes} | {width:,} | {n:,} | {bare_rate:,.0f} | {rate:,.0f} | {ratio - 1:+.1%} "
        f"| {min(ratios) - 1:+.1%} to {max(ratios) - 1:+.1%} | {cpu_ratio - 1:+.1%} "
        f"| {absorbing:.1%} |"
    )


def measure_memory(kind: str, text: CorpusSource, width: int, tokens: int) -> None:
    """In a process of its own: the peak is the process's."""
    here = [
        sys.executable,
        __file__,
        "--model",
        kind,
        "--one-memory",
        str(text.path),
        str(width),
        str(tokens),
    ]
    say(subprocess.run(here, check=True, capture_output=True, text=True).stdout.strip())


def report_memory(kind: str, text: CorpusSource, width: int, tokens: int) -> None:
    job = make_job(kind, Path(text.path or "").parent, width, 1, text)
    (_, n), seconds, _ = clocked(lambda: run_collect(job, text, tokens))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    say(f"| {width:,} | {n:,} | {peak:,.0f} MiB | {n / seconds:,.0f} |")


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", choices=list(LAYER), default="small")
    options.add_argument("--tokens", type=int, default=1_000_000)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--widths", type=int, nargs="+", default=[4096, 16384])
    options.add_argument("--saes", type=int, nargs="+", choices=(1, 2, 3), default=[1, 3])
    options.add_argument("--memory", action="store_true", help="peak memory, by tokens")
    options.add_argument("--memory-tokens", type=int, nargs="+", default=[500_000, 4_000_000])
    options.add_argument("--one-memory", nargs=3, help=argparse.SUPPRESS)
    asked = options.parse_args()
    if asked.one_memory:
        path, width, tokens = asked.one_memory
        report_memory(asked.model, CorpusSource(path=path), int(width), int(tokens))
        return
    with tempfile.TemporaryDirectory() as folder:
        report(asked, write_corpus(Path(folder)))


def report(asked: argparse.Namespace, text: CorpusSource) -> None:
    threads = torch.get_num_threads()
    say(f"{platform.machine()}, {threads} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}\n")  # fmt: skip
    if asked.memory:
        say("| features | tokens | peak memory | tokens/s |\n|---|---|---|---|")
        for width in asked.widths:
            for tokens in asked.memory_tokens:
                measure_memory(asked.model, text, width, tokens)
        return
    say(
        "| SAEs | features | tokens | bare, tokens/s | collect, tokens/s | on top | range "
        "| on top, processor time | absorbing |"
    )
    say("|---|---|---|---|---|---|---|---|---|")
    for n_saes in asked.saes:
        for width in asked.widths:
            compare(asked.model, text, width, n_saes, asked.tokens, asked.rounds)


if __name__ == "__main__":
    main()
