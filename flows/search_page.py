"""What a search found, on a terminal: a family a row, its best match first."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from ..store.text_ranking import TextMatch
from .plain_tables import plain_table
from .search_labels import FoundFeature, SearchReport
from .show_feature import figure, interval, percentage
from .terminal import program
from .visible_text import visible


def render_search(report: SearchReport, run: Path) -> RenderableType:
    """The page, for a console of any width."""
    blocks: list[RenderableType] = [_heading(report)]
    if report.families:
        blocks += ["", _table(report)]
    blocks += ["", *_remarks(report, run)]
    return Group(*blocks)


def _heading(report: SearchReport) -> Text:
    n = len(report.families)
    if not n:
        return Text("Nothing found", style="bold")
    found = f"{n:,} of {report.n_families:,}" if n < report.n_families else f"{n:,}"
    how = "by text and by meaning" if report.model else "by text"
    return Text.assemble((f"{visible(report.text)}", "bold"), (f"  {found}, {how}", "dim"))


def _table(report: SearchReport) -> RenderableType:
    table = plain_table("score>", "interval", "density>", "feature", "label")
    for family in report.families:
        best = family[0]
        label = Text(visible(best.row.text or ""), style="bold")
        if more := _more(family):
            label.append(f"\n{more}", style="dim not bold")
        table.add_row(
            figure(best.row.score),
            Text(interval(best.row.ci_low, best.row.ci_high), no_wrap=True, style="dim"),
            percentage(best.row.density),
            Text(str(best.row.feature_id), style="cyan"),
            label,
        )
    return table


def _more(family: tuple[FoundFeature, ...]) -> str:
    """Who else is of a family, in a line."""
    others = family[1:]
    if not others:
        return ""
    here = family[0].row.sae_id
    named = [
        each.row.name if each.row.sae_id == here else str(each.row.feature_id) for each in others
    ]
    return (
        f"+{len(others):,} nearly the same: {', '.join(named[:3])}{', …' if len(named) > 3 else ''}"
    )


def _remarks(report: SearchReport, run: Path) -> Iterator[RenderableType]:
    words = "have a word of it" if report.match is TextMatch.WORDS else "contain it"
    yield Text(f"{report.n_text:,} of {report.n_chosen:,} labels {words}", style="dim")
    if report.why_text_alone:
        yield Text(f"By text alone: {visible(report.why_text_alone)}", style="dim")
    elif report.model:
        yield Text(f"Meaning by {visible(report.model)}", style="dim")
        if report.n_without_vector:
            command = f"{program()} search {shlex.quote(str(run))} --embed"
            yield Text(f"{report.n_without_vector:,} labels have no vector yet", style="yellow")
            yield Padding(Text(command, style="cyan", no_wrap=True), (0, 0, 0, 2))
