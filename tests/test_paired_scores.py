"""Which figure of which label stands for a side, and which features are pairs."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from scopenote.store.database import open_store
from scopenote.store.paired_scores import (
    Figure,
    SideKey,
    read_scored_sides,
    read_side,
)
from scopenote.store.side_facts import read_side_facts
from scopenote.store.side_pairs import count_other_windows, pair_sides, read_window_facts

from .made_up_sides import BEGAN, JUDGE, MadeUpRun, made_up_run

pytestmark = pytest.mark.slow  # together they take seconds that the default run lacks

Fill = Callable[[MadeUpRun], None]
SCORE = Figure("simulation", "correlation", JUDGE, "score")
SELECT = Figure("simulation", "correlation", JUDGE, "select")


def sides_of(
    folder: Path, fill: Fill, figure: Figure = SCORE, by: SideKey = SideKey.explainer
) -> dict[str | None, dict[int, dict[str, Any]]]:
    """By side and feature, its row."""
    with made_up_run(folder / "run") as run:
        fill(run)
    with open_store(folder / "run") as store, store.cursor() as connection:
        names = {it.name for it in read_scored_sides(connection, by, "simulation", "correlation")}
        return {
            name: {
                row["feature"]: row for row in read_side(connection, by, name, figure).to_pylist()
            }
            for name in names
        }


def test_on_score_the_best_on_select_stands_for_its_side(tmp_path: Path) -> None:
    def fill(run: MadeUpRun) -> None:
        for found, reported in ((0.2, 0.9), (0.7, 0.3)):
            label_id = run.label(0)
            run.score(label_id, found, "select")
            run.score(label_id, reported)

    assert sides_of(tmp_path, fill)["highlighted"][0]["value"] == 0.3


def test_on_select_the_mean_of_the_newest_candidates_stands_for_its_side(tmp_path: Path) -> None:
    def fill(run: MadeUpRun) -> None:
        run.score(run.label(0, generation=0), 0.9, "select")
        for value in (0.2, 0.4, None):
            run.score(run.label(0, generation=1), value, "select")
        run.score(run.label(1), 0.5, "select")

    found = sides_of(tmp_path, fill, SELECT)["highlighted"]
    assert found[0]["value"] == pytest.approx(0.3)
    assert (found[0]["ci_low"], found[0]["n_candidates"]) == (None, 2)
    assert (found[1]["value"], found[1]["ci_low"]) == (0.5, 0.45)


def test_of_a_persons_labels_the_last_counts_though_it_is_not_scored(tmp_path: Path) -> None:
    def fill(run: MadeUpRun) -> None:
        by_hand = {"explainer": "human", "source": "human", "author": "ann"}
        run.score(run.label(0, **by_hand), 0.9)
        run.label(0, **by_hand)
        run.score(run.label(1, **by_hand), 0.4)
        run.label(2, status="withdrawn", **by_hand)

    found = sides_of(tmp_path, fill, by=SideKey.author)["ann"]
    assert {feature: row["state"] for feature, row in found.items()} == {0: "unscored", 1: "scored"}


def test_versions_of_two_explainers_are_not_mixed(tmp_path: Path) -> None:
    def fill(run: MadeUpRun) -> None:
        for explainer in ("highlighted", "with_logits"):
            run.score(run.label(0, explainer, prompt_version="7"), 0.5)

    found = sides_of(tmp_path, fill, by=SideKey.prompt_version)
    assert set(found) == {"highlighted 7", "with_logits 7"}


def made_up_rows(seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Labels and scores of every kind."""
    draw = random.Random(seed)
    labels: list[dict[str, Any]] = []
    scores: list[dict[str, Any]] = []
    for feature in range(40):
        for explainer in ("highlighted", "with_logits"):
            for number in range(draw.choice([0, 1, 1, 2, 4])):
                label = {
                    "label_id": f"{explainer}:{feature}:{number}",
                    "feature": feature,
                    "explainer": explainer,
                    "generation": draw.choice([0, 0, 1]),
                    "source": draw.choice(["auto", "auto", "human"]),
                    "created_at": BEGAN.replace(minute=draw.randrange(60), second=number),
                    **draw.choice(
                        [{"status": "done"}] * 5
                        + [{"status": "failed", "reason": draw.choice(["cut off", "declined"])}]
                    ),
                }
                labels.append(label)
                for split, share in (("select", 0.8), ("score", 0.7)):
                    if draw.random() < share and label["status"] == "done":
                        value = None if draw.random() < 0.2 else round(draw.uniform(-1, 1), 3)
                        windows = f"{feature} {draw.choice('aab')}"
                        scores.append(
                            {
                                "label_id": label["label_id"],
                                "value": value,
                                "split": split,
                                "contexts_hash": windows,
                            }
                        )
    return labels, scores


def slow_side(
    labels: list[dict[str, Any]], scores: list[dict[str, Any]], explainer: str, split: str
) -> dict[int, tuple[str, float | None, str | None]]:
    """By feature: state, value and windows, as plainly as it can be said."""
    figure = {it["label_id"]: it for it in scores if it["split"] == split}
    select = {it["label_id"]: it["value"] for it in scores if it["split"] == "select"}
    found: dict[int, tuple[str, float | None, str | None]] = {}
    for feature in range(40):
        mine = [it for it in labels if (it["feature"], it["explainer"]) == (feature, explainer)]
        done = [it for it in mine if it["status"] == "done"]
        if not mine:
            continue
        if not done:
            found[feature] = ("failed", None, None)
            continue
        if split == "select":
            if len(mine) > 1:
                newest = max(it["generation"] for it in done)
                done = [it for it in done if it["generation"] == newest]
            rated = [figure[it["label_id"]] for it in done if it["label_id"] in figure]
            values = [it["value"] for it in rated if it["value"] is not None]
            hashes = {it["contexts_hash"] for it in rated}
            state = "scored" if values else "undefined" if rated else "unscored"
            windows = hashes.pop() if len(hashes) == 1 else None
            found[feature] = (state, fmean(values) if values else None, windows)
            continue

        def place(label: dict[str, Any]) -> tuple[Any, ...]:
            is_human, label_id = label["source"] == "human", label["label_id"]
            on_select = select.get(label_id)
            return (
                not is_human,
                -label["created_at"].timestamp() if is_human else 0,
                label_id not in figure,
                on_select is None,
                -(on_select or 0),
                -label["generation"],
                label_id,
            )

        chosen = min(done, key=place)["label_id"]
        row = figure.get(chosen)
        if row is None:
            found[feature] = ("unscored", None, None)
        else:
            state = "undefined" if row["value"] is None else "scored"
            found[feature] = (state, row["value"], row["contexts_hash"])
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("split", ["select", "score"])
def test_sides_and_pairs_are_those_that_plain_python_finds(
    tmp_path: Path, split: str, seed: int
) -> None:
    labels, scores = made_up_rows(seed)
    with made_up_run(tmp_path / "run") as run:
        for label in labels:
            run.label(**label)
        for score in scores:
            run.score(**score)
    figure = Figure("simulation", "correlation", JUDGE, split)
    with open_store(tmp_path / "run") as store, store.cursor() as connection:
        tables = [
            read_side(connection, SideKey.explainer, name, figure)
            for name in ("highlighted", "with_logits")
        ]
        facts = read_side_facts(connection, SideKey.explainer)
    pairs = pair_sides(*tables)
    slow = [slow_side(labels, scores, name, split) for name in ("highlighted", "with_logits")]
    for table, expected in zip(tables, slow, strict=True):
        found = {row["feature"]: row for row in table.to_pylist()}
        assert set(found) == set(expected)
        for feature, (state, value, windows) in expected.items():
            row = found[feature]
            assert (row["state"], row["contexts_hash"]) == (state, windows), feature
            assert row["value"] == (None if value is None else pytest.approx(value))
    first, second = slow
    both = [it for it in range(40) if all(it in one and one[it][0] == "scored" for one in slow)]
    assert [row["feature"] for row in pairs.table.to_pylist()] == both
    for row in pairs.table.to_pylist():
        windows = [one[row["feature"]][2] for one in slow]
        assert row["is_same"] == (windows[0] is not None and windows[0] == windows[1])
    for missing, has, lacks in (
        (pairs.missing_other, first, second),
        (pairs.missing_base, second, first),
    ):
        alone = {it for it, (state, _, _) in has.items() if state == "scored"} - set(both)
        expected_kinds = Counter(
            {"failed": "no label", "unscored": "not scored", "undefined": "undefined"}[lacks[it][0]]
            if it in lacks
            else "no label was asked for"
            for it in alone
        )
        kinds: Counter[str] = Counter()
        for each in missing:
            kinds[each.reason.partition(":")[0]] += each.n
        assert kinds == expected_kinds
        total = sum(each.mean * each.n for each in missing)
        assert total == pytest.approx(sum(has[it][1] or 0 for it in alone))
    for name in ("highlighted", "with_logits"):
        tried = {it["feature"] for it in labels if it["explainer"] == name}
        done = [it for it in labels if it["explainer"] == name and it["status"] == "done"]
        assert (facts[name].n_features, facts[name].n_labels) == (len(tried), len(done))
        assert facts[name].n_failed == len(tried - {it["feature"] for it in done})


TEXT = {"population_active_windows": 100, "population_silent_windows": 900}


@pytest.mark.parametrize(
    ("design", "stale", "why"),
    [
        ({**TEXT, "look": 1}, None, "one was known well enough after fewer windows"),
        ({**TEXT, "n_failed_windows": 2}, None, "the simulation of some windows failed"),
        ({**TEXT, "screen": "words"}, None, "a screen chose silent windows by the label"),
        ({**TEXT, "population_active_windows": 90}, None, "drawn from other text"),
        (TEXT, BEGAN, "newer text has overtaken one of the scores"),
        (TEXT, None, "other settings, or other text"),
        ({}, None, "other settings, or other text"),
    ],
)
def test_why_windows_differ_is_read_from_what_was_kept(
    tmp_path: Path, design: dict[str, Any], stale: Any, why: str
) -> None:
    with made_up_run(tmp_path / "run") as run:
        run.score(run.label(0), 0.5, design=TEXT)
        other = run.label(0, "with_logits")
        run.score(other, 0.6, design=design, stale_since=stale, contexts_hash="others")
        run.score(run.label(1), 0.5)
        run.score(run.label(1, "with_logits"), 0.6)
    with open_store(tmp_path / "run") as store, store.cursor() as connection:
        tables = [
            read_side(connection, SideKey.explainer, name, SCORE)
            for name in ("highlighted", "with_logits")
        ]
        pairs = pair_sides(*tables)
        facts = [
            read_window_facts(connection, SCORE, pairs.table[f"label_id_{which}"])
            for which in ("base", "other")
        ]
    assert pairs.table["is_same"].to_pylist() == [False, True]
    assert count_other_windows(pairs, *facts) == {why: 1}


def test_what_a_side_cost_has_every_call_for_its_labels(tmp_path: Path) -> None:
    with made_up_run(tmp_path / "run") as run:
        run.label(0, request_hash="a")
        run.label(1, request_hash="b", status="failed", reason="cut off")
        run.label(2, "with_logits", request_hash="c")
        run.label(3, "token_lookup")
        run.label(4, "token_lookup")
        run.call("a", "0.002")
        run.call("a", "0.001", "repeated_calls")
        run.call("b", "0.003")
        run.call("c", None)
        run.call("somebody's", "7")
    with open_store(tmp_path / "run") as store, store.cursor() as connection:
        facts = read_side_facts(connection, SideKey.explainer)
        (of_all,) = read_side_facts(connection, None).values()
    assert (of_all.n_labels, of_all.n_asked) == (4, 2)
    assert float(facts["highlighted"].usd_per_label or 0) == pytest.approx(0.006)
    assert facts["highlighted"].failures == {"cut off": 1}
    assert (facts["with_logits"].usd_per_label, facts["with_logits"].n_unpriced) == (None, 1)
    assert (facts["token_lookup"].usd, facts["token_lookup"].n_unpriced) == (None, 0)
