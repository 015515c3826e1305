"""What a run did and changed, on a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from ..store.runs import RunRecord
from .plain_tables import plain_table
from .run_sections import FAILURES, STAGES, RunSection, earlier_runs, sections_of, took
from .visible_text import visible


def last_run_blocks(record: RunRecord, title: str = "Last run") -> Iterator[RenderableType]:
    """A run, as `scopenote status` and the end of a run have it."""
    from .summary import STATUS_STYLES, moment

    status = record.status or "–"
    yield Text.assemble(
        (title, "bold"),
        f"  {moment(record.started_at)}  {record.command or '–'}  {took(record)}  ",
        (status, STATUS_STYLES.get(status, "")),
    )
    yield from summary_blocks(record)


def summary_blocks(record: RunRecord, has_stages: bool = True) -> Iterator[RenderableType]:
    """What a run changed, under a heading that is there already.

    Args:
        record: the run.
        has_stages: whether what its stages did, and what failed in them, is to be said as well.
    """
    if record.summary is not None:
        if (others := earlier_runs(record.summary)) is not None:
            yield _indented(Text(others, style="dim"))
        if record.summary.error is not None and not record.summary.alerts:
            yield _indented(Text(visible(record.summary.error), style="yellow"))
        for alert in record.summary.alerts:
            line = Text.assemble(("alert  ", "bold red"), visible(alert.text))
            yield _indented(line)
    for note in record.notes:
        yield _indented(Text(visible(note), style="yellow"))
    left_out = () if has_stages else (STAGES, FAILURES)
    for section in sections_of(record):
        if section.title not in left_out:
            if section.title != STAGES:
                yield ""
            yield _indented(_table(section))
            for words in section.lines:
                yield _indented(Text(visible(words), style="dim"))


def _table(section: RunSection) -> RenderableType:
    table = plain_table(*section.columns)
    for row in section.rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    return table


def _indented(block: RenderableType) -> Padding:
    return Padding(block, (0, 0, 0, 2))
