"""What scoring labels costs by method: dollars a feature, from the ledger of a whole run.

A scripted server on loopback writes the labels and rates windows by them; what it charges for is
counted by splitting texts as gpt-4o's tokenizer does before it merges (no fewer tokens than that
can come of a text, and of lines of numbers and short words hardly more). So calls, windows, and
dollars for such tokens are as they would be on a paid endpoint; replies are those of the script.
The run reads this Python's library through the toy, with windows of 64 tokens.

    python tests/benchmarks/scoring_cost.py [--features 1000] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from decimal import Decimal
from importlib.resources import files
from pathlib import Path

from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.asking_runs import command, rows
from tests.fake_openai import Answer, Asked, FakeOpenAI, serve
from tests.rating_runs import write_and_rate

MODEL = "gpt-4o-mini"
# What o200k splits a text at; merging within the pieces is left out.
PIECES = Split(
    Regex(
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "isolated",
)
# Around each message.
MARKS = 4
SAE = next((Path(str(files("scopenote.extract.toy").joinpath("saes"))) / "res").rglob("params.npz"))
OPINIONS = ("detection", "fuzzing", "discrimination")
METHODS = {
    "simulate": "`chat`, a call a window",
    "simulate_sparse": "`chat_sparse`, sixteen windows a call",
    "detection": "detection",
    "fuzzing": "fuzzing",
    "discrimination": "discrimination",
    "gold": "gold items, in all",
    "explain": "writing the label, for comparison",
}


def n_tokens(text: str) -> int:
    """About how many tokens a text is."""
    return len(PIECES.pre_tokenize_str(text))


def charge(asked: Asked) -> Answer:
    """The scripted answer, charged for by its text and without log probabilities."""
    answer = write_and_rate(asked)
    body = json.loads(answer.body)
    message = body["choices"][0]["message"]
    if message["content"].startswith("{"):
        # A label of its own for each feature: what is asked twice in the same words is sent once.
        content = json.loads(message["content"])
        content["label"] += f" as in {asked.conversation[:6]}"
        message["content"] = json.dumps(content)
    body["choices"][0].pop("logprobs", None)
    prompt = sum(MARKS + n_tokens(each["content"]) for each in asked.body["messages"])
    written = n_tokens(message["content"])
    body["usage"] = {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    usage = {"prompt": prompt, "cached": 0, "written": written}
    return replace(answer, body=json.dumps(body).encode(), usage=usage)


def configuration(fake: FakeOpenAI, features: int) -> str:
    """Of a run on the toy that is scored in every way."""
    return f"""
        [model]
        name = "toy"
        [saes]
        paths = [{json.dumps(str(SAE))}]
        [corpus]
        standard_library = true
        max_tokens = 400_000
        [explain]
        explainers = ["max_activations"]
        features = {features}
        [explain.chat]
        model = "{MODEL}"
        base_url = "{fake.base_url}"
        concurrency = 64
        [score]
        simulators = ["chat", "chat_sparse"]
        [score.chat]
        model = "{MODEL}"
        base_url = "{fake.base_url}"
        concurrency = 64
        second_opinions = {json.dumps(OPINIONS)}
        shuffled_labels = 0
    """


def main() -> None:
    """Writes the table, as the README has it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", type=int, default=1000, help="labels that are scored")
    parser.add_argument("--keep", type=Path, help="a folder for the run; by default it is removed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        with serve(charge, keeps_requests=False) as fake:
            config = folder / "cost.toml"
            config.write_text(configuration(fake, arguments.features))
            os.environ["OPENAI_API_KEY"] = "sk-none"
            for words in (
                ("collect", folder / "run", "--config", config),
                ("explain", folder / "run"),
                ("score", folder / "run"),
            ):
                began = time.monotonic()
                finished = command(*words, timeout=None)
                assert finished.returncode in (0, 3), finished.stderr
                sys.stderr.write(f"{words[0]}: {time.monotonic() - began:.0f} s\n")
            print_table(folder / "run", fake)


def print_table(run: Path, fake: FakeOpenAI) -> None:
    """A row a method."""
    ((n_labels,),) = rows(run, "SELECT count(*) FROM labels WHERE status = 'done'")
    spent = rows(
        run,
        "SELECT purpose, count(*), sum(prompt_tokens), sum(completion_tokens), sum(usd) "
        "FROM calls GROUP BY purpose",
    )
    by_purpose = {purpose: figures for purpose, *figures in spent}
    total = sum((figures[3] for figures in by_purpose.values()), Decimal(0))
    assert sum(figures[1] for figures in by_purpose.values()) == fake.tokens["prompt"]
    sys.stdout.write(
        "| method | calls a feature | tokens read | written | dollars a feature "
        "| 1,000 features |\n|---|---|---|---|---|---|\n"
    )
    for purpose, what in METHODS.items():
        if purpose not in by_purpose:
            continue
        n_calls, read, written, usd = by_purpose[purpose]
        each = 1 if purpose == "gold" else n_labels
        thousand = usd if purpose == "gold" else 1000 * usd / n_labels
        sys.stdout.write(
            f"| {what} | {n_calls / each:,.1f} | {read / each:,.0f} | {written / each:,.0f} "
            f"| {'' if purpose == 'gold' else f'${usd / n_labels:.5f}'} | ${thousand:,.2f} |\n"
        )
    sys.stderr.write(f"{n_labels:,} labels, ${total:.2f} in the ledger\n")


if __name__ == "__main__":
    main()
