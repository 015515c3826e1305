"""Schedules on a terminal: what runs when, what is next, and how the last one ended."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

    from .deployments import Deployment


def render_deployment(found: Deployment) -> RenderableType:
    """One schedule, some lines."""
    from rich.console import Group
    from rich.text import Text

    from .visible_text import visible

    lines = [Text(visible(found.run), style="bold")]
    if found.is_paused:
        when = Text("  paused", style="yellow")
    else:
        when = Text(f"  {', '.join(found.schedules) or 'no schedule'}")
    lines.append(when)
    if found.next_runs and not found.is_paused:
        lines.append(Text(f"  next: {', '.join(_moment(each) for each in found.next_runs)}"))
    lines += [Text(f"  when busy: {found.when_busy}; pool: {found.pool}", style="dim")]
    if found.last_state is not None and found.last_at is not None:
        said = f": {' '.join((found.last_message or '').split())}" if found.last_message else ""
        lines.append(Text(visible(f"  last: {found.last_state}, {_moment(found.last_at)}{said}")))
    return Group(*lines)


def render_deployments(found: Sequence[Deployment]) -> RenderableType:
    """The page of `--list`."""
    from rich.console import Group
    from rich.text import Text

    if not found:
        return Text("There are no schedules of ours on this server.")
    return Group(*(render_deployment(each) for each in found))


def _moment(when: datetime) -> str:
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
