"""The command line: arguments in, exit status out; data on standard output, all else on error.

This module owns no logic and imports nothing heavy, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from ..store.errors import ExitCode, UserMistake
from .compare_command import compare
from .export_command import export
from .hand_commands import label, vote
from .import_command import import_labels
from .inspect_command import inspect
from .match_command import match
from .model_commands import BudgetUsd, agree_on_cost, estimate, in_usd, replay
from .past_runs import runs
from .schedule_command import schedule
from .search_command import search
from .serve_command import serve
from .stage_commands import RunnerName, run_shard, run_stage, run_whole_job
from .steer_command import steer
from .terminal import answer, print_json, print_page
from .working import published

if TYPE_CHECKING:
    from ..store.run_folder import RunFolder
    from .config import Config
    from .progress import Progress
    from .reports import StageReport

app = typer.Typer(
    name="scopenote",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Help in boxes takes a fifth of a second longer (rich and markdown to import).
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Label the features of a language model's sparse autoencoders, and know which labels "
    "to trust.",
    epilog="Exit status: 0 done, 1 failed, 2 your mistake, 3 finished with failures stored, "
    "4 finished and an alert raised.",
)


class SplitName(StrEnum):
    """The splits, as `--split` takes them."""

    explain = "explain"
    select = "select"
    score = "score"


class KindName(StrEnum):
    """The kinds of context, as `--kind` takes them."""

    top = "top"
    sample = "sample"


Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]
ConfigFile = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="A configuration, or the folder of a run.")
]
FirstConfig = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="CONFIG", help="The configuration, where RUN is still to be made."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="As JSON.")]
AllowMismatch = Annotated[
    bool,
    typer.Option(
        "--allow-mismatch",
        help="Go on also where an SAE fires or reconstructs as if it read another tensor.",
    ),
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Ask a model again where it gave no reply before.")
]
OwnServer = Annotated[
    bool,
    typer.Option(
        "--prefect-server", help="Report to the Prefect server of your own profile or environment."
    ),
]


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        from .. import __version__

        typer.echo(f"scopenote {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option("--out", metavar="RUN", help="The folder of the run.")
    ] = Path("demo"),
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="Also have some features labelled by this model, at OPENAI_BASE_URL or else "
            "OpenAI; what it costs is said first.",
        ),
    ] = None,
    features: Annotated[
        int, typer.Option("--features", min=1, help="With --model: how many features.")
    ] = 50,
    yes: Annotated[
        bool, typer.Option("--yes", help="With --model: ask it without asking you.")
    ] = False,
    budget_usd: BudgetUsd = None,
    runner: RunnerName = None,
    prefect_server: OwnServer = False,
) -> None:
    """The whole job on a small embedded model, without downloads."""
    from .config import demo_config

    again = ["demo", "--out", str(out)]
    config = demo_config()
    if model is not None:
        config = demo_config(model=model, features=features)
        again += ["--model", model, "--features", str(features)]
        agree_on_cost("demo", out, config, again, prefect_server, yes)
    run_whole_job("demo", out, config, again, prefect_server, budget=budget_usd, runner=runner)


@app.command()
def run(
    config: ConfigFile,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="RUN",
            help="The folder of the run; otherwise named after CONFIG, here.",
        ),
    ] = None,
    allow_mismatch: AllowMismatch = False,
    budget_usd: BudgetUsd = None,
    runner: RunnerName = None,
    prefect_server: OwnServer = False,
) -> None:
    """Collect, explain and score: all that is not there already."""
    from ..store.run_folder import RunFolder
    from .config import load_config

    if config.is_dir():
        config = RunFolder.open_existing(config).config_file
    settings = load_config(config)
    if out is None:
        out = config.parent if config.name == "run.toml" else Path(config.stem)
    again = ["run", str(out)]
    run_whole_job("run", out, settings, again, prefect_server, allow_mismatch, budget_usd, runner)


@app.command()
def collect(
    run: Run,
    config: FirstConfig = None,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N",
            help="Only this one of N shards, and only its parts: they may be collected at once, "
            "on any machines; `collect` without it brings together what is there.",
        ),
    ] = None,
    allow_mismatch: AllowMismatch = False,
    runner: RunnerName = None,
    prefect_server: OwnServer = False,
) -> None:
    """Keep the text that each feature responds to."""
    if shard is not None:
        run_shard(run, shard, config, allow_mismatch, prefect_server, runner)

    def work(settings: Config, folder: RunFolder, progress: Progress) -> StageReport:
        from .collect_contexts import collect_contexts

        return collect_contexts(settings, folder, progress, allow_mismatch)

    run_stage("collect", work, run, config, prefect_server, runner)


@app.command()
def explain(
    run: Run,
    config: FirstConfig = None,
    budget_usd: BudgetUsd = None,
    wait: Annotated[
        bool,
        typer.Option("--wait", help="With `batch = true`: stay until no batch is under way."),
    ] = False,
    retry_failed: RetryFailed = False,
    runner: RunnerName = None,
    prefect_server: OwnServer = False,
) -> None:
    """Write labels from the contexts that were collected."""
    budget = in_usd(budget_usd)

    def work(settings: Config, folder: RunFolder, progress: Progress) -> StageReport:
        from .explain_features import explain_features

        return explain_features(settings, folder, progress, budget, retry_failed, wait)

    run_stage("explain", work, run, config, prefect_server, runner)


@app.command()
def score(
    run: Run,
    config: FirstConfig = None,
    budget_usd: BudgetUsd = None,
    retry_failed: RetryFailed = False,
    recompute: Annotated[
        bool,
        typer.Option(
            "--recompute",
            help="Compute the scores that are there again, from stored predictions; no model is "
            "asked.",
        ),
    ] = False,
    runner: RunnerName = None,
    prefect_server: OwnServer = False,
) -> None:
    """Score the labels on text that none was written from."""
    budget = in_usd(budget_usd)
    if recompute and (retry_failed or budget_usd is not None):
        raise UserMistake(
            "`--recompute` asks no model, so there is nothing to retry and nothing to spend.",
            mend="leave out the other option",
        )

    def work(settings: Config, folder: RunFolder, progress: Progress) -> StageReport:
        if recompute:
            from .recompute_scores import recompute_scores

            return recompute_scores(settings, folder, progress)
        from .score_labels import score_labels

        return score_labels(settings, folder, progress, budget, retry_failed)

    run_stage("score", work, run, config, prefect_server, runner)


@app.command()
def status(run: Run, json: Json = False) -> None:
    """How far a run is, and how good its labels are."""
    from ..store.status import read_status
    from .summary import render_status

    with published(run) as (folder, store):
        found = read_status(store.connection, folder.database)
    if json:
        print_json(found.as_dict())
    else:
        print_page(render_status(found, folder))


@app.command()
def show(
    run: Run,
    feature: Annotated[
        str, typer.Argument(metavar="FEATURE", help="model/source/index, source/index or index.")
    ],
    split: Annotated[
        SplitName, typer.Option("--split", help="Which split's contexts.")
    ] = SplitName.explain,
    kind: Annotated[
        KindName, typer.Option("--kind", help="Highest peaks, or drawn at random.")
    ] = KindName.top,
    n: Annotated[int, typer.Option("--n", min=0, help="How many contexts.")] = 10,
    json: Json = False,
) -> None:
    """A feature: label, scores, statistics, contexts."""
    from ..store.feature_page import find_feature, read_feature_page
    from .show_feature import render_feature

    with published(run) as (_, store):
        feature_id = find_feature(store.connection, feature)
        page = read_feature_page(store.connection, feature_id, split.value, kind.value, n)
    if json:
        print_json(page.as_dict())
    else:
        print_page(render_feature(page))


app.command()(search)
app.command()(inspect)
app.command()(steer)
app.command()(match)
app.command()(label)
app.command()(vote)
app.command()(export)
app.command()(import_labels)
app.command()(runs)
app.command()(compare)
app.command()(schedule)
app.command()(serve)
app.command()(estimate)
app.command()(replay)


@app.command()
def doctor(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="RUN", help="The folder of a run, or a configuration."),
    ] = None,
    golden: Annotated[
        bool,
        typer.Option("--golden", help="Measure published numbers again, on weights at hand."),
    ] = False,
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="FOLDER", help="Gemma 2 2B, if not in the hub's cache."),
    ] = None,
    saes: Annotated[
        list[Path] | None,
        typer.Option("--saes", metavar="FOLDER", help="Gemma Scope's SAEs; may be repeated."),
    ] = None,
) -> None:
    """Check this machine, a run's room on it, and known results."""
    if (model or saes) and not golden:
        raise UserMistake("`--model` and `--saes` belong to `--golden`.", mend="add `--golden`")
    from rich.console import Console

    from .doctor import GoldenRequest, examine
    from .findings import has_failed, print_findings

    groups = examine(run, GoldenRequest(model, saes or ()) if golden else None)
    print_findings(groups, Console(highlight=False))
    raise typer.Exit(ExitCode.FAILED if has_failed(groups) else ExitCode.DONE)


def main() -> NoReturn:
    """Runs the command in `sys.argv` and exits as the contract says."""
    # Tasks run side by side, one a processor: more threads for NumPy's matrix products only get
    # in each other's way (measured: scoring 78 labels/s with them, 102 without). NumPy reads it
    # as it is imported, which is after this.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.exit(answer(app))


if __name__ == "__main__":
    main()
