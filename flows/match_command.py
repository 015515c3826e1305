"""The command that follows a feature through layers, sites and models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .terminal import print_json, print_page


def match(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    feature: Annotated[
        str, typer.Argument(metavar="FEATURE", help="model/source/index, source/index or index.")
    ],
    other: Annotated[
        Path | None,
        typer.Option(
            "--in",
            metavar="OTHER_RUN",
            help="Counterparts in another run, such as that of the instruction-tuned model.",
        ),
    ] = None,
    top: Annotated[
        int,
        typer.Option("--top", min=1, help="How many of each SAE, by cosine and by co-firing."),
    ] = 1,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """A feature's counterparts in other layers, sites and models."""
    from .match_feature import match_feature
    from .match_page import render_match

    found = match_feature(run, feature, other, top)
    if json:
        print_json(found.as_dict())
    else:
        print_page(render_match(found))
