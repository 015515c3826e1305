"""Tables on a terminal without lines."""

from __future__ import annotations

from rich.table import Table


def plain_table(*columns: str, title: str | None = None) -> Table:
    """A table without lines; a column whose name ends in `>` is one of figures."""
    table = Table(
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
        header_style="dim",
        title=title,
        title_justify="left",
        title_style="bold",
    )
    for column in columns:
        is_figure = column.endswith(">")
        table.add_column(
            column.rstrip(">"),
            justify="right" if is_figure else "left",
            no_wrap=is_figure,
            overflow="fold",
        )
    return table
