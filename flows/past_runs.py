"""The command that lists who worked on a run's folder, and what they did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .terminal import print_json, print_page
from .working import published

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..store.runs import RunRecord


def runs(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    n: Annotated[int, typer.Option("--n", min=1, help="How many, the latest first.")] = 20,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """What each invocation on a run did, and how it ended."""
    from ..store.runs import read_runs

    with published(run) as (_, store):
        found = read_runs(store.connection, n)
    if json:
        print_json([each.as_dict() for each in found])
    else:
        print_page(render_runs(found))


def render_runs(records: Sequence[RunRecord]) -> RenderableType:
    """The page of `scopenote runs`: an invocation a block, the latest first."""
    from rich.console import Group
    from rich.text import Text

    from .run_page import summary_blocks

    if not records:
        return Text("Nobody has worked on this run yet.")
    blocks: list[RenderableType] = []
    for record in records:
        changed = summary_blocks(record, has_stages=False)
        blocks += [*_heading(record), *_deeds(record), *changed, ""]
    return Group(*blocks[:-1])


def _heading(record: RunRecord) -> Iterator[RenderableType]:
    from rich.text import Text

    from .run_sections import took
    from .summary import STATUS_STYLES, moment

    status = record.status or "–"
    yield Text.assemble(
        (moment(record.started_at), "bold"),
        f"  {record.command or '–'}  {took(record)}  ",
        (status, STATUS_STYLES.get(status, "")),
        (f"  {record.run_id}, version {record.version or '–'}", "dim"),
    )


def _deeds(record: RunRecord) -> Iterator[RenderableType]:
    from rich.padding import Padding
    from rich.text import Text

    from .visible_text import visible

    for stage in record.stages:
        for line in _words_of(stage):
            yield Padding(Text(visible(f"{stage['stage']}: {line}")), (0, 0, 0, 2))


def _words_of(stage: dict[str, Any]) -> Iterator[str]:
    from .progress import duration
    from .run_sections import deed, plan_lines

    seconds = stage.get("seconds")
    yield deed(stage) + (f", in {duration(seconds)}" if seconds else "")
    yield from plan_lines(stage)
    if stage.get("waiting"):
        yield f"{stage['waiting']:,} wait for answers"
    for reason, n in stage.get("failures", {}).items():
        yield f"{n:,} failed: {reason}"
    yield from stage.get("notes", ())
