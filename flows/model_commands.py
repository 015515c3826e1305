"""The commands about asking a language model: what it would cost, and what was made of replies."""

from __future__ import annotations

import sys
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..store.errors import ExitCode, UserMistake
from .terminal import complain, print_json, print_page
from .working import published, run_folder, working

if TYPE_CHECKING:
    from .config import Config
    from .estimate import Estimate
    from .estimate_scale import Machines
    from .replay import Replay

BudgetUsd = Annotated[
    str | None,
    typer.Option(
        "--budget-usd",
        metavar="DOLLARS",
        help="Stop before the first call with which the run's calls, earlier ones included, might "
        "cost more; the same command with more goes on.",
    ),
]


def in_usd(budget: str | None) -> Decimal | None:
    """An amount of dollars as it was typed.

    Raises:
        UserMistake: it is none.
    """
    if budget is None:
        return None
    try:
        usd = Decimal(budget.removeprefix("$"))
    except InvalidOperation:
        usd = Decimal("NaN")
    if not usd.is_finite() or usd < 0:
        raise UserMistake(
            "The budget is not an amount of dollars.",
            where="`--budget-usd`",
            found=budget,
            expected="0 or more, such as 2.50",
        )
    return usd


def estimate(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="A configuration, or the folder of a run.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="RUN", help="The run's folder, if not named after CONFIG."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    at_scale: Annotated[
        bool,
        typer.Option("--at-scale", help="On paper, from CONFIG alone, also where a run is there."),
    ] = False,
    saes: Annotated[
        list[str] | None,
        typer.Option(
            "--saes",
            metavar="PATTERN",
            help="On paper: these SAEs of Gemma Scope instead of CONFIG's, such as "
            "'gemma-scope-2b-pt-*/**' or 'gemma-2-2b/*-gemmascope-res-16k'. May be repeated.",
        ),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=1, help="On paper: tokens of the corpus.")
    ] = None,
    machines: Annotated[
        int, typer.Option("--machines", min=1, help="On paper: machines with a GPU each.")
    ] = 1,
    tokens_per_second: Annotated[
        float | None,
        typer.Option(
            "--tokens-per-second",
            min=0.001,
            help="On paper: what one machine was measured to collect in one pass; by default "
            "worked out from the models' shapes.",
        ),
    ] = None,
    seconds_per_call: Annotated[
        float,
        typer.Option("--seconds-per-call", min=0, help="On paper: how long a model takes."),
    ] = 2.0,
) -> None:
    """What missing labels would cost, or on paper a whole job."""
    from ..store.run_folder import RunFolder
    from .config import load_config

    folder = out
    if config.is_dir():
        folder, config = folder or config, RunFolder.open_existing(config).config_file
    settings = load_config(config)
    folder = folder or Path(config.stem)
    on_paper = any((saes, tokens, tokens_per_second, machines > 1))
    if at_scale or on_paper or not RunFolder(folder).database.exists():
        from .estimate_scale import Machines

        spread = Machines(machines, tokens_per_second, seconds_per_call=seconds_per_call)
        _estimate_at_scale(settings, saes or [], tokens, spread, json)
        return
    found = _estimate(folder, settings)
    if json:
        print_json(found.as_dict())
    else:
        _print_estimate(found)


def replay(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    label_id: Annotated[
        str, typer.Argument(metavar="LABEL_ID", help="A label's id, or how it begins.")
    ],
    prompt: Annotated[
        bool, typer.Option("--prompt", help="Also print the request and the raw reply.")
    ] = False,
) -> None:
    """Derive a label again from its stored reply."""
    from .replay import replay_label
    from .replay_page import render_replay

    with published(run) as (_, store):
        found: Replay = replay_label(store, label_id)
    print_page(render_replay(found, prompt))
    raise typer.Exit(ExitCode.FAILED if found.differing else ExitCode.DONE)


def agree_on_cost(
    command: str, out: Path, config: Config, again: list[str], use_own_server: bool, is_agreed: bool
) -> None:
    """Collects, says what asking the model would cost, and asks whether to.

    Raises:
        UserMistake: nobody is there to answer, and `--yes` was not given.
        typer.Exit: the answer was no.
    """
    folder = run_folder(out, config)
    with working(folder, command, again, use_own_server) as progress:
        from .collect_contexts import collect_contexts

        collect_contexts(config, folder, progress)
    found = _estimate(folder.path, config)
    if not found.n_calls:
        return
    _print_estimate(found)
    if is_agreed:
        return
    if not sys.stdin.isatty():
        raise UserMistake(
            "Whether to ask the model is yours to say, and there is no terminal to ask you.",
            mend="add `--yes`",
        )
    if not typer.confirm(f"Ask {' and '.join(found.models)}?", err=True):
        complain("Nothing was sent. What was collected is kept.")
        raise typer.Exit(ExitCode.DONE)


def _estimate(folder: Path, config: Config) -> Estimate:
    from .estimate import estimate_labels

    asked = [kind for kind in config.score.judges if kind != "local"]  # which only reads
    if not config.explain.prompted and not asked:
        raise UserMistake(
            "No explainer or simulator of this run asks a model, so there is nothing to pay for.",
            where=str(folder),
            found=f"explainers = {list(config.explain.explainers)}, simulators = "
            f"{list(config.score.simulators)}",
            mend="name another in `explain.explainers`, and the model in `explain.chat.model`",
        )
    with published(folder) as (_, store):
        return estimate_labels(store, config.explain, config.score)


def _estimate_at_scale(
    config: Config, patterns: list[str], tokens: int | None, machines: Machines, as_json: bool
) -> None:
    from .estimate_scale import estimate_at_scale
    from .estimate_scale_page import render_at_scale
    from .paper_saes import paper_saes

    found = estimate_at_scale(config, paper_saes(config, patterns), tokens, machines)
    if as_json:
        print_json(found.as_dict())
    else:
        print_page(render_at_scale(found))


def _print_estimate(found: Estimate) -> None:
    from .estimate import render_estimate

    print_page(render_estimate(found))
