"""An estimate on paper, on a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..label.pricing import in_dollars
from .estimate_scale import PaperEstimate
from .paper_words import hours_said, rounded


def render_at_scale(estimate: PaperEstimate) -> RenderableType:
    """The page of `scopenote estimate --at-scale`."""
    figures = _table()
    figures.add_column("", overflow="fold")
    figures.add_column("figure", justify="right", no_wrap=True)
    figures.add_column("from", overflow="fold", style="dim")
    for line in estimate.lines:
        figures.add_row(Text(line.name, style="cyan"), line.said, Text(line.basis))
    head = Text.assemble(
        "On paper, for ", (f"{estimate.tokens:,} tokens", "bold"), "; nothing was downloaded."
    )
    if not estimate.asked:
        return Group(head, "", figures, "", Text("No language model is asked.", style="dim"))
    asked = _table()
    asked.add_column("asking for", overflow="fold")
    for column in ("labels", "calls", "tokens read", "written", "dollars", "time"):
        asked.add_column(column, justify="right", no_wrap=True)
    asked.add_column("from", overflow="fold", style="dim")
    for row in estimate.asked:
        asked.add_row(
            Text(row.what, style="cyan"),
            rounded(row.n_labels),
            rounded(row.n_calls),
            rounded(row.prompt_tokens),
            rounded(row.completion_tokens),
            "unknown" if row.usd is None else in_dollars(row.usd),
            "" if row.hours is None else hours_said(row.hours),
            Text(row.basis),
        )
    usd = "unknown" if estimate.usd is None else in_dollars(estimate.usd)
    return Group(head, "", figures, "", asked, "", Text.assemble("In all ", (usd, "bold"), "."))


def _table() -> Table:
    return Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
