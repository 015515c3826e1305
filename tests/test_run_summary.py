"""What a run says that it changed: beside the last run, beside one that was killed, as a page."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal

import duckdb
import pytest
from rich.console import Console, Group
from scopenote.flows.past_runs import render_runs
from scopenote.flows.reports import RunReport, StageReport
from scopenote.flows.run_message import markdown_page
from scopenote.flows.run_page import last_run_blocks
from scopenote.store.errors import BudgetSpent
from scopenote.store.label_history import LabelsInForce, append_history
from scopenote.store.run_summaries import Distribution, RunSummary
from scopenote.store.runs import RunRecord, read_last_ended, read_runs
from scopenote.store.schema import MIGRATIONS

from .made_up_history import JUDGE, LOOKUP, begin, call, end, label, make_history, score

FIRST = range(40)


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    """After a first run: 40 features have a label, scored from 0.00 to 0.39."""
    with make_history() as connection:
        run_id = begin(connection)
        label(connection, run_id, FIRST)
        score(connection, run_id, {f: f / 100 for f in FIRST})
        end(connection, run_id)
        yield connection


def last(connection: duckdb.DuckDBPyConnection) -> RunRecord:
    record = read_last_ended(connection)
    assert record is not None
    return record


def shown(record: RunRecord, width: int = 80) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width, highlight=False)
    console.print(Group(*last_run_blocks(record)), crop=False)
    return stream.getvalue()


# --- what has changed -------------------------------------------------------------------------


def test_a_first_run_has_nothing_to_be_compared_with(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    summary = last(connection).summary
    assert summary is not None
    assert summary.in_force == LabelsInForce(n=40, n_first=40, n_replaced=0, n_lost=0)
    (scores,) = summary.scores
    assert (scores.simulator, scores.before, scores.pairs) == (JUDGE, None, None)
    assert (scores.medians, scores.now.n) == (None, 40)
    assert scores.now.median == pytest.approx(0.195)
    assert "median" not in shown(last(connection))


def test_a_run_that_changes_nothing_says_so_by_saying_nothing(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    summary = end(
        connection, begin(connection), RunReport((StageReport("score", "labels", 0, 40),))
    )
    assert summary.labels == ()
    assert summary.in_force == LabelsInForce(n=40, n_first=0, n_replaced=0, n_lost=0)
    (scores,) = summary.scores
    assert scores.before == scores.now
    assert scores.pairs is None
    assert append_history(connection, "again") == 0
    text = shown(last(connection))
    assert "0 labels, 40 there before" in text
    assert "median" not in text
    assert "labels in force" not in text


def test_features_that_were_labelled_again_are_compared_with_themselves(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    run_id = begin(connection)
    label(connection, run_id, [*range(10), *range(40, 60)], name="b")
    score(connection, run_id, {f: f / 100 + 0.2 for f in range(10)}, name="b", chosen=0.9)
    score(connection, run_id, dict.fromkeys(range(40, 60), 0.9), name="b")
    summary = end(connection, run_id)
    (labels,) = summary.labels
    assert (labels.explainer, labels.model, labels.n, labels.n_again) == (
        "highlighted",
        "m",
        30,
        10,
    )
    assert summary.in_force == LabelsInForce(n=60, n_first=20, n_replaced=10, n_lost=0)
    (scores,) = summary.scores
    assert scores.before is not None
    assert (scores.before.n, scores.now.n) == (40, 60)
    assert scores.pairs is not None
    assert (scores.pairs.n, scores.pairs.value) == (10, pytest.approx(0.2))
    # All moved by as much; but a median of 60 features depends on which they are.
    assert scores.pairs.low == pytest.approx(0.2, abs=1e-6)
    assert scores.medians is not None
    assert scores.medians.value == pytest.approx(0.295 - 0.195)
    assert scores.medians.low is not None
    assert scores.medians.high is not None
    assert 0 < scores.medians.low < 0.1 < scores.medians.high


def test_a_label_that_is_tried_and_does_not_come_into_force_changes_no_score(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    run_id = begin(connection)
    label(connection, run_id, range(5), name="b")
    score(connection, run_id, dict.fromkeys(range(5), 0.0), name="b", chosen=0.1)
    summary = end(connection, run_id)
    assert summary.in_force.n_replaced == 0
    assert summary.scores[0].pairs is None
    assert summary.labels[0].n_again == 5


def test_stages_that_are_runs_of_their_own_are_compared_with_the_scores_before_both(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    explain = begin(connection, "explain")
    connection.execute("DELETE FROM scores WHERE split = 'select'")
    label(connection, explain, range(8), name="0")  # sorts before the others: in force
    summary = end(connection, explain)
    assert summary.in_force.n_replaced == 8
    assert summary.scores[0].pairs is None
    assert summary.scores[0].now.n == 32
    rescored = begin(connection, "score")
    score(connection, rescored, {f: f / 100 + 0.1 for f in range(8)}, name="0")
    (scores,) = end(connection, rescored).scores
    assert scores.before is not None
    assert scores.before.n == 40
    assert scores.pairs is not None
    assert (scores.pairs.n, scores.pairs.value) == (8, pytest.approx(0.1))


def test_scores_by_another_judge_are_counted_and_not_compared(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    run_id = begin(connection)
    label(connection, run_id, range(10), name="b", explainer="token_lookup")
    score(connection, run_id, dict.fromkeys(range(10), 0.0), "b", LOOKUP, chosen=0.9)
    by_judge, by_lookup = end(connection, run_id).scores
    assert (by_judge.simulator, by_judge.now.n, by_judge.pairs) == (JUDGE, 30, None)
    assert (by_lookup.simulator, by_lookup.pairs, by_lookup.n_other_judge) == (LOOKUP, None, 10)
    assert "10 were scored by another before, and not compared" in shown(last(connection))


def test_scores_that_become_undefined_are_counted_by_reason(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    run_id = begin(connection)
    score(connection, run_id, dict.fromkeys(range(3), "too few active tokens"))
    (scores,) = end(connection, run_id).scores
    assert (scores.now.n, scores.now.undefined) == (37, {"too few active tokens": 3})
    assert scores.pairs is None
    assert "3 undefined (0 before): too few active tokens" in shown(last(connection))


def test_a_feature_that_loses_its_label_is_counted_once(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    run_id = begin(connection)
    connection.execute("DELETE FROM labels WHERE feature = 7")
    summary = end(connection, run_id)
    assert summary.in_force == LabelsInForce(n=39, n_first=0, n_replaced=0, n_lost=1)
    assert end(connection, begin(connection)).in_force.n_lost == 0
    assert end(connection, begin(connection)).scores[0].before == summary.scores[0].now


def test_what_a_killed_run_had_done_is_told_by_the_next(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    killed = begin(connection)
    label(connection, killed, range(40, 45), name="k")
    call(connection, "k", "0.25")
    run_id = begin(connection)
    label(connection, run_id, range(45, 50))
    summary = end(connection, run_id)
    assert summary.covered == (killed, run_id)
    assert summary.labels[0].n == 10
    assert summary.usd == Decimal("0.25")
    assert "with what 1 run before it did that could not say so" in shown(last(connection))
    assert end(connection, begin(connection)).labels == ()


def test_a_run_of_an_older_version_counts_as_the_last_run() -> None:
    with duckdb.connect() as connection:
        for migration in MIGRATIONS:
            if "label_history" not in migration.sql:
                connection.execute(migration.sql)
        older = begin(connection)
        label(connection, older, FIRST)
        score(connection, older, dict.fromkeys(FIRST, 0.5))
        connection.execute("UPDATE runs SET status = 'done', finished_at = now()")
        for migration in MIGRATIONS:
            if "label_history" in migration.sql:
                connection.execute(migration.sql)
        run_id = begin(connection)
        label(connection, run_id, [40])
        summary = end(connection, run_id)
    assert summary.covered == (run_id,)
    assert summary.labels[0].n == 1
    assert summary.in_force.n_first == 1
    assert summary.scores[0].before == Distribution(40, 0.5, 0.5, 0.5, {})


def test_calls_of_this_run_are_told_from_those_before(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    call(connection, "before", "1.5")
    end(connection, begin(connection))
    run_id = begin(connection)
    call(connection, "now", "0.0000025")
    call(connection, "unpriced", None, purpose="simulate")
    call(connection, "broken", "0", "rate_limit: too fast, after 8 attempts")
    summary = end(connection, run_id)
    assert (summary.usd, summary.usd_in_all) == (Decimal("0.0000025"), Decimal("1.5000025"))
    assert summary.n_unpriced_in_all == 1
    assert [(each.purpose, each.n_calls) for each in summary.cost] == [
        ("explain", 2),
        ("simulate", 1),
    ]
    assert summary.call_failures == {"rate_limit": 1}
    text = shown(last(connection))
    assert "rate limit" in text
    assert "$0.0000025+ now, $1.50+ in all" in text


def test_features_without_text_are_no_failures(connection: duckdb.DuckDBPyConnection) -> None:
    run_id = begin(connection)
    label(connection, run_id, [40], name="n", reason="never active in the explain split")
    label(connection, run_id, [41, 42], name="n", reason="the reply was cut off")
    (labels,) = end(connection, run_id).labels
    assert labels.failures == {"the reply was cut off": 2}


def test_a_run_that_failed_says_what_it_had_done_and_why_it_ended(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    run_id = begin(connection)
    label(connection, run_id, [40])
    spent = BudgetSpent("The budget does not cover the next call.", found="$1.00 of $1.00")
    report = RunReport((StageReport("explain", "labels", 1),))
    assert end(connection, run_id, report, spent).labels[0].n == 1
    record = last(connection)
    assert record.status == "failed"
    assert "The budget does not cover the next call. ($1.00 of $1.00)" in shown(record)


def test_why_labels_were_written_and_what_is_left_is_said(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    stage = StageReport(
        "explain",
        "labels",
        1200,
        reasons={"no label": 1000, "other contexts": 200, "low score": 0},
        left=3000,
        is_spent=True,
    )
    end(connection, begin(connection), RunReport((stage,)))
    text = shown(last(connection))
    assert "explain: written because of: no label 1,000, other contexts 200" in text
    assert "explain: what it may spend is spent, 3,000 features are left" in text
    assert "low score" not in text


# --- pages ------------------------------------------------------------------------------------


def test_a_summary_is_read_back_as_it_was_written(connection: duckdb.DuckDBPyConnection) -> None:
    run_id = begin(connection)
    call(connection, "x", "0.000000000000000001")
    summary = end(connection, run_id)
    assert last(connection).summary == summary
    assert RunSummary.from_dict(json.loads(json.dumps(summary.as_dict()))) == summary


def test_the_pages_of_all_runs_have_it_and_fit(connection: duckdb.DuckDBPyConnection) -> None:
    run_id = begin(connection)
    label(connection, run_id, range(10), name="b")
    score(connection, run_id, {f: f / 100 + 0.2 for f in range(10)}, name="b", chosen=0.9)
    end(connection, run_id)
    stream = io.StringIO()
    Console(file=stream, width=80, highlight=False).print(render_runs(read_runs(connection, 9)))
    text = stream.getvalue()
    assert "score: 10 labels, in 3 s" in text
    assert "10 features with another label or score" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80
    assert max(map(len, shown(last(connection)).splitlines())) <= 80


def test_what_others_wrote_can_neither_control_a_terminal_nor_make_markup(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    run_id = begin(connection)
    hostile = "\x1b[31m<!channel> [red]| `x`"
    report = RunReport((StageReport("explain", "labels", 3, failures={hostile: 1}),))
    end(connection, run_id, report)
    record = last(connection)
    assert "\x1b" not in shown(record)
    assert "[red]" in shown(record)
    page = markdown_page("my run", replace(record, command=hostile))
    assert not {"\x1b", "<", "`"} & set(page)
    (row,) = [line for line in page.splitlines() if "1 |" in line and "channel" in line]
    assert row.count("|") == 4
