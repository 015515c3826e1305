"""What a search found, on a terminal: a family a row, its best match first."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from ..store.feature_list import FeatureRow
from ..store.text_ranking import TextMatch
from .plain_tables import plain_table
from .search_labels import FoundFeature, SearchReport
from .show_feature import figure, interval, percentage
from .terminal import program
from .visible_text import visible

_NAMED = 3


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
        return Text(f"Nothing found for {visible(report.text)}", style="bold")
    unit = "meaning" if any(len(family) > 1 for family in report.families) else "feature"
    counted = (
        f"the first {n:,} {unit}s" if n < report.n_families else f"{n:,} {unit}{'s' * (n > 1)}"
    )
    how = "by text and by meaning" if report.model else "by text"
    return Text.assemble((visible(report.text), "bold"), (f"  {counted}, {how}", "dim"))


def _table(report: SearchReport) -> RenderableType:
    table = plain_table("score>", "interval", "label")
    for family in report.families:
        best = family[0].row
        said = Text.assemble((visible(best.text or ""), "bold"), "\n", _where(best))
        if more := _more(family):
            said.append(f"\n{more}", style="dim")
        table.add_row(
            figure(best.score),
            Text(interval(best.ci_low, best.ci_high), no_wrap=True, style="dim"),
            said,
        )
    return table


def _where(row: FeatureRow) -> Text:
    density = f"  {percentage(row.density)} of tokens"
    return Text.assemble((f"{row.sae_id}/{row.name}", "cyan"), (density, "dim"))


def _more(family: tuple[FoundFeature, ...]) -> str:
    """Who else is of a family, in a line; of the same SAE by number."""
    here = family[0].row.sae_id
    others = [
        each.row.name if each.row.sae_id == here else f"{each.row.sae_id}/{each.row.name}"
        for each in family[1:]
    ]
    if not others:
        return ""
    listed = ", ".join(others[:_NAMED]) + (", …" if len(others) > _NAMED else "")
    return f"and {len(others):,} nearly the same: {listed}"


def _remarks(report: SearchReport, run: Path) -> Iterator[RenderableType]:
    words = "with a word of it" if report.match is TextMatch.WORDS else "that contain it"
    yield Text(f"{report.n_text:,} of {report.n_chosen:,} labels {words}", style="dim")
    if report.why_text_alone:
        yield Text(f"By text alone: {visible(report.why_text_alone)}", style="dim")
    elif report.model:
        yield Text(f"Meaning by {visible(report.model)}", style="dim")
        if report.n_without_vector:
            n = report.n_without_vector
            lacking = f"{n:,} label{' has' if n == 1 else 's have'} no vector yet"
            command = f"{program()} search {shlex.quote(str(run))} --embed"
            yield Text(lacking, style="yellow")
            # Never wrapped or cropped: it is there to be copied.
            yield Text(f"  {command}", style="cyan", no_wrap=True, overflow="ignore")
