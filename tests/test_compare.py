"""`scopenote compare`, as a user runs it."""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import duckdb
import numpy as np
import pytest
from scopenote.evaluate.intervals import draw_resamples
from scopenote.evaluate.score_change import change_of_pairs
from scopenote.flows.cli import main
from scopenote.store.inbox import WrittenLabel, write_to_inbox
from scopenote.store.schema import MIGRATIONS

from .asking_runs import KEY, command
from .fake_openai import serve
from .made_up_sides import BEGAN, JUDGE, OTHER_JUDGE, SAE, made_up_run
from .rating_runs import SIMULATOR, runs_that_rate, write_and_rate

pytestmark = pytest.mark.slow  # together they take seconds that the default run lacks

DONE, MISTAKE = 0, 2
N = 40
Compare = Callable[..., tuple[int, str, str]]


@pytest.fixture
def compare(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Compare:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["scopenote", "compare", *map(str, words)])
        with pytest.raises(SystemExit) as ending:
            main()
        output = capsys.readouterr()
        assert isinstance(ending.value.code, int)
        return ending.value.code, output.out, output.err

    return run


def two_explainers(folder: Path, gain: float = 0.1) -> dict[int, tuple[float, float]]:
    """A run in which the second explainer is better by so much; what each scores."""
    made, planted = _two_explainers(gain)
    shutil.copytree(Path(made.name) / "run", folder)
    return planted


@cache
def _two_explainers(
    gain: float,
) -> tuple[tempfile.TemporaryDirectory[str], dict[int, tuple[float, float]]]:
    """Made once and copied: most tests want one. The folder lasts as long as what is returned."""
    made = tempfile.TemporaryDirectory()
    folder = Path(made.name) / "run"
    draw = random.Random(0)
    planted = {}
    with made_up_run(folder, N) as run:
        for feature in range(N):
            one = draw.uniform(0, 0.7)
            two = one + gain + draw.uniform(-0.05, 0.05)
            planted[feature] = (one, two)
            for explainer, value in (("highlighted", one), ("with_logits", two)):
                name = f"{explainer[0]}{feature}"
                label_id = run.label(feature, explainer, request_hash=name)
                run.score(label_id, value, lift=value - 0.2, lift_ci_low=value - 0.25,
                          lift_ci_high=value - 0.15)  # fmt: skip
                run.score(label_id, value + 0.01, "select")
                run.call(name, "0.001")
            lookup = run.label(feature, "token_lookup")
            run.score(lookup, 0.2, simulator="token_lookup")
    return made, planted


def found_by(compare: Compare, *words: object) -> Any:
    status, output, errors = compare(*words, "--json")
    assert (status, errors) == (DONE, "")
    return json.loads(output)


def test_a_planted_difference_is_found_with_its_interval(compare: Compare) -> None:
    planted = two_explainers(Path("run"))
    found = found_by(compare, "run", "--by", "explainer")
    assert [(it["figure"]["split"], it["base"], it["other"]) for it in found["compared"]] == [
        (split, "highlighted", "with_logits") for split in ("select", "score")
    ]
    one, two = np.array([*planted.values()]).T
    (row,) = found["compared"][1]["rows"]
    expected = change_of_pairs(one, two, draw_resamples(0))
    assert expected is not None
    assert row["among"] == "same windows"
    assert row["difference"]["mean"] == pytest.approx(
        {name: getattr(expected, name) for name in ("value", "low", "high", "n")}
    )
    assert row["difference"]["mean"]["low"] > 0.08
    assert row["difference"]["n_better"] == N
    assert row["difference"]["n_clearly_better"] == sum(
        b - a > 0.05 * 2**0.5 for a, b in planted.values()
    )
    costs = {it["title"]: it["usd_per_label"] for it in found["sides"]}
    assert float(costs["highlighted"]) == float(costs["with_logits"]) == 0.001
    assert costs["token_lookup"] is None


def test_the_base_is_subtracted(compare: Compare) -> None:
    two_explainers(Path("run"))
    for base, sign in (("highlighted", 1), ("with_logits", -1)):
        found = found_by(compare, "run", "--by", "explainer", "--base", base)
        assert found["sides"][0]["title"] == base
        for each in found["compared"]:
            assert np.sign(each["rows"][0]["difference"]["mean"]["value"]) == sign


def test_the_token_lookup_stands_beside_each(compare: Compare) -> None:
    planted = two_explainers(Path("run"))
    found = found_by(compare, "run", "--by", "explainer")
    means = {it["side"]: it["difference"]["mean"]["value"] for it in found["lookups"]}
    assert means == {
        "highlighted": pytest.approx(np.mean([a - 0.2 for a, _ in planted.values()])),
        "with_logits": pytest.approx(np.mean([b - 0.2 for _, b in planted.values()])),
    }


def test_the_page_fits_and_says_what_is_to_be_known(compare: Compare) -> None:
    two_explainers(Path("run"))
    status, page, errors = compare("run", "--by", "explainer", "--n", 2)
    assert (status, errors) == (DONE, "")
    assert max(map(len, page.splitlines())) <= 80
    for words in (
        "with_logits against highlighted  judged by chat/judge",
        "$0.0010",
        "Better by with_logits",
        "Against the token lookup",
        "choose by select and report score",
    ):
        assert words in page
    assert page.count("highlighted on ") == 2
    assert "Worse by" not in page


def test_features_that_one_side_lacks_are_counted_with_what_the_other_scores(
    compare: Compare,
) -> None:
    with made_up_run(Path("run")) as run:
        for feature in range(10):
            run.score(run.label(feature), 0.5 if feature < 6 else 0.2)
        for feature in range(6):
            run.score(run.label(feature, "with_logits"), 0.6)
        run.score(run.label(6, "with_logits"), None)
        run.label(7, "with_logits", status="failed", reason="the reply was cut off")
        run.label(8, "with_logits")
        run.label(10)
        run.score(run.label(11, "with_logits"), None)
    found = found_by(compare, "run", "--by", "explainer")["compared"][0]
    missing = {it["reason"]: (it["n"], it["mean"]) for it in found["missing_other"]}
    assert missing == {
        "undefined: too few active tokens": (1, 0.2),
        "no label: the reply was cut off": (1, 0.2),
        "not scored": (1, 0.2),
        "no label was asked for": (1, 0.2),
    }
    assert found["missing_base"] == []
    assert found["n_neither"] == 2
    page = compare("run", "--by", "explainer")[1]
    assert "1 scored by highlighted alone (0.200 on average)" in page


def test_pairs_on_other_windows_are_not_mixed_with_the_rest(compare: Compare) -> None:
    with made_up_run(Path("run")) as run:
        for feature in range(12):
            run.score(run.label(feature), 0.5)
            more = {} if feature < 8 else {"contexts_hash": "others"}
            run.score(run.label(feature, "with_logits"), 0.6 if feature < 8 else 0.9, **more)
    found = found_by(compare, "run", "--by", "explainer")["compared"][0]
    values = {it["among"]: it["difference"]["mean"] for it in found["rows"]}
    assert (values["same windows"]["n"], values["all"]["n"]) == (8, 12)
    assert values["same windows"]["value"] == pytest.approx(0.1)
    assert values["all"]["value"] == pytest.approx(0.2)
    assert found["other_windows"] == {"other settings, or other text": 4}
    assert not found["up"][0]["is_same"]
    assert "on different windows" in compare("run", "--by", "explainer")[1]


def test_scores_by_different_judges_are_never_compared(compare: Compare) -> None:
    with made_up_run(Path("run")) as run:
        for feature in range(6):
            run.score(run.label(feature), 0.5)
            run.score(run.label(feature, "with_logits"), 0.6, simulator=OTHER_JUDGE)
    status, output, errors = compare("run", "--by", "explainer")
    assert (status, output) == (MISTAKE, "")
    assert "under one simulator" in errors
    assert f"with_logits: 6 by {OTHER_JUDGE}" in errors


def test_with_several_sides_all_intervals_hold_together(compare: Compare) -> None:
    draw = random.Random(1)
    with made_up_run(Path("run"), N) as run:
        for feature in range(N):
            for explainer in ("highlighted", "with_logits", "max_activations"):
                run.score(run.label(feature, explainer), draw.random())
            if feature:
                run.score(run.label(feature, "output"), draw.random())
    found = found_by(compare, "run", "--by", "explainer", "--base", "output")["compared"]
    assert [it["other"] for it in found] == ["highlighted", "max_activations", "with_logits"]
    assert {it["n_comparisons"] for it in found} == {3}
    assert found[0]["level"] == pytest.approx(1 - 0.05 / 3)
    assert "98.3%" in compare("run", "--by", "explainer")[1]


def test_what_else_sides_differ_in_is_said(compare: Compare) -> None:
    with made_up_run(Path("run")) as run:
        for feature in range(6):
            run.score(run.label(feature, model="small"), 0.5)
            run.score(run.label(feature, "with_logits", model="large"), 0.6)
    found = found_by(compare, "run", "--by", "explainer")
    assert found["notes"] == [
        "the sides differ in models too (highlighted: small; with_logits: large)"
    ]


@pytest.mark.parametrize("by", ["model", "prompt_version", "source", "author"])
def test_sides_are_told_apart_by_other_things_too(compare: Compare, by: str) -> None:
    with made_up_run(Path("run")) as run:
        for feature in range(6):
            run.score(run.label(feature, **{by: "one"}), 0.5)
            run.score(run.label(feature, **{by: "two"}), 0.6)
    found = found_by(compare, "run", "--by", by)
    titles = [it["title"].removeprefix("highlighted ") for it in found["sides"]]
    assert sorted(titles) == ["one", "two"]
    assert abs(found["compared"][0]["rows"][0]["difference"]["mean"]["value"]) == pytest.approx(0.1)


def test_another_metric_can_be_compared(compare: Compare) -> None:
    with made_up_run(Path("run")) as run:
        for feature in range(6):
            for explainer, value in (("highlighted", 0.5), ("with_logits", 0.7)):
                more = {"scorer": "detection", "metric": "auroc_random"}
                run.score(run.label(feature, explainer), value, **more)
    found = found_by(compare, "run", "--by", "explainer", "--metric", "detection/auroc_random")
    (row,) = found["compared"][0]["rows"]
    assert abs(row["difference"]["mean"]["value"]) == pytest.approx(0.2)
    status, _, errors = compare("run", "--by", "explainer")
    assert status == MISTAKE
    assert "expected: detection/auroc_random" in errors


def test_hostile_labels_do_no_harm_on_the_page(compare: Compare) -> None:
    with made_up_run(Path("run")) as run:
        for feature in range(6):
            run.score(run.label(feature, text="\x1b[31m[red]\u202e"), 0.5)
            run.score(run.label(feature, "with_logits", text="\n" * 9), 0.9)
    _, page, _ = compare("run", "--by", "explainer")
    assert "␛[31m[red]⟨202E⟩" in page
    assert "\x1b" not in page


def test_the_mean_of_candidates_is_shown_as_one(compare: Compare) -> None:
    with made_up_run(Path("run")) as run:
        for feature in range(6):
            for value in (0.2, 0.4):
                run.score(run.label(feature), value, "select")
            run.score(run.label(feature, "with_logits"), 0.6, "select")
    found = found_by(compare, "run", "--by", "explainer")["compared"][0]
    assert found["rows"][0]["difference"]["mean"]["value"] == pytest.approx(0.3)
    assert found["up"][0]["base"]["n_candidates"] == 2
    assert "0.30  mean of 2" in compare("run", "--by", "explainer")[1]


def test_a_database_of_an_older_version_alone_is_refused(compare: Compare) -> None:
    two_explainers(Path("run"))
    Path("old").mkdir()
    with duckdb.connect("old/scopenote.duckdb") as old:
        for migration in MIGRATIONS[:8]:
            old.execute(migration.sql)
        old.execute("INSERT INTO meta VALUES ('schema_version', '8')")
    for words in (("old", "--by", "explainer"), ("run", "old")):
        status, output, errors = compare(*words)
        assert (status, output) == (1, "")
        assert "An older version of Scopenote published this run" in errors


# --- two runs -----------------------------------------------------------------------------------


def two_runs(content_hash: str = "h", sae_id: str = SAE) -> None:
    """The second has other labels for half of the features, better by 0.2."""
    draw = random.Random(2)
    values = [draw.uniform(0, 0.7) for _ in range(N)]
    with made_up_run(Path("one"), N) as run:
        for feature, value in enumerate(values[:-2]):
            run.score(run.label(feature), value)
    with made_up_run(Path("two"), N, sae_id, content_hash) as run:
        for feature, value in enumerate(values):
            is_other = feature % 2 == 1
            more = {"text": "another"} if is_other else {"text": f"HIGHLIGHTED  on {feature}"}
            label_id = run.label(feature, sae_id=sae_id, **more)
            run.score(label_id, value + 0.2 * is_other)


def test_two_runs_are_compared_by_their_labels_in_force(compare: Compare) -> None:
    two_runs()
    found = found_by(compare, "one", "two")
    assert [it["title"] for it in found["sides"]] == ["one", "two"]
    (compared,) = found["compared"]
    values = {it["among"]: it["difference"]["mean"] for it in compared["rows"]}
    assert values["same windows"]["value"] == pytest.approx(0.1)
    assert values["same text"]["value"] == pytest.approx(0.0)
    assert values["other text"]["value"] == pytest.approx(0.2)
    assert found["texts"] == {"n_same": 19, "n_other": 19, "n_new": 2, "n_gone": 0}
    assert [it["n"] for it in compared["missing_base"]] == [2]
    page = compare("one", "two")[1]
    assert "19 say the same in both, 19 say something else, 2 only in two" in page
    assert max(map(len, page.splitlines())) <= 80


def test_a_run_against_itself_differs_by_nothing(compare: Compare) -> None:
    two_runs()
    found = found_by(compare, "one", "./one")
    (row,) = found["compared"][0]["rows"]
    assert row["difference"]["mean"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": N - 2}
    assert row["difference"]["n_equal"] == N - 2
    assert (found["compared"][0]["up"], found["compared"][0]["down"]) == ([], [])
    assert [it["title"] for it in found["sides"]] == ["one", "one again"]


def test_a_label_in_the_inbox_of_a_run_is_seen(compare: Compare) -> None:
    two_runs()
    written = WrittenLabel(
        label_id="ann", sae_id=SAE, feature=0, text="by hand", explanation=None, explainer="human",
        prompt_version="1", draw=0, source="human", author="ann", status="done", reason=None,
        created_at=BEGAN,
    )  # fmt: skip
    write_to_inbox(Path("two/inbox"), [written])
    found = found_by(compare, "one", "two")
    assert (found["texts"]["n_same"], found["texts"]["n_other"]) == (18, 20)
    (missing,) = found["compared"][0]["missing_other"]
    assert (missing["reason"], missing["n"]) == ("not scored", 1)
    assert not list(Path("one").glob("inbox/*"))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"content_hash": "another"}, "of the same names and with other tensors"),
        ({"sae_id": "toy-gemma-2/1-mlp-1k"}, "no SAE in common"),
    ],
)
def test_runs_with_nothing_in_common_are_refused(
    compare: Compare, more: dict[str, str], words: str
) -> None:
    two_runs(**more)
    status, output, errors = compare("one", "two")
    assert (status, output) == (MISTAKE, "")
    assert words in errors


def test_runs_that_no_judge_shares_are_refused(compare: Compare) -> None:
    for name, simulator in (("one", JUDGE), ("two", OTHER_JUDGE)):
        with made_up_run(Path(name)) as run:
            run.score(run.label(0), 0.5, simulator=simulator)
    status, _, errors = compare("one", "two")
    assert status == MISTAKE
    assert f"one: {JUDGE}; two: {OTHER_JUDGE}" in errors


def test_runs_that_scored_different_features_are_refused(compare: Compare) -> None:
    for name, feature in (("one", 0), ("two", 1)):
        with made_up_run(Path(name)) as run:
            run.score(run.label(feature), 0.5)
    status, _, errors = compare("one", "two")
    assert status == MISTAKE
    assert "No feature has a score in both runs" in errors


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("run",), "found: neither"),
        (("run", "run", "--by", "model"), "found: both"),
        (("run", "--by", "simulator"), "'explainer', 'model'"),
        (
            ("run", "--by", "explainer", "--base", "nobody"),
            "highlighted, token_lookup, with_logits",
        ),
        (("run", "--by", "source"), "All labels are by the same source"),
        (("run", "--by", "explainer", "--metric", "frob"), "expected: correlation"),
        (("nothing", "--by", "explainer"), "no run here"),
        (("run", "nothing"), "no run here"),
        (("unscored", "--by", "explainer"), "no label has a score"),
        (("unlabelled", "--by", "explainer"), "no label has a score"),
        (("unlabelled", "run"), "No simulator has scored labels of both"),
    ],
)
def test_what_cannot_be_compared_is_the_users_mistake(
    compare: Compare, words: tuple[str, ...], expected: str
) -> None:
    two_explainers(Path("run"))
    with made_up_run(Path("unscored"), N) as run:
        run.label(0)
    with made_up_run(Path("unlabelled"), N):
        pass
    status, output, errors = compare(*words)
    assert (status, output) == (MISTAKE, "")
    assert expected in errors


@pytest.mark.slow
def test_two_explainers_of_a_real_run_are_compared(collected: Path, tmp_path: Path) -> None:
    asking = runs_that_rate(collected, tmp_path, shuffled_labels=0, gold=False)
    with serve(write_and_rate) as fake:
        run, config = asking(fake)
        both = config.read_text().replace('["highlighted"]', '["highlighted", "max_activations"]')
        config.write_text(both)
        for stage in ("explain", "score"):
            done = command(stage, run, "--config", config, key=KEY)
            assert done.returncode == 0, done.stderr
    compared = command("compare", run, "--by", "explainer", "--json")
    assert compared.returncode == DONE, compared.stderr
    found = json.loads(compared.stdout)
    figures = [(it["figure"]["simulator"], it["figure"]["split"]) for it in found["compared"]]
    assert figures == [(SIMULATOR, "select"), (SIMULATOR, "score")]
    with duckdb.connect(str(run / "scopenote.duckdb"), read_only=True) as connection:
        for each in found["compared"]:
            assert [row["among"] for row in each["rows"]] == ["same windows"]
            rows = connection.execute(
                """
                SELECT feature, sae_id, explainer, value FROM scores JOIN labels USING (label_id)
                WHERE scorer = 'simulation' AND metric = 'correlation' AND simulator = ?
                    AND split = ? AND value IS NOT NULL
                """,
                [SIMULATOR, each["figure"]["split"]],
            ).fetchall()
            by_feature: dict[tuple[str, int], dict[str, list[float]]] = {}
            for feature, sae_id, explainer, value in rows:
                of_both = by_feature.setdefault((sae_id, feature), {})
                of_both.setdefault(explainer, []).append(value)
            differences = [
                fmean(it[each["other"]]) - fmean(it[each["base"]])
                for it in by_feature.values()
                if len(it) == 2
            ]
            mean = each["rows"][0]["difference"]["mean"]
            assert mean["n"] == len(differences) > 0
            assert mean["value"] == pytest.approx(np.mean(differences))
    assert {it["side"] for it in found["lookups"]} == {"highlighted", "max_activations"}
    assert all(it["usd_per_label"] for it in found["sides"] if it["title"] != "token_lookup")
    page = command("compare", run, "--by", "explainer")
    assert page.returncode == DONE, page.stderr
    assert f"judged by {SIMULATOR}" in page.stdout
