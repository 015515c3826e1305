"""`scopenote steer` as a user types it, on the toy: texts, figures, pages and what is refused."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from scopenote.extract.feature_changes import FeatureChange, changed_features
from scopenote.extract.sites import hook_site
from scopenote.extract.steering import NextToken
from scopenote.extract.steering_trial import PromptReading
from scopenote.flows.cli import main
from scopenote.flows.loaded_run import LoadedRun
from scopenote.flows.steer_page import render_steering
from scopenote.flows.steer_run import SteeredBy, SteeredText, Steering, steer
from scopenote.store.errors import UserMistake
from scopenote.store.tried_feature import read_collected_saes

from .made_up_run import MLP, RES
from .toy_runs import ATT, make_toy_run

pytestmark = pytest.mark.slow  # together they take seconds that the default run lacks

PROMPT = "def read(self"
# It fires on some tokens of the prompt.
ACTIVE = f"{RES}/527"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy_run(tmp_path_factory.mktemp("steered") / "demo")


@pytest.fixture(scope="module")
def run(folder: Path) -> LoadedRun:
    return LoadedRun(folder)


@pytest.fixture
def scopenote(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run: LoadedRun
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command; its exit status and both outputs. The model is loaded once for all."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("scopenote.flows.loaded_run.LoadedRun", lambda _: run)

    def steer_by(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["scopenote", "steer", *map(str, words)])
        with pytest.raises(SystemExit) as ending:
            main()
        output = capsys.readouterr()
        assert isinstance(ending.value.code, int)
        return ending.value.code, output.out, output.err

    return steer_by


def as_json(answer: tuple[int, str, str]) -> dict[str, Any]:
    status, output, errors = answer
    assert (status, errors) == (0, "")
    return json.loads(output)


# --- what comes of it -------------------------------------------------------------------------


def test_both_texts_stand_on_the_page_with_next_tokens_and_what_is_read_back(
    scopenote: Callable[..., tuple], folder: Path
) -> None:
    words = (folder, PROMPT, "--feature", ACTIVE, "--strength", 6, "--max-tokens", 4)
    status, page, errors = scopenote(*words)
    assert (status, errors) == (0, "")
    found = as_json(scopenote(*words, "--json"))
    assert f"{ACTIVE}  6 × its direction added" in page
    for side in (found["plain"], *found["steered"]):
        assert f"perplexity {side['perplexity']:.2f}" in page
        assert side["text"].split("\n")[0] in page
    assert found["plain"]["text"] != found["steered"][0]["text"]
    (reading,) = found["steered"][0]["readings"]
    assert f"{min(reading['after']):.2f} to {max(reading['after']):.2f}" in page
    assert page.count("“") >= 5


def test_json_says_per_token_what_was_there_before_and_after(
    scopenote: Callable[..., tuple], folder: Path, run: LoadedRun
) -> None:
    words = ("--mode", "clamp", "--strength", 20, "--json", "--max-tokens", 3)
    found = as_json(scopenote(folder, PROMPT, "--feature", ACTIVE, *words))
    assert "".join(found["prompt"]) == PROMPT
    (reading,) = found["steered"][0]["readings"]
    assert len(reading["before"]) == len(reading["after"]) == len(found["prompt"])
    with run.store() as store:
        collected = {sae.sae_id: sae for sae in read_collected_saes(store.connection)}
    sae = run.sae(collected[RES])
    ids = [2, *run.model.tokenizer(PROMPT, add_special_tokens=False).input_ids]
    seen: list[torch.Tensor] = []
    change = FeatureChange(sae, 527, "clamp", 20.0)
    with torch.inference_mode(), changed_features(run.model.network, [change]):
        handle = hook_site(run.model.network, sae.site, seen.append)
        run.model.network(input_ids=torch.tensor([ids]), use_cache=False)
        handle.remove()
    after = sae.encode(seen[0][0])[1:, 527]
    before = sae.encode(run.model.read_sites(torch.tensor([ids]), [sae.site])[sae.site][0])[1:, 527]
    assert any(reading["before"])
    assert reading["before"] == pytest.approx(before.tolist(), abs=1e-4)
    assert reading["after"] == pytest.approx(after.tolist(), abs=1e-3)


def test_a_sweep_has_a_row_for_each_strength(scopenote: Callable[..., tuple], folder: Path) -> None:
    words = (folder, PROMPT, "--feature", ACTIVE, "--sweep", "-40,0,40", "--max-tokens", 3)
    found = as_json(scopenote(*words, "--json"))
    assert [each["strength"] for each in found["steered"]] == [-40, 0, 40]
    assert found["steered"][1]["text"] == found["plain"]["text"]
    assert found["steered"][1]["perplexity"] == found["plain"]["perplexity"]
    _, page, _ = scopenote(*words)
    assert re.findall(r"^ +(without|−?\d+) ", page, re.MULTILINE) == ["without", "−40", "0", "40"]
    assert "perplexity" in page
    assert "read back" in page


def test_several_features_and_a_neuron_are_changed_at_once(
    scopenote: Callable[..., tuple], folder: Path
) -> None:
    words = ("--feature", f"{RES}/8=30", "--feature", f"{ATT}/714", "--feature", f"{MLP}/3=-4")
    words += ("--strength", "5", "--neuron", "7=2.5", "--max-tokens", 2)
    found = as_json(scopenote(folder, PROMPT, *words, "--json"))
    (text,) = found["steered"]
    assert text["strengths"] == [30, 5, -4, 2.5]
    names = [f"{RES}/8", f"{ATT}/714", f"{MLP}/3", "layer 1, neuron 7"]
    assert [each["name"] for each in found["steered_by"]] == names
    assert [each["mode"] for each in found["steered_by"]] == ["add", "add", "add", "hold"]
    assert set(text["readings"][3]["after"]) == {2.5}
    _, page, _ = scopenote(folder, PROMPT, *words)
    assert all(name in page for name in names)


def test_a_neuron_is_held_at_a_value(scopenote: Callable[..., tuple], folder: Path) -> None:
    words = ("--neuron", "7", "--layer", 0, "--value", "-160", "--json", "--max-tokens", 2)
    found = as_json(scopenote(folder, PROMPT, *words))
    assert found["steered_by"][0]["name"] == "layer 0, neuron 7"
    assert set(found["steered"][0]["readings"][0]["after"]) == {-160}


def test_ablating_needs_no_strength_and_of_a_silent_feature_changes_nothing(
    scopenote: Callable[..., tuple], folder: Path
) -> None:
    found = as_json(
        scopenote(
            folder, PROMPT, "--feature", f"{RES}/8", "--mode", "ablate", "--json", "--max-tokens", 3
        )
    )
    (text,) = found["steered"]
    assert text["readings"][0] == {"before": [0.0] * 4, "after": [0.0] * 4}
    assert {**text, "strengths": [], "readings": []} == found["plain"]


def test_the_same_seed_writes_the_same(scopenote: Callable[..., tuple], folder: Path) -> None:
    def written(seed: int) -> str:
        words = ("--feature", ACTIVE, "--strength", 9, "--seed", seed, "--json", "--max-tokens", 5)
        return as_json(scopenote(folder, PROMPT, *words))["steered"][0]["text"]

    assert written(4) == written(4) != written(5)


def test_bos_is_changed_where_that_is_asked(scopenote: Callable[..., tuple], folder: Path) -> None:
    words = (folder, PROMPT, "--feature", ACTIVE, "--strength", 60, "--max-tokens", 1)
    assert "at every token but BOS; most probable" in scopenote(*words)[1]
    assert "at every token, BOS too; drawn with seed 3" in scopenote(
        *words, "--with-bos", "--seed", 3
    )[1]  # fmt: skip


def test_a_notebook_gets_the_same_in_one_call(
    run: LoadedRun, scopenote: Callable[..., tuple], folder: Path
) -> None:
    found = steer(run, PROMPT, {"1-res-1k/527": None}, strengths=[5, 50], max_tokens=6)
    words = ("--feature", ACTIVE, "--sweep", "5,50", "--max-tokens", 6, "--json")
    assert json.loads(json.dumps(found.as_dict())) == as_json(scopenote(folder, PROMPT, *words))


# --- what is refused --------------------------------------------------------------------------

ONE = ("--feature", ACTIVE)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "not said what to steer by"),
        (ONE, "How strong is not said"),
        (("--neuron", 3), "How strong is not said"),
        ((*ONE, "--strength", "inf"), "not a number to steer by"),
        ((*ONE, "--strength", "nan"), "not a number to steer by"),
        ((*ONE, "--strength", "much"), "not a number to steer by"),
        ((*ONE, "--strength", "1e38"), "no numbers any more"),
        ((*ONE, "--strength", "-1e38", "--mode", "clamp"), "no numbers any more"),
        ((*ONE, "--strength", "1e300"), "no numbers any more"),
        (("--neuron", 3, "--value", "1e38"), "no numbers any more"),
        ((*ONE, "--sweep", "1,,2"), "not a number to steer by"),
        ((*ONE, "--sweep", "1,2", "--strength", 3), "Either one strength is tried, or several"),
        ((*ONE, "--value", 3, "--strength", 3), "`--value` belongs to `--neuron`"),
        ((*ONE, "--mode", "ablate", "--strength", 3), "ablated is set to 0"),
        (("--feature", f"{ACTIVE}=3", "--strength", 3), "strength of its own"),
        (("--feature", f"{ACTIVE}=3", "--feature", "1-res-1k/527=4"), "changed twice"),
        (("--feature", f"{ACTIVE}=3", "--feature", f"{ACTIVE}=4"), "changed twice"),
        (("--neuron", 3, "--neuron", 3, "--value", 1), "changed twice"),
        (("--feature", f"{RES}/1024=3"), "no feature of this number"),
        (("--feature", "gemma-2-2b/20-gemmascope-res-16k/8249=3"), "no such SAE in this run"),
        (("--feature", f"{RES}/x=3"), "not a feature's id"),
        (("--neuron", 128, "--value", 3), "no neuron 128"),
        (("--neuron", 3, "--value", 3, "--layer", 3), "no layer 3"),
        (("--neuron", "3+", "--value", 3), "not a neuron"),
        (("--neuron", 3, "--value", 3, "--mode", "add"), "held at a value, not added to"),
    ],
)
def test_a_mistake_is_answered_by_one_message_and_status_2(
    scopenote: Callable[..., tuple], folder: Path, words: tuple[object, ...], said: str
) -> None:
    status, output, errors = scopenote(folder, PROMPT, *words, "--max-tokens", 2)
    assert (status, output) == (2, "")
    assert errors.startswith("Error: ")
    assert said in errors
    assert "Traceback" not in errors


def test_an_sae_of_another_run_is_answered_with_those_of_this_one(
    scopenote: Callable[..., tuple], folder: Path
) -> None:
    _, _, errors = scopenote(folder, PROMPT, "--feature", "gemma-2-2b/20-gemmascope-res-16k/8249=1")
    assert all(sae in errors for sae in (RES, MLP, ATT))


@pytest.mark.parametrize(
    ("prompt", "said"), [("", "empty"), ("word " * 2100, "longer than what the model sees")]
)
def test_a_prompt_that_is_empty_or_too_long_is_refused(
    scopenote: Callable[..., tuple], folder: Path, prompt: str, said: str
) -> None:
    status, _, errors = scopenote(folder, prompt, *ONE, "--strength", 3)
    assert status == 2
    assert said in errors


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match="no run here"):
        LoadedRun(tmp_path / "nowhere")


def test_the_layer_of_a_neuron_is_asked_where_saes_are_of_several(
    tmp_path: Path, folder: Path
) -> None:
    import shutil

    import duckdb

    other = tmp_path / "other"
    shutil.copytree(folder, other)
    with duckdb.connect(str(other / "scopenote.duckdb")) as database:
        database.execute("UPDATE saes SET layer = 2 WHERE site = 'att'")
    with pytest.raises(UserMistake, match="which layer's neuron") as caught:
        steer(LoadedRun(other), PROMPT, neurons={3: 1.0})
    assert "layers 1, 2" in str(caught.value)


# --- how it looks -----------------------------------------------------------------------------


def a_text(words: str, strength: float | None = None, value: float = 5.0) -> SteeredText:
    return SteeredText(
        strength=strength,
        strengths=(value,),
        text=words,
        tokens=tuple(re.findall(r"\s?\S+|\s", words)),
        token_ids=tuple(range(len(re.findall(r"\s?\S+|\s", words)))),
        has_ended=False,
        perplexity=2.5 if words else None,
        next_tokens=(NextToken(" a", 0.5, 0.1), NextToken("  ", 0.001, 0.2)),
        readings=(PromptReading((0.0, 1.5), (4.0, 6.0)),),
    )


def steering(*steered: SteeredText, **differing: Any) -> Steering:
    by = SteeredBy("m/20-gemmascope-res-16k/8249", "add", "expressions of doubt", 87.25)
    found = Steering(("The", " end"), None, False, (by,), a_text("plain words"), steered)
    return replace(found, **differing)


def printed(found: Steering, width: int = 80) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width, color_system=None, highlight=False)
    console.print(render_steering(found))
    return stream.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_page_keeps_to_the_terminal(width: int) -> None:
    long = a_text("a rather long text that goes on and on " * 9)
    for found in (steering(long), steering(long, replace(long, strength=7.0, strengths=(7.0,)))):
        lines = printed(found, width).splitlines()
        assert max(len(line.rstrip()) for line in lines) <= width


def test_texts_stand_side_by_side_where_there_is_room() -> None:
    found = steering(a_text("steered words"))
    wide, narrow = (printed(found, width).splitlines() for width in (120, 80))
    assert any("plain words" in line and "steered words" in line for line in wide)
    assert not any("plain words" in line and "steered words" in line for line in narrow)
    assert any("steered words" in line for line in narrow)


def test_the_label_the_peak_and_what_is_done_are_said_first() -> None:
    first, second = printed(steering(a_text("x", value=100.0))).splitlines()[:2]
    expected = "m/20-gemmascope-res-16k/8249  100 × its direction added; peak in the run 87.25"
    assert first.rstrip() == expected
    assert second.strip() == "expressions of doubt"


def test_what_was_not_written_and_what_cannot_be_seen_is_said_in_words() -> None:
    assert "nothing: the model ended at once" in printed(steering(a_text("")))
    assert "12 spaces" in printed(steering(a_text(" " * 12)))
    assert "perplexity –" in printed(steering(a_text("")))


def test_text_of_the_model_cannot_steer_the_terminal() -> None:
    hostile = a_text("\x1b[31mred\u202e [bold]x[/bold]\nnext")
    by = SteeredBy("m/s/1", "clamp", "\x1b[2J", None)
    page = printed(steering(hostile, steered_by=(by,), prompt=("\x1b[0m", "a")))
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "[bold]x[/bold]⏎" in page


def test_a_transcoder_is_said_to_read_nothing_back() -> None:
    one = replace(a_text("x"), readings=(PromptReading((0.0, 1.0), None),))
    assert "not read" in printed(steering(one))
    for found in (steering(one), steering(one, replace(one, strength=2.0))):
        assert "reads another tensor than it changes" in " ".join(printed(found).split())
