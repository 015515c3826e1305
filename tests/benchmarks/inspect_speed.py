"""How long inspecting a text takes once model and SAEs are loaded, beside what cannot be avoided.

    python tests/benchmarks/inspect_speed.py RUN

RUN is a finished run of the toy with its three SAEs (`scopenote demo --out RUN`). A prompt of 50
tokens is inspected at all of them with labels and lens, which the bare loop beside it only runs
through the model and encodes, densely, in the same turn. Medians of the turns are told, and the
seconds that the first one took, loading included.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from scopenote.extract.sites import Site
from scopenote.flows.inspect_text import Inspection, inspect_text
from scopenote.flows.loaded_run import LoadedRun

N_TOKENS, TURNS = 50, 41
TEXT = "The reader returns a list of names, and the class has a method that returns them. " * 9


def prompt_of(run: LoadedRun, n_tokens: int) -> str:
    """The beginning of the text that has so many tokens."""
    tokenizer = run.model.tokenizer
    for end in range(len(TEXT)):
        if len(tokenizer(TEXT[:end], add_special_tokens=False).input_ids) == n_tokens:
            return TEXT[:end]
    raise ValueError(f"no beginning of the text has {n_tokens} tokens")


@torch.inference_mode()
def run_bare(run: LoadedRun, found: Inspection) -> None:
    """One pass through the whole model, and the SAEs' dense encoders."""
    ids = torch.tensor([[run.model.tokenizer.bos_token_id, *found.prompt.token_ids.tolist()]])
    saes = [run.sae(each.sae) for each in found.saes]
    last = Site(int(run.model.config.num_hidden_layers) - 1, "res")
    vectors = run.model.read_sites(ids, [*(sae.site for sae in saes), last])
    for sae in saes:
        sae.encode(vectors[sae.site][0, 1:])


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    run = LoadedRun(parser.parse_args().run)
    began = time.perf_counter()
    first = inspect_text(run, "a text")
    say(f"the first, loading model and SAEs: {time.perf_counter() - began:.2f} s")
    text = prompt_of(run, N_TOKENS)
    inspected, busy, bare = [], [], []
    for _ in range(TURNS):
        began, spent = time.perf_counter(), time.process_time()
        found = inspect_text(run, text)
        inspected.append(time.perf_counter() - began)
        busy.append(time.process_time() - spent)
        began = time.perf_counter()
        run_bare(run, found)
        bare.append(time.perf_counter() - began)
    n_active = sum(len(token.features) for sae in found.saes for token in sae.tokens)
    say(f"{N_TOKENS} tokens, {len(first.saes)} SAEs, {n_active} active features:")
    whole, least = statistics.median(inspected), statistics.median(bare)
    say(f"inspected in {1000 * whole:.0f} ms, slowest {1000 * max(inspected):.0f}")
    say(f"processor time {1000 * statistics.median(busy):.0f} ms, of all threads")
    say(f"model and encoders alone in {1000 * least:.0f} ms: {whole / least:.1f} times as long")


if __name__ == "__main__":
    main()
