"""The command that shows what fires on a text of one's own, and how its next token forms."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .terminal import complain, print_json, print_page


def inspect(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The text; - reads standard input.")],
    sae: Annotated[
        list[str] | None,
        typer.Option("--sae", metavar="SAE", help="Only this SAE; may be repeated."),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(
            "--top",
            min=1,
            help="How many features of each token; by default 3 of a short text and 1 of a long "
            "one, as JSON all.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Also as a picture: a .png or .svg."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """What fires on each token of a text, and the logit lens."""
    if plot is not None:
        from .inspect_plot import require_picture

        require_picture(plot)
    from .inspect_page import render_inspection
    from .inspect_text import inspect_text
    from .loaded_run import LoadedRun

    if text == "-":
        text = sys.stdin.read()
    found = inspect_text(LoadedRun(run), text, sae or ())
    if plot is not None:
        from .inspect_plot import draw_inspection

        for words in draw_inspection(found, plot):
            complain(words)
    if json:
        print_json(found.as_dict(top))
    else:
        print_page(render_inspection(found, top))
