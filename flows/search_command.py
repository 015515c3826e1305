"""The command that searches labels by what they say and mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..store.errors import ExitCode, UserMistake
from .terminal import complain, print_json, print_page, program
from .working import configured_run, published

if TYPE_CHECKING:
    from ..store.run_folder import RunFolder
    from .search_settings import SearchSection


def search(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="What the labels should say or mean.")
    ] = None,
    sae: Annotated[
        str, typer.Option("--sae", metavar="SAE", help="Only this SAE's features.")
    ] = "",
    layer: Annotated[
        int | None, typer.Option("--layer", min=0, help="Only SAEs of this layer.")
    ] = None,
    site: Annotated[str, typer.Option("--site", help="Only SAEs of this site.")] = "",
    min_score: Annotated[
        float | None,
        typer.Option("--min-score", metavar="R", help="Only labels that score at least this."),
    ] = None,
    min_density: Annotated[
        float | None,
        typer.Option(
            "--min-density", metavar="SHARE", help="Only features active on this share of tokens."
        ),
    ] = None,
    max_density: Annotated[
        float | None,
        typer.Option("--max-density", metavar="SHARE", help="Or on no more than this."),
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="How many meanings.")] = 10,
    flat: Annotated[
        bool, typer.Option("--flat", help="Each feature by itself, also where nearly the same.")
    ] = False,
    text_only: Annotated[
        bool, typer.Option("--text-only", help="By words alone, without loading a model.")
    ] = False,
    embed: Annotated[
        bool,
        typer.Option("--embed", help="First make the vectors that labels lack, to find meanings."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Find features by what their labels say or mean."""
    if text is None and not embed:
        raise UserMistake(
            "There is nothing to search for.",
            found="no text",
            mend=f'`{program()} search RUN "expressions of doubt"`',
        )
    from ..store.feature_list import FeatureQuery
    from .query_vector import TEXT_ONLY, query_vector
    from .search_labels import require_choice, search_run
    from .search_page import render_search

    filters = FeatureQuery(
        sae=sae,
        site=site,
        layer=layer,
        min_score=min_score,
        min_density=min_density,
        max_density=max_density,
    )
    status = _embed(run) if embed else ExitCode.DONE
    if text is None:
        raise typer.Exit(status)
    with published(run) as (folder, store):
        require_choice(store, text, filters, run)
        settings = _settings(folder)
        asked = TEXT_ONLY if text_only else query_vector(store, folder, settings, text)
        report = search_run(store, text, filters, n, flat, asked)
    if json:
        print_json(report.as_dict())
    else:
        print_page(render_search(report, run))
    raise typer.Exit(status)


def _embed(run: Path) -> ExitCode:
    """Makes the vectors that labels lack; the exit status of that."""
    from .embed_labels import COMMAND, embed_labels
    from .finish_run import finished
    from .progress import Progress
    from .reports import RunReport

    config, folder = configured_run(run, None)
    with folder.lock(f"scopenote {COMMAND}"), Progress() as progress:
        report, status = finished(
            lambda: RunReport((embed_labels(config, folder, progress),)), folder, to_prefect=False
        )
    for line in report.stages[0].remarks():
        complain(line)
    return status


def _settings(folder: RunFolder) -> SearchSection:
    """What the run says of searching; a database alone says nothing."""
    from .config import load_config
    from .search_settings import SearchSection

    return load_config(folder.config_file).search if folder.exists else SearchSection()
