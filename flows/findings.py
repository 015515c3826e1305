"""What `scopenote doctor` found, line by line: a table on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from .visible_text import visible


class Verdict(StrEnum):
    """What a line says of what was found."""

    OK = "ok"
    WARNING = "warning"
    FAIL = "fail"
    # Nothing was examined, so nothing is well or ill: never counted as ok.
    NOT_AT_HAND = "not at hand"


# Of 80 columns, so that half are left for what was found.
_MOST_NAME_WIDTH = 24
_STYLES = {
    Verdict.OK: "green",
    Verdict.WARNING: "yellow",
    Verdict.FAIL: "bold red",
    Verdict.NOT_AT_HAND: "dim",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line.

    Attributes:
        name: what was looked at.
        found: what was met, with the arithmetic where there is any.
        verdict: what to think of it.
        mend: what to do about it, where possible the command to type.
    """

    name: str
    found: str
    verdict: Verdict
    mend: str | None = None


@dataclass(frozen=True, slots=True)
class FindingGroup:
    """Lines under one heading."""

    title: str
    findings: Sequence[Finding]


def has_failed(groups: Iterable[FindingGroup]) -> bool:
    """Whether anything fails; warnings and what is not at hand do not count."""
    return any(finding.verdict is Verdict.FAIL for group in groups for finding in group.findings)


def print_findings(groups: Sequence[FindingGroup], console: Console) -> None:
    """Prints the table if the console is a terminal, and else one line a finding."""
    if console.is_terminal:
        console.print(render_findings(groups))
        return
    for line in plain_lines(groups):
        console.print(Text(line), soft_wrap=True)


def render_findings(groups: Sequence[FindingGroup]) -> RenderableType:
    """The findings as a table for each heading, and a line that counts them."""
    blocks: list[RenderableType] = []
    names = [visible(finding.name) for group in groups for finding in group.findings]
    name_width = min(max(map(len, names), default=0), _MOST_NAME_WIDTH)
    for group in groups:
        table = Table(
            box=None,
            padding=(0, 2, 0, 0),
            pad_edge=False,
            show_header=False,
            expand=True,
            title=group.title,
            title_justify="left",
            title_style="bold",
        )
        table.add_column(width=len(Verdict.NOT_AT_HAND), no_wrap=True)
        table.add_column(width=name_width, overflow="fold")
        table.add_column(ratio=1, overflow="fold")
        for finding in group.findings:
            found = Text(visible(finding.found))
            if finding.mend:
                found.append(f"\nto mend: {visible(finding.mend)}", style="dim")
            style = _STYLES[finding.verdict]
            table.add_row(Text(finding.verdict, style=style), visible(finding.name), found)
        blocks += [table, ""]
    return Group(*blocks, Text(_counted(groups), style="bold"))


def plain_lines(groups: Sequence[FindingGroup]) -> Iterator[str]:
    """The findings as text for a file or a pipe, one line each."""
    for group in groups:
        yield f"# {group.title}"
        for finding in group.findings:
            mend = f" [to mend: {visible(finding.mend)}]" if finding.mend else ""
            yield f"{finding.verdict}: {visible(finding.name)}: {visible(finding.found)}{mend}"
    yield f"# {_counted(groups)}"


def _counted(groups: Sequence[FindingGroup]) -> str:
    verdicts = [finding.verdict for group in groups for finding in group.findings]
    return ", ".join(
        f"{verdicts.count(verdict)} {verdict}" for verdict in Verdict if verdict in verdicts
    )
