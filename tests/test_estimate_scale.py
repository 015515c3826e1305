"""Estimates on paper: the arithmetic by hand, what changes it, and the README's table."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from scopenote.extract.gemma_shapes import published_shape
from scopenote.extract.memory_needs import count_parameters
from scopenote.flows import cli
from scopenote.flows.config import Config, load_config
from scopenote.flows.estimate_asking import OPINIONS, RATED
from scopenote.flows.estimate_disk import DATABASE, PART
from scopenote.flows.estimate_scale import Machines, PaperEstimate, estimate_at_scale
from scopenote.flows.paper_saes import paper_saes
from scopenote.flows.paper_words import bytes_said, hours_said, rounded
from scopenote.label.pricing import in_dollars
from scopenote.store.errors import ModelError, SaeError, UserMistake
from typer.testing import CliRunner

from .test_readme import README, blocks, section

ONE = "gemma-2-2b/20-gemmascope-res-16k"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The README's paper.toml."""
    file = tmp_path / "paper.toml"
    (text,) = [block for block in blocks("toml") if "# paper.toml" in block]
    file.write_text(text)
    return file


@pytest.fixture
def config(file: Path) -> Config:
    return load_config(file)


def changed(config: Config, section: str, **values: Any) -> Config:
    part = getattr(config, section)
    return config.model_copy(
        update={section: part.model_validate({**part.model_dump(exclude_unset=True), **values})}
    )


def estimate(
    config: Config, *patterns: str, tokens: int | None = None, **machines: Any
) -> PaperEstimate:
    return estimate_at_scale(config, paper_saes(config, patterns), tokens, Machines(**machines))


# --- the arithmetic ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "billions"), [("gemma-2-2b", 2.61), ("gemma-2-9b", 9.24), ("gemma-2-27b", 27.2)]
)
def test_the_shapes_give_the_models_published_sizes(model: str, billions: float) -> None:
    shape = published_shape(model)
    assert shape is not None
    n = count_parameters(shape, shape.num_hidden_layers)
    assert n / 1e9 == pytest.approx(billions, rel=0.005)


def test_hours_for_one_sae_are_those_by_hand(config: Config) -> None:
    found = estimate(config, tokens=10_000_000)
    # Queries and output, keys and values, the MLP and four norms, in 21 layers.
    layer = 2 * 2304 * 2048 + 2 * 2304 * 1024 + 3 * 2304 * 9216 + 4 * 2304
    forward = 21 * (2 * layer + 4 * 512 * 2048)
    seconds = forward / (0.3 * 989e12) + 2 * 2304 * 16_384 / (0.3 * 67e12)
    assert found.amount("GPU time, text") == pytest.approx(10_000_000 * seconds / 3600, rel=1e-6)
    described = 2 * 2304 * 16_384 * (256_000 + 16_384) / (0.3 * 67e12) / 3600
    assert found.amount("GPU time, output tokens and neighbours") == pytest.approx(described)
    assert found.amount("passes over the text") == 1


def test_bytes_for_one_sae_are_those_by_hand(config: Config) -> None:
    found = estimate(config, tokens=10_000_000)
    # 25 + 14 + 25 top windows and 25 + 37 + 75 sampled ones, with what sketches keep in reserve.
    part = 16_384 * (201 * PART.kept + PART.feature) + 156_250 * PART.window
    part += (1280 + 1280 + 5120) * 64 * 71 * PART.firing
    assert found.amount("merged part") == pytest.approx(part)
    database = 16_384 * (160 * DATABASE.kept + DATABASE.feature) + 156_250 * DATABASE.window
    database += (1024 + 1024 + 4096) * 64 * 71 * DATABASE.firing
    assert found.amount("database") == pytest.approx(database)


def test_calls_and_dollars_for_one_sae_are_those_by_hand(config: Config) -> None:
    writing, rating = estimate(config, tokens=10_000_000).asked
    assert (writing.n_calls, rating.n_calls) == (16_384, 16_384 * 6)
    usd = rating.prompt_tokens * Decimal("0.15") + rating.completion_tokens * Decimal("0.6")
    assert rating.usd == usd / 10**6
    assert rating.prompt_tokens == 16_384 * 23_530
    # Batches cost half, and how long they take is the provider's affair.
    assert writing.hours is None
    whole = writing.prompt_tokens * Decimal("0.15") + writing.completion_tokens * Decimal("0.6")
    assert writing.usd == whole / 10**6 / 2
    assert rating.hours == pytest.approx(16_384 * 6 * 2 / 32 / 3600)


def test_all_of_gemma_scope_is_the_sum_of_its_models(config: Config) -> None:
    whole = estimate(config, "gemma-scope-*/**")
    parts = [
        estimate(config, f"gemma-scope-{name}-*/**") for name in ("2b-pt", "9b-pt", "9b-it", "27b")
    ]
    for name in ("SAEs", "features", "passes over the text", "GPU time, text", "merged part"):
        assert whole.amount(name) == pytest.approx(sum(part.amount(name) or 0 for part in parts))
    assert (whole.amount("SAEs"), whole.amount("features")) == (2430, 194_772_992)
    assert whole.usd is not None
    assert float(whole.usd) == pytest.approx(sum(float(part.usd or 0) for part in parts), rel=1e-6)


# --- what changes it --------------------------------------------------------------------------


def test_twice_the_text_takes_twice_the_time_and_machines_share_it(config: Config) -> None:
    once, twice = (estimate(config, tokens=n) for n in (10**7, 2 * 10**7))
    assert twice.amount("GPU time, text") == pytest.approx(2 * once.amount("GPU time, text"))
    shared = estimate(config, tokens=10**7, n=4)
    assert shared.amount("GPU time, text") == once.amount("GPU time, text")
    assert shared.amount("collecting") == pytest.approx(once.amount("collecting") / 4)


def test_a_measured_rate_takes_the_place_of_the_assumed_one(config: Config) -> None:
    found = estimate(config, "gemma-scope-2b-pt-res/**", tokens=10**7, tokens_per_second=5000)
    passes = found.amount("passes over the text")
    assert passes > 1
    assert found.amount("GPU time, text") == pytest.approx(passes * 10**7 / 5000 / 3600)
    line = next(line for line in found.lines if line.name == "GPU time, text")
    assert "as given" in line.basis and "assumed" not in line.basis


def test_less_memory_takes_more_passes(config: Config) -> None:
    many = "gemma-scope-2b-pt-res/**"
    roomy, small, little = (
        estimate(config, many),
        estimate(config, many, gpu_gib=24),
        estimate(changed(config, "collect", memory_gib=64), many),
    )
    passes = [each.amount("passes over the text") for each in (roomy, small, little)]
    assert passes[0] < passes[1] and passes[0] < passes[2]
    assert small.amount("GPU time, text") > roomy.amount("GPU time, text")


def test_the_tightest_limit_of_the_endpoint_decides_the_time(config: Config) -> None:
    def rated(**chat: Any) -> Any:
        score = {"simulators": ["chat_sparse"], "chat": {"model": "gpt-4o-mini", **chat}}
        return estimate(changed(config, "score", **score)).asked[-1]

    n_calls = 16_384 * 6
    assert rated(concurrency=1).hours == pytest.approx(n_calls * 2 / 3600)
    slow = rated(concurrency=64, requests_per_minute=100)
    assert slow.hours == pytest.approx(n_calls / 100 / 60)
    assert "100 requests a minute" in slow.basis
    tokens = rated(concurrency=64, tokens_per_minute=10_000)
    assert tokens.hours == pytest.approx(16_384 * (23_530 + 480) / 10_000 / 60)


def test_candidates_are_rated_each_and_the_best_again(config: Config) -> None:
    one = estimate(config)
    three = estimate(changed(config, "explain", candidates=3))
    assert three.asked[0].n_calls == 3 * one.asked[0].n_calls
    assert three.asked[1].n_calls == 4 * one.asked[1].n_calls


def test_fewer_windows_cost_less(config: Config) -> None:
    chat = {"model": "gpt-4o-mini", "active_windows": 10, "silent_windows": 20}
    few = estimate(changed(config, "score", simulators=["chat_sparse"], chat=chat))
    ratio = few.asked[1].prompt_tokens / estimate(config).asked[1].prompt_tokens
    assert ratio == pytest.approx(35 / 95, rel=1e-3)


def test_a_price_that_is_not_known_is_not_zero(config: Config) -> None:
    found = estimate(changed(config, "explain", chat={"model": "some-model"}))
    assert found.asked[0].usd is None
    assert found.usd is None


def test_without_a_model_nothing_is_asked(config: Config) -> None:
    found = estimate(changed(config, "explain", explainers=["token_lookup"]))
    assert found.asked == ()
    assert found.usd == 0


# --- what is not known ------------------------------------------------------------------------


def test_neurons_and_the_toy_are_known_without_a_download(config: Config) -> None:
    neurons = estimate(changed(config, "saes", paths=["20-mlp-neurons"]))
    assert neurons.amount("features") == 2 * 2304
    toy = changed(changed(config, "model", name="toy"), "saes", paths=[])
    assert estimate(toy).amount("features") == 3072


def test_what_is_not_known_is_said(config: Config) -> None:
    for path in ("somebody/some-saes/layer_3", "./nowhere"):
        with pytest.raises(SaeError, match="Nothing is known on paper"):
            estimate(changed(config, "saes", paths=[path]))
    with pytest.raises(ModelError, match="Nothing is known on paper"):
        estimate(changed(config, "model", name="somebody/some-model"))
    with pytest.raises(UserMistake, match="--tokens"):
        estimate(changed(config, "corpus", max_tokens=None))


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, "0"),
        (0.0421, "0.0421"),
        (12.34, "12.3"),
        (1234.5, "1,234"),
        (194_772_992, "194,772,992"),
        (2.92e10, "29.2 billion"),
        (4.58e12, "4.58 trillion"),
    ],
)
def test_numbers_are_written_as_they_are_read(number: float, said: str) -> None:
    assert rounded(number) == said


def test_bytes_and_hours_are_in_the_unit_of_which_there_is_one() -> None:
    assert [bytes_said(n) for n in (12, 1500, 2e9, 3.5e15)] == [
        "12 bytes",
        "1.5 kB",
        "2 GB",
        "3.5 PB",
    ]
    assert [hours_said(h) for h in (20_000, 1.5, 0.05, 0.001)] == [
        "20,000 h",
        "1.5 h",
        "3 min",
        "3.6 s",
    ]


# --- the command and the README ---------------------------------------------------------------


def ask(*words: str) -> Any:
    ended = CliRunner().invoke(cli.app, ["estimate", *words])
    assert ended.exit_code == 0, ended.output
    return ended.stdout


def test_where_nothing_is_collected_the_command_estimates_on_paper(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    assert "On paper, for 10,000,000 tokens" in ask("paper.toml")
    found = json.loads(ask("paper.toml", "--json", "--tokens", "1000", "--machines", "2"))
    assert found["tokens"] == 1000
    assert {"name", "amount", "unit", "basis"} == set(found["lines"][0])
    assert all(line["basis"] for line in found["lines"] + found["asked"])
    assert not (file.parent / "paper").exists()


def test_the_readmes_table_is_what_its_commands_give(config: Config) -> None:
    text = section("All of Gemma Scope, on paper")
    rows = re.findall(r"^\| ([^|]+) \| `([^`]*)` \| (.+) \|$", text, re.MULTILINE)
    assert len(rows) == 4
    for _, options, figures in rows:
        patterns = re.findall(r"--saes '([^']+)'", options)
        assert figures == " | ".join(figures_of(estimate(config, *patterns)))


def figures_of(found: PaperEstimate) -> list[str]:
    said = {line.name: line.said for line in found.lines}
    writing, rating = found.asked
    assert writing.usd is not None and rating.usd is not None
    names = ("SAEs", "features", "passes over the text", "collecting", "merged part", "database")
    return [
        *(said[name] for name in names),
        rounded(writing.n_calls + rating.n_calls),
        in_dollars(writing.usd),
        in_dollars(rating.usd),
        hours_said(rating.hours or 0),
    ]


def test_the_measured_costs_are_those_of_the_readme() -> None:
    measured = {**RATED, **OPINIONS}
    found = {}
    for name, calls, read, written in re.findall(
        r"^\| `?(\w+)`?[^|]* \| ([\d.]+) \| ([\d,]+) \| ([\d,]+) \| \$", README, re.MULTILINE
    ):
        found[name] = (float(calls), *(int(n.replace(",", "")) for n in (read, written)))
    for name, each in measured.items():
        assert found[name] == (each.calls, each.read, each.written)
