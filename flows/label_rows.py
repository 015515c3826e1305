"""A feature's labels on a terminal: the one in force, others, and those that came to nothing."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..store.feature_labels import FeatureLabels, ShownLabel
from ..store.records import FeatureId
from .visible_text import visible

_UNKNOWN = "text that is not known: it may have been text that the label is scored on"


def render_labels(feature_id: FeatureId, labels: FeatureLabels) -> RenderableType:
    """The labels of a feature by themselves."""
    facts = facts_grid()
    for name, shown in label_rows(labels):
        facts.add_row(name, shown)
    return Group(Text(str(feature_id), style="bold cyan"), Padding(facts, (0, 0, 0, 2)))


def facts_grid() -> Table:
    """A grid of names and what they stand for."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    return facts


def label_rows(labels: FeatureLabels) -> Iterator[tuple[str, Text]]:
    """The label in force, by whom it is, and others: rows for such a grid."""
    label = labels.in_force
    if label is not None:
        yield "label", Text(visible(label.text or "–"), style="bold")
        yield "by", Text(visible(label.by) + _votes(label))
        if label.source == "imported":
            yield "from", Text(_UNKNOWN, style="dim")
        if label.explanation and label.explanation != label.text:
            yield "because", Text(visible(label.explanation))
    else:
        yield "label", Text("none" if labels.failed else "none yet", style="bold")
    for other in labels.others:
        by = f"  {visible(other.by)}{_votes(other)}"
        yield "also", Text.assemble(visible(other.text or "–"), (by, "dim"))
    for failed in labels.failed:
        reason = f"{failed.by}: {failed.reason or 'no reason given'}"
        yield "failed", Text(visible(reason), style="red")


def _votes(label: ShownLabel) -> str:
    if not (label.n_up or label.n_down):
        return ""
    return f"; {label.n_up:,} for it, {label.n_down:,} against it"
