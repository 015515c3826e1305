"""What is said of a run, in the same words on every page: a terminal's, Prefect's, a message's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from ..label.pricing import in_dollars
from ..store.records import ScoreChange
from ..store.run_summaries import (
    Distribution,
    RunSummary,
    ScoreComparison,
)
from ..store.runs import RunRecord
from .progress import duration
from .show_feature import figure, interval

STAGES, FAILURES = "Stages", "Failures"
_DIGITS = 3


@dataclass(frozen=True, slots=True)
class RunSection:
    """Some figures of a run under a title.

    Attributes:
        title: a word or two.
        columns: as `plain_table` takes them; one whose name ends in `>` is one of figures.
        rows: below them.
        lines: sentences that follow.
    """

    title: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    lines: tuple[str, ...] = ()

    def without_empty_columns(self) -> RunSection:
        """The same without columns in which nothing stands."""
        filled = [at for at in range(len(self.columns)) if any(row[at] for row in self.rows)]
        return replace(
            self,
            columns=tuple(self.columns[at] for at in filled),
            rows=tuple(tuple(row[at] for at in filled) for row in self.rows),
        )


def took(record: RunRecord) -> str:
    """How long a run took; a dash while it has not ended."""
    if record.started_at is None or record.finished_at is None:
        return "–"
    return duration((record.finished_at - record.started_at).total_seconds())


def deed(stage: Mapping[str, Any]) -> str:
    """What a stage of a run did, without its failures and notes."""
    there = f", {stage['already_done']:,} there before" if stage.get("already_done") else ""
    return f"{stage['done']:,} {stage['unit']}{there}"


def sections_of(record: RunRecord) -> Iterator[RunSection]:
    """What a run did and changed, part by part; only those with something in them."""
    for section in _sections(record):
        yield section.without_empty_columns()


def _sections(record: RunRecord) -> Iterator[RunSection]:
    if record.stages:
        yield _stages(record.stages)
    if (summary := record.summary) is None:
        return
    if summary.labels:
        yield _labels(summary)
    if _moved(summary):
        yield _scores(summary)
    if any(each.n_calls for each in summary.cost):
        yield _cost(summary)
    failures = tuple(_failures(record.stages, summary))
    if failures:
        yield RunSection(FAILURES, ("failed>", "what", "why"), failures)


def earlier_runs(summary: RunSummary) -> str | None:
    """That the figures cover more than one run, where they do."""
    n = len(summary.covered) - 1
    if not n:
        return None
    return f"with what {n:,} run{'s' if n > 1 else ''} before it did that could not say so"


def _stages(stages: Sequence[Mapping[str, Any]]) -> RunSection:
    rows = tuple(
        (
            stage["stage"],
            deed(stage) + (f", {stage['waiting']:,} wait" if stage.get("waiting") else ""),
            duration(stage.get("seconds") or 0.0),
        )
        for stage in stages
    )
    lines = tuple(f"{stage['stage']}: {words}" for stage in stages for words in plan_lines(stage))
    return RunSection(STAGES, ("stage", "did", "took>"), rows, lines)


def plan_lines(stage: Mapping[str, Any]) -> Iterator[str]:
    """Why labels were asked for, and what is left to do, a sentence each."""
    reasons = [f"{why} {n:,}" for why, n in stage.get("reasons", {}).items() if n]
    if reasons:
        yield f"written because of: {', '.join(reasons)}"
    left = f"{stage['left']:,} features are left" if stage.get("left") else ""
    if stage.get("is_spent"):
        yield "what it may spend is spent" + (f", {left}" if left else "")
    elif left:
        yield left


def _labels(summary: RunSummary) -> RunSection:
    rows = tuple(
        (
            each.explainer,
            each.model or "",
            f"{each.n:,}",
            f"{each.n_again:,}" if each.n_again else "",
            f"{sum(each.failures.values()):,}" if each.failures else "",
        )
        for each in summary.labels
    )
    there = summary.in_force
    counted = [
        f"{n:,} {words}"
        for n, words in (
            (there.n_first, "for the first time"),
            (there.n_replaced, "in place of another"),
            (there.n_lost, "features lost theirs"),
        )
        if n
    ]
    line = ": ".join([f"{there.n:,} labels in force", *([", ".join(counted)] if counted else [])])
    return RunSection("New labels", ("by", "model", "new>", "again>", "failed>"), rows, (line,))


def _moved(summary: RunSummary) -> list[ScoreComparison]:
    """Those to be shown: what has changed, once there is anything that it has changed from."""
    if all(each.before is None for each in summary.scores):
        return []
    return [each for each in summary.scores if each.pairs is not None or each.before != each.now]


def _scores(summary: RunSummary) -> RunSection:
    rows: list[tuple[str, ...]] = []
    for each in _moved(summary):
        if each.before is not None:
            rows.append((each.simulator, "before", *_figures(each.before)))
        rows.append(("" if each.before else each.simulator, "now", *_figures(each.now)))
    columns = ("judged by", "", "scored>", "undefined>", "median>", "middle half")
    return RunSection("Scores", columns, tuple(rows), tuple(comparison_lines(summary)))


def _figures(scores: Distribution) -> tuple[str, ...]:
    n_undefined = sum(scores.undefined.values())
    return (
        f"{scores.n:,}",
        f"{n_undefined:,}" if n_undefined else "",
        figure(scores.median, _DIGITS),
        interval(scores.quarter, scores.three_quarters),
    )


def comparison_lines(summary: RunSummary) -> Iterator[str]:
    """How scores have changed, a sentence each."""
    moved = _moved(summary)
    for each in moved:
        who = f"{each.simulator}: " if len(moved) > 1 else ""
        yield from (who + words for words in _comparison(each))
    changes = [change for each in moved for change in (each.medians, each.pairs)]
    if any(change is not None and change.low is not None for change in changes):
        yield "in brackets: where 95% of resamples of the features lie"


def _comparison(scores: ScoreComparison) -> Iterator[str]:
    if scores.medians is not None:
        yield f"median of all: {_change(scores.medians)}"
    if scores.pairs is not None:
        n = scores.pairs.n
        features = "1 feature" if n == 1 else f"{n:,} features"
        yield (
            f"{features} with another label or score, each against its own last: "
            f"{_change(scores.pairs)} on average"
        )
    if scores.n_other_judge:
        yield f"{scores.n_other_judge:,} were scored by another before, and not compared"
    before = {} if scores.before is None else scores.before.undefined
    for reason, n in scores.now.undefined.items():
        if n != before.get(reason, 0):
            yield f"{n:,} undefined ({before.get(reason, 0):,} before): {reason}"


def _change(change: ScoreChange) -> str:
    value = f"{change.value:+.{_DIGITS}f}".replace("-", "−")
    if change.low is None or change.high is None:
        return f"{value} (too few for an interval)"
    return f"{value} ({figure(change.low, _DIGITS)} to {figure(change.high, _DIGITS)})"


def _cost(summary: RunSummary) -> RunSection:
    rows = tuple(
        (
            each.purpose,
            each.model,
            f"{each.n_calls:,}",
            f"{each.n_failed:,}" if each.n_failed else "",
            _dollars(each.usd, each.n_unpriced),
        )
        for each in summary.cost
    )
    now, in_all = (
        _dollars(usd, n)
        for usd, n in (
            (summary.usd, sum(each.n_unpriced for each in summary.cost)),
            (summary.usd_in_all, summary.n_unpriced_in_all),
        )
    )
    columns = ("calls for", "model", "calls>", "failed>", "dollars>")
    return RunSection("Cost", columns, rows, (f"{now} now, {in_all} in all",))


def _dollars(usd: Decimal | None, n_unpriced: int) -> str:
    if usd is None:
        return "unknown"
    return in_dollars(usd) + ("+" if n_unpriced else "")


def _failures(
    stages: Sequence[Mapping[str, Any]], summary: RunSummary
) -> Iterator[tuple[str, str, str]]:
    for stage in stages:
        for reason, n in stage.get("failures", {}).items():
            # What fails there is a window, not a label; the report says so before the reason.
            _, is_of_windows, why = reason.partition("windows to be rated: ")
            what = "windows" if is_of_windows else stage["unit"]
            yield (f"{n:,}", what, why if is_of_windows else reason)
    for reason, n in summary.call_failures.items():
        yield (f"{n:,}", "calls", reason.replace("_", " "))
