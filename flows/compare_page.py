"""The page of `scopenote compare`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from ..evaluate.paired_difference import PairedDifference
from ..label.pricing import in_dollars
from ..store.side_facts import SideFacts
from ..store.side_pairs import Missing
from .compared_sides import (
    Compared,
    Comparison,
    MovedFeature,
    ShownFigure,
)
from .plain_tables import plain_table
from .show_feature import figure, interval
from .visible_text import visible

_DIGITS = 3


def render_comparison(comparison: Comparison, where: str) -> RenderableType:
    """The page.

    Args:
        comparison: what was found.
        where: the run, or the two runs.
    """
    what = comparison.metric.removeprefix("simulation/")
    by = "" if comparison.by == "run" else f", by {comparison.by.replace('_', ' ')}"
    blocks: list[RenderableType] = [Text.assemble((where, "bold"), f"  {what}{by}"), ""]
    blocks += [_sides_table(comparison)]
    blocks += [_remark(note) for note in comparison.notes]
    if comparison.texts is not None:
        blocks += [_texts_line(comparison)]
    for several in _by_pair(comparison.compared):
        blocks += ["", *_pair_blocks(several)]
    if comparison.lookups:
        blocks += ["", *_lookup_blocks(comparison)]
    blocks += ["", *map(_remark, _explanations(comparison))]
    return Group(*blocks)


def _by_pair(compared: Sequence[Compared]) -> list[list[Compared]]:
    """By simulator and pair of sides, all splits together."""
    found: dict[tuple[str, str, str], list[Compared]] = {}
    for each in compared:
        found.setdefault((each.figure.simulator, each.base, each.other), []).append(each)
    return list(found.values())


def _sides_table(comparison: Comparison) -> RenderableType:
    shown = "" if comparison.by == "run" else comparison.by.replace("_", " ")
    table = plain_table(shown, "features>", "labels>", "without>", "dollars a label>", "model")
    for title, facts in comparison.sides:
        table.add_row(
            Text(visible(title), style="cyan"),
            f"{facts.n_features:,}",
            f"{facts.n_labels:,}",
            f"{facts.n_failed:,}" if facts.n_failed else "",
            _dollars(facts),
            Text(visible(", ".join(facts.models))),
        )
    return table


def _dollars(facts: SideFacts) -> str:
    if facts.usd_per_label is not None:
        return in_dollars(facts.usd_per_label)
    return "unknown" if facts.n_unpriced else ""


def _texts_line(comparison: Comparison) -> RenderableType:
    texts = comparison.texts
    assert texts is not None, "these are two runs"
    (base, _), (other, _) = comparison.sides
    counted = [
        f"{n:,} {words}"
        for n, words in (
            (texts.n_same, "say the same in both"),
            (texts.n_other, "say something else"),
            (texts.n_new, f"only in {visible(other)}"),
            (texts.n_gone, f"only in {visible(base)}"),
        )
        if n
    ]
    return Text(f"  labels in force: {', '.join(counted) or 'none'}")


def _pair_blocks(several: Sequence[Compared]) -> Iterator[RenderableType]:
    first = several[0]
    yield Text.assemble(
        (f"{visible(first.other)} against {visible(first.base)}", "bold"),
        (f"  judged by {visible(first.figure.simulator)}", "dim"),
    )
    if any(each.rows for each in several):
        yield Padding(_differences_table(several), (0, 0, 0, 2))
    else:
        yield Text("  no feature has a score by both")
    shown = next((it for it in several if it.figure.split == "score"), several[-1])
    yield from (_remark(f"{shown.figure.split}: {words}") for words in _pair_remarks(shown))
    for words, moved in (("Better", shown.up), ("Worse", shown.down)):
        if moved:
            yield ""
            yield Text.assemble(
                (f"{words} by {visible(shown.other)}", "bold"),
                (f"  most clearly so, on {shown.figure.split}", "dim"),
            )
            yield from _moved_blocks(moved, shown)


def _differences_table(several: Sequence[Compared]) -> RenderableType:
    """A column for each split, and there for each part of the pairs."""
    columns = [(each, row) for each in several for row in each.rows]
    found = [row.difference for _, row in columns]
    table = plain_table("", *(f"{each.figure.split}>" for each, _ in columns))
    first = several[0]
    rows: list[tuple[str, Iterable[str]]] = [
        ("pairs", (row.among for _, row in columns)),
        ("features", (f"{it.mean.n:,}" for it in found)),
        ("difference", (_signed(it.mean.value) for it in found)),
        ("  from", (_signed(it.mean.low) for it in found)),
        ("  to", (_signed(it.mean.high) for it in found)),
        (f"mean, {first.base}", (figure(it.mean_base, _DIGITS) for it in found)),
        (f"mean, {first.other}", (figure(it.mean_other, _DIGITS) for it in found)),
        (f"median, {first.base}", (figure(it.median_base, _DIGITS) for it in found)),
        (f"median, {first.other}", (figure(it.median_other, _DIGITS) for it in found)),
        ("better", (f"{it.n_better:,}" for it in found)),
        ("  clearly", map(_clearly_better, found)),
        ("worse", (f"{it.n_worse:,}" for it in found)),
        ("  clearly", map(_clearly_worse, found)),
        ("equal", (f"{it.n_equal:,}" for it in found)),
    ]
    for name, cells in rows:
        style = "bold" if name == "difference" else ""
        table.add_row(Text(visible(name)), *cells, style=style)
    return table


def _signed(value: float | None) -> str:
    # Zero added, so that what rounds to it has no minus.
    return "–" if value is None else f"{round(value, _DIGITS) + 0:+.{_DIGITS}f}".replace("-", "−")


def _clearly_better(found: PairedDifference) -> str:
    return _clear(found, found.n_clearly_better)


def _clearly_worse(found: PairedDifference) -> str:
    return _clear(found, found.n_clearly_worse)


def _clear(found: PairedDifference, n: int) -> str:
    return "–" if found.n_without_interval == found.mean.n else f"{n:,}"


def _pair_remarks(compared: Compared) -> Iterator[str]:
    """Which features are no pairs, and which pairs are not on the same windows."""
    for reason, n in compared.other_windows.items():
        yield f"{n:,} on different windows: {visible(reason)}"
    for has, lacks, missing in (
        (compared.base, compared.other, compared.missing_other),
        (compared.other, compared.base, compared.missing_base),
    ):
        yield from _missing_lines(has, lacks, missing)
    if compared.n_neither:
        yield f"{compared.n_neither:,} tried, without a score by either"


def _missing_lines(has: str, lacks: str, missing: Sequence[Missing]) -> Iterator[str]:
    for each in missing:
        yield (
            f"{each.n:,} scored by {visible(has)} alone ({figure(each.mean, _DIGITS)} on average), "
            f"by {visible(lacks)}: {visible(each.reason)}"
        )


def _moved_blocks(moved: Sequence[MovedFeature], compared: Compared) -> Iterator[RenderableType]:
    width = max(len(visible(compared.base)), len(visible(compared.other)))
    for each in moved:
        change = _signed(each.difference)
        within = "" if each.margin is None or each.margin > 0 else "  within the intervals"
        other = "" if each.is_same else "  on different windows"
        yield Text.assemble(
            "  ", (each.feature, "cyan"), f"  {change}", (f"{within}{other}", "dim")
        )
        table = plain_table("", "", "", "")
        table.show_header = False
        table.columns[0].min_width = min(width, 24)
        for title, shown in ((compared.base, each.base), (compared.other, each.other)):
            table.add_row(*_figure_cells(title, shown))
        yield Padding(table, (0, 0, 0, 4))


def _figure_cells(title: str, shown: ShownFigure) -> tuple[Text, ...]:
    return (
        Text(visible(title)),
        Text(figure(shown.value), no_wrap=True),
        Text(_certainty(shown), no_wrap=True, style="dim"),
        Text(visible(shown.text or "–")),
    )


def _certainty(shown: ShownFigure) -> str:
    if shown.n_candidates > 1:
        return f"mean of {shown.n_candidates}"
    return interval(shown.ci_low, shown.ci_high)


def _lookup_blocks(comparison: Comparison) -> Iterator[RenderableType]:
    yield Text.assemble(
        ("Against the token lookup", "bold"),
        ("  each label on its own windows, on score", "dim"),
    )
    columns = ("n>", "difference>", "from>", "to>", "better>", "worse>", "judged by")
    table = plain_table("", *columns)
    for each in comparison.lookups:
        found = each.difference
        table.add_row(
            Text(visible(each.side)),
            f"{found.mean.n:,}",
            *map(_signed, (found.mean.value, found.mean.low, found.mean.high)),
            _clearly_better(found),
            _clearly_worse(found),
            Text(visible(each.figure.simulator)),
        )
    yield Padding(table, (0, 0, 0, 2))
    yield _remark("better and worse: clearly so, by the interval of the difference itself")


def _explanations(comparison: Comparison) -> Iterator[str]:
    (base, _) = comparison.sides[0]
    yield (
        f"difference: the mean over features, {visible(base)} subtracted; from and to: where 95% "
        "of resamples of the features lie"
    )
    most = max((it.n_comparisons for it in comparison.compared), default=1)
    if most > 1:
        yield (
            f"of {most} comparisons by one simulator each interval is wider "
            f"({100 * (1 - 0.05 / most):.1f}%), so that all of them hold together at 95%"
        )
    yield (
        "clearly: by more than the intervals of the two scores allow; by chance that is at most "
        "one feature in forty each way"
    )
    if any(it.other_windows and len(it.rows) > 1 for it in comparison.compared):
        yield (
            "where windows depend on what a label says or how it did, look at all pairs: those on "
            "the same windows are alike in that"
        )
    splits = {it.figure.split for it in comparison.compared if it.rows}
    if "select" in splits:
        yield (
            "on select a feature has the mean of its candidates, since the best of them is chosen "
            "there"
        )
    if len(splits) > 1:
        yield "choose by select and report score: what is chosen by score looks better than it is"


def _remark(words: str) -> RenderableType:
    return Padding(Text(words, style="dim"), (0, 0, 0, 2))
