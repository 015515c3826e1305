"""What a run did and changed, as a message to somebody elsewhere and as a page of Prefect's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..store.run_summaries import Alert
from ..store.runs import RunRecord
from .run_sections import RunSection, comparison_lines, earlier_runs, sections_of, took
from .visible_text import visible

# With these a message could address people, or open something where it is shown.
_HARMLESS = str.maketrans({"<": "‹", ">": "›", "|": "¦", "`": "'"})


def alert_message(
    folder_name: str, alerts: Sequence[Alert], record: RunRecord | None
) -> dict[str, Any]:
    """What a webhook is sent: a text for people under `text`, and all that it is made from.

    Args:
        folder_name: of the run's folder.
        alerts: what somebody should look at.
        record: of the run; None where it could not be written.
    """
    return {
        "text": "\n".join(_text(folder_name, alerts, record)),
        "run": folder_name,
        "alerts": [{"kind": alert.kind, "text": alert.text} for alert in alerts],
        "record": None if record is None else _plain(record.as_dict()),
    }


def markdown_page(folder_name: str, record: RunRecord) -> str:
    """A run as markdown."""
    lines = [f"# {_safe(folder_name)}", "", _safe(_heading(record)), ""]
    if record.summary is not None:
        if (others := earlier_runs(record.summary)) is not None:
            lines += [others, ""]
        for alert in record.summary.alerts:
            lines += [f"**Alert:** {_safe(alert.text)}", ""]
    for section in sections_of(record):
        lines += _section(section)
    return "\n".join(lines)


def _text(folder_name: str, alerts: Sequence[Alert], record: RunRecord | None) -> Iterator[str]:
    when = "" if record is None else f": {_heading(record)}"
    yield _safe(f"Scopenote, {folder_name}{when}")
    for alert in alerts:
        yield f"• {_safe(alert.text)}"
    if record is None or (summary := record.summary) is None:
        return
    for each in summary.labels:
        failed = sum(each.failures.values())
        by = each.explainer if each.model is None else f"{each.explainer}, {each.model}"
        yield _safe(f"{each.n:,} labels by {by}" + (f", {failed:,} failed" if failed else ""))
    yield from map(_safe, comparison_lines(summary))
    for section in sections_of(record):
        if section.title == "Cost":
            yield from map(_safe, section.lines)


def _heading(record: RunRecord) -> str:
    began = "" if record.started_at is None else f"{record.started_at:%Y-%m-%d %H:%M %Z}, "
    return f"{record.command or '–'}, {began}{took(record)}, {record.status or '–'}"


def _section(section: RunSection) -> Iterator[str]:
    yield from (f"## {section.title}", "")
    yield _row(name.rstrip(">") for name in section.columns)
    yield _row("--:" if name.endswith(">") else "---" for name in section.columns)
    yield from (_row(map(_safe, row)) for row in section.rows)
    yield ""
    for line in section.lines:
        yield from (_safe(line), "")


def _row(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def _safe(text: str) -> str:
    return visible(text).translate(_HARMLESS)


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """What JSON has no word for as text."""
    return {
        name: value.isoformat() if hasattr(value, "isoformat") else value
        for name, value in content.items()
    }
