"""How a run stands: figures as a person would count them, and how they look."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import duckdb
import pytest
from rich.console import Console, RenderableType
from scopenote.flows.summary import bytes_in_words, render_ending, render_status
from scopenote.store.batch_record import Batch, add_batch, end_batch, note_state
from scopenote.store.gold import CHANGED, GoldChange, GoldStanding, ItemMean
from scopenote.store.null_ladder import LadderRow
from scopenote.store.run_folder import RunFolder
from scopenote.store.schema import MIGRATIONS
from scopenote.store.second_opinions import OpinionRow
from scopenote.store.status import read_extremes, read_status

from .made_up_run import MLP, RES, make_database

FOLDER = RunFolder(Path("my run"))


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with make_database() as connection:
        yield connection


@pytest.fixture
def empty() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        for migration in MIGRATIONS:
            connection.execute(migration.sql)
        yield connection


def rendered(page: RenderableType, width: int = 100, colour: bool = False) -> str:
    stream = io.StringIO()
    system = "truecolor" if colour else None
    Console(
        file=stream, width=width, color_system=system, force_terminal=colour, highlight=False
    ).print(page, crop=False)
    return stream.getvalue()


def test_the_status_counts_text_features_labels_and_failures(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    status = read_status(connection, tmp_path / "none")
    assert (status.n_tokens, status.n_documents) == (612_034, 512)
    assert [sae.sae_id for sae in status.saes] == [MLP, RES]
    for sae in status.saes:
        assert (sae.n_features, sae.n_alive, sae.n_labelled) == (40, 39, 38)
        assert sae.failures == {"never active in explain": 1}
    assert [(split.split, split.n_tokens) for split in status.splits] == [
        ("explain", 306_000),
        ("select", 122_034),
        ("score", 184_000),
    ]
    assert [run.status for run in status.runs] == ["done", "interrupted"]


@pytest.mark.parametrize(
    ("renamed", "said"),
    [
        ({}, "toy-gemma-2, 2 SAEs, 612"),
        ({MLP: "toy-gemma-2/1-mlp-neurons"}, "toy-gemma-2, 1 SAE, neurons of 1 layer, 612"),
        (
            {MLP: "toy-gemma-2/1-mlp-neurons", RES: "toy-gemma-2/0-mlp-neurons"},
            "toy-gemma-2, neurons of 2 layers, 612",
        ),
    ],
)
def test_neurons_are_counted_apart_from_saes(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path, renamed: dict[str, str], said: str
) -> None:
    status = read_status(connection, tmp_path)
    saes = tuple(replace(sae, sae_id=renamed.get(sae.sae_id, sae.sae_id)) for sae in status.saes)
    page = rendered(render_status(replace(status, saes=saes), FOLDER))
    assert said in page.splitlines()[0]


def test_losses_are_shown_where_they_were_measured_and_nowhere_else(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    status = read_status(connection, tmp_path / "none")
    extremes = read_extremes(connection)
    for page in (
        render_status(status, FOLDER),
        render_ending(status, extremes, FOLDER, "scopenote"),
    ):
        text = rendered(page)
        assert "Next-token loss  nats per token, over 8,191 tokens of text" in text
        table = text.partition("Next-token loss")[2].splitlines()[1:4]
        assert table[0].split() == [
            "SAE",
            "model",
            "spliced",
            "in",
            "zeroed",
            "increase",
            "recovered",
        ]
        assert table[1].split() == [RES, "3.210", "3.335", "8.210", "0.1250", "97.5%"]
        assert not table[2].strip()
    unmeasured = replace(status, saes=tuple(replace(sae, loss=None) for sae in status.saes))
    assert "Next-token loss" not in rendered(render_status(unmeasured, FOLDER))


def test_scores_are_summed_up_as_a_plain_count_would(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    for sae in read_status(connection, tmp_path).saes:
        rows = connection.execute(
            "SELECT score FROM current_labels WHERE sae_id = ? AND score IS NOT NULL", [sae.sae_id]
        ).fetchall()
        scores = sorted(score for (score,) in rows)
        found = sae.scores
        assert (found.n, found.low, found.high) == (len(scores), scores[0], scores[-1])
        assert found.median == pytest.approx(scores[len(scores) // 2])
        expected = [0] * 20
        for score in scores:
            if score >= 0:
                expected[min(int(score * 20), 19)] += 1
        assert list(found.histogram) == expected
        assert found.n_negative == sum(score < 0 for score in scores) == 1
        assert found.undefined == {"too few active tokens": 1}


def test_scores_that_newer_text_has_overtaken_are_counted(tmp_path: Path) -> None:
    with make_database() as connection:
        connection.execute(
            "UPDATE scores SET stale_since = now() WHERE label_id = $1", [f"{RES}:1"]
        )
        status = read_status(connection, tmp_path / "none")
    assert {sae.sae_id: sae.scores.n_stale for sae in status.saes} == {RES: 1, MLP: 0}
    page = rendered(render_status(status, FOLDER))
    assert f"{RES}  1 overtaken by newer text, to be scored again" in page


def test_a_perfect_score_falls_into_the_last_bin(tmp_path: Path) -> None:
    with make_database() as connection:
        connection.execute("UPDATE scores SET value = 1 WHERE metric = 'correlation'")
        for sae in read_status(connection, tmp_path).saes:
            assert sae.scores.histogram[-1] == sae.scores.n == 38


def test_best_and_worst_labels_are_the_extremes_and_never_the_same(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    rows = connection.execute(
        "SELECT sae_id || '/' || feature, score FROM current_labels WHERE score IS NOT NULL "
        "ORDER BY score DESC, sae_id, feature"
    ).fetchall()
    extremes = read_extremes(connection)
    assert [(label.feature, label.score) for label in extremes.best] == rows[:5]
    assert {(label.feature, label.score) for label in extremes.worst} == set(rows[-5:])
    every = read_extremes(connection, n=50)
    named = [label.feature for label in (*every.best, *every.worst)]
    assert len(named) == len(set(named)) == len(rows)


@pytest.mark.parametrize("width", [80, 100, 140])
def test_the_pages_fit_the_terminal(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path, width: int
) -> None:
    status, extremes = read_status(connection, tmp_path), read_extremes(connection)
    for page in (
        render_status(status, FOLDER),
        render_ending(status, extremes, FOLDER, "scopenote"),
    ):
        lines = rendered(page, width).splitlines()
        assert max(map(len, lines)) <= width
        assert not any("…" in line for line in lines)


def test_the_ending_shows_labels_scores_places_and_commands_to_type(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    status, extremes = read_status(connection, tmp_path), read_extremes(connection)
    text = rendered(render_ending(status, extremes, FOLDER, ".venv/bin/scopenote"), width=60)
    assert "Best labels" in text
    assert "Worst labels" in text
    assert "1 undefined: too few active tokens" in text
    # Whole on its line at any width, quoted as a shell needs it.
    command = f"    .venv/bin/scopenote show 'my run' {extremes.best[0].feature}"
    assert command in text.splitlines()
    assert "    .venv/bin/scopenote status 'my run'" in text.splitlines()


def test_an_empty_run_has_a_status_and_an_ending(
    empty: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    status, extremes = read_status(empty, tmp_path / "none"), read_extremes(empty)
    assert "nothing collected yet" in rendered(render_status(status, FOLDER))
    assert "What to try next" in rendered(render_ending(status, extremes, FOLDER, "scopenote"))


def test_without_colour_no_escape_is_written(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    page = render_status(read_status(connection, tmp_path), FOLDER)
    assert "\x1b" not in rendered(page)
    assert re.sub(r"\x1b\[[0-9;]*m", "", rendered(page, colour=True)) == rendered(page)


def test_the_status_as_json_is_json(connection: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    content = json.loads(json.dumps(read_status(connection, tmp_path).as_dict(), default=str))
    assert content["saes"][0]["scores"]["undefined"] == {"too few active tokens": 1}


@pytest.mark.parametrize(
    ("n", "words"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (999_999, "1.0 MB"),
        (48_200_000, "48.2 MB"),
        (19_300_000_000_000_000, "19300 TB"),
    ],
)
def test_sizes_are_said_in_their_unit(n: int, words: str) -> None:
    assert bytes_in_words(n) == words


def test_the_batches_under_way_are_shown_and_those_that_ended_are_not(
    empty: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    began = datetime(2026, 11, 21, 5, tzinfo=UTC)
    first = Batch("b0", "http://here/v1", "gpt-4o-mini", 1234, 9, Decimal("1.25"), {}, began)
    batches = [first, replace(first, batch_id="b1"), replace(first, batch_id="b2", most_usd=None)]
    for batch in batches:
        add_batch(empty, batch, ["a"])
        note_state(empty, batch.batch_id, f"batch_{batch.batch_id}", "in_progress")
    end_batch(empty, "b1", "completed")
    add_batch(empty, replace(first, batch_id="b3"), ["a"])
    status = read_status(empty, tmp_path / "none")
    assert [batch.batch_id for batch in status.batches] == ["b0", "b2", "b3"]
    page = rendered(render_status(status, FOLDER))
    assert re.search(r"batch_b0 +gpt-4o-mini +1,234 +in progress +2026-\S+ \d\d:\d\d +\$1.25", page)
    assert re.search(r"batch_b2 .* unknown", page)
    assert re.search(r"not yet submitted .* prepared +– +\$1.25", page)
    assert "b1" not in page
    assert "batches under way" not in rendered(render_status(replace(status, batches=()), FOLDER))


def test_what_scores_stand_beside_fits_eighty_columns(tmp_path: Path) -> None:
    judge = "chat/gpt-4o-mini"
    ladder = LadderRow("max_activations", judge, 16_384, 0.61, 0.45, 20, 3, -0.002, 15_000)
    opinions = tuple(
        OpinionRow("max_activations", judge, scorer, metric, 16_000, 384, median, null)
        for scorer, metric, median, null in (
            ("detection", "auroc_random", 0.91, 0.82),
            ("detection", "balanced_accuracy_random", 0.987, None),
            ("detection", "auroc_near_miss", 0.73, 0.64),
            ("discrimination", "chance_corrected", 0.55, None),
            ("intervention", "promoted_tokens", 0.35, 0.0),
            ("intervention", "told_apart", 0.25, 0.0),
        )
    )
    drift = GoldChange(2, ItemMean(8, 0, 0.93, 0.02), -0.4, 0.1, "quoted", -0.9, True, CHANGED)
    gold = GoldStanding(
        judge, "v", "r", datetime.now(), ItemMean(8, 0, 0.53, 0.02), ItemMean(3, 5, -0.01, 0.04),
        96, 2, 0.003, 0.99, drift,
    )  # fmt: skip
    with make_database() as connection:
        status = read_status(connection, tmp_path / "none")
        status = replace(status, ladder=(ladder,), opinions=opinions, gold=(gold,))
        page = rendered(render_status(status, FOLDER), width=80).replace("−", "-")
    assert max(map(len, page.splitlines())) <= 80
    for words in (
        "labels by        judged by",
        "16,384    0.61  0.45  0.00 (20)    92%",
        "3 of 20 shuffled scores are undefined",
        "A constant prediction has no correlation.",
        "detection       random         0.91  0.82  16,000        384",
        "detection       near misses    0.73  0.64",
        "discrimination  told apart     0.55     –",
        "intervention    others         0.35  0.00",
        "intervention    told apart     0.25  0.00",
        "chat/gpt-4o-mini  0.53 ± 0.02  -0.01 ± 0.04       0, 5    0.30%       2     3",
        "is not the judge it was",
    ):
        assert words in page, words
    assert "0.99" not in page
    assert "Collisions" in page
