"""The command line: arguments in, exit status out; data on standard output, all else on error.

This module owns no logic and imports nothing heavy, so that `--help` answers at once. It is the
one place that turns errors and signals into messages and exit statuses.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from ..store.errors import ConfigurationError, ExitCode, ScopenoteError, UserMistake

if TYPE_CHECKING:
    from ..store.database import Store
    from ..store.run_folder import RunFolder
    from .config import Config
    from .prefect_home import PrefectServer
    from .progress import Progress
    from .reports import RunReport, StageReport

_STOP_SECONDS = 5.0

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
    epilog="Exit status: 0 done, 1 failed, 2 your mistake, 3 finished with failures stored.",
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
    prefect_server: OwnServer = False,
) -> None:
    """The whole job on a small embedded model, without downloads."""
    from .config import demo_config

    again = ["demo", "--out", str(out)]
    _label_corpus("demo", out, demo_config(), again, prefect_server)


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
    _label_corpus("run", out, settings, ["run", str(out)], prefect_server, allow_mismatch)


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
    prefect_server: OwnServer = False,
) -> None:
    """Keep the text that each feature responds to."""
    if shard is not None:
        _collect_shard(run, shard, config, allow_mismatch, prefect_server)

    def work(settings: Config, folder: RunFolder, progress: Progress) -> StageReport:
        from .collect_contexts import collect_contexts

        return collect_contexts(settings, folder, progress, allow_mismatch)

    _stage("collect", work, run, config, prefect_server)


@app.command()
def explain(run: Run, config: FirstConfig = None, prefect_server: OwnServer = False) -> None:
    """Write labels from the contexts that were collected."""

    def work(settings: Config, folder: RunFolder, progress: Progress) -> StageReport:
        from .explain_features import explain_features

        return explain_features(settings, folder, progress)

    _stage("explain", work, run, config, prefect_server)


@app.command()
def score(run: Run, config: FirstConfig = None, prefect_server: OwnServer = False) -> None:
    """Score the labels on text that none was written from."""

    def work(settings: Config, folder: RunFolder, progress: Progress) -> StageReport:
        from .score_labels import score_labels

        return score_labels(settings, folder, progress)

    _stage("score", work, run, config, prefect_server)


@app.command()
def status(run: Run, json: Json = False) -> None:
    """How far a run is, and how good its labels are."""
    from ..store.status import read_status
    from .summary import render_status

    with _published(run) as (folder, store):
        found = read_status(store.connection, folder.database)
    if json:
        _print_json(found.as_dict())
    else:
        _print(render_status(found, folder))


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

    with _published(run) as (_, store):
        feature_id = find_feature(store.connection, feature)
        page = read_feature_page(store.connection, feature_id, split.value, kind.value, n)
    if json:
        _print_json(page.as_dict())
    else:
        _print(render_feature(page))


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
    sys.exit(_answer(app))


# --- commands that work -------------------------------------------------------------------


def _label_corpus(
    command: str,
    out: Path,
    config: Config,
    again: list[str],
    use_own_server: bool,
    allow_mismatch: bool = False,
) -> None:
    folder = _run_folder(out, config)
    with _working(folder, command, again, use_own_server) as progress:
        from .label_corpus import label_corpus

        report = label_corpus(config, folder, progress, allow_mismatch)
    _print_report(report)
    _print_ending(folder)
    raise typer.Exit(report.exit_code)


def _stage(
    command: str,
    work: Callable[[Config, RunFolder, Progress], StageReport],
    run: Path,
    config_file: Path | None,
    use_own_server: bool,
) -> None:
    from .reports import RunReport

    config, folder = _configured(run, config_file)
    with _working(folder, command, [command, str(run)], use_own_server) as progress:
        report = RunReport((work(config, folder, progress),))
    _print_report(report)
    raise typer.Exit(report.exit_code)


def _collect_shard(
    run: Path, shard_text: str, config_file: Path | None, allow_mismatch: bool, use_own_server: bool
) -> NoReturn:
    from ..extract.shards import Shard
    from .reports import RunReport

    shard = Shard.parse(shard_text)
    config, folder = _configured(run, config_file)
    own = folder.shard(f"{shard.number}-of-{shard.count}")
    again = ["collect", str(run), "--shard", shard_text]
    with _working(own, shlex.join(again), again, use_own_server) as progress:
        from .collect_contexts import collect_shard

        report = RunReport((collect_shard(config, folder, shard, progress, allow_mismatch),))
    _print_report(report)
    raise typer.Exit(report.exit_code)


def _configured(run: Path, config_file: Path | None) -> tuple[Config, RunFolder]:
    """The run's configuration and folder; of a run still to be made, where one is given."""
    from ..store.run_folder import RunFolder
    from .config import load_config

    if config_file is not None:
        config = load_config(config_file)
        return config, _run_folder(run, config)
    folder = RunFolder.open_existing(run)
    return load_config(folder.config_file), folder


def _run_folder(path: Path, config: Config) -> RunFolder:
    """The folder of a run with this configuration, made if need be; never of another one's."""
    from ..store.run_folder import RunFolder
    from .config import differing_keys, load_config

    folder = RunFolder(path)
    if not folder.exists:
        folder.create()
        folder.write_config(config.to_toml())
        return folder
    differing = differing_keys(load_config(folder.config_file), config)
    if differing:
        listed = "; ".join(
            f"`{key}` is {there!r} there and {here!r} here"
            for key, (there, here) in differing.items()
        )
        raise ConfigurationError(
            "The run has another configuration.",
            where=str(folder.config_file),
            found=listed,
            expected="the configuration that the run began with",
            mend=f"name another folder with `--out`, or go on as it began: "
            f"`{_program()} run {shlex.quote(str(path))}`",
        )
    return folder.create()


@contextmanager
def _working(
    folder: RunFolder, command: str, again: list[str], use_own_server: bool
) -> Iterator[Progress]:
    """Everything around a flow: the folder's lock, Prefect's home, signals, progress."""
    from .prefect_home import isolate_prefect, without_heartbeats
    from .progress import Progress

    resume = f"{_program()} {shlex.join(again)}"
    with folder.lock(f"scopenote {command}"), _stopping(resume) as stopping:
        server = isolate_prefect(folder, use_own_server)
        stopping.server = server
        try:
            with without_heartbeats(), Progress() as progress:
                yield progress
        except (ScopenoteError, KeyboardInterrupt):
            raise
        except Exception:
            # Whatever Prefect says when nobody answers it, this is why.
            if server is not None:
                server.require_alive()
            raise


class _Stopping:
    """Ctrl-C and SIGTERM: unwind at once, and if that takes too long, leave without."""

    def __init__(self, resume: str) -> None:
        self.resume = resume
        self.server: PrefectServer | None = None
        self.has_begun = False

    def begin(self, number: int, frame: FrameType | None) -> None:
        if self.has_begun:
            self.leave()
        self.has_begun = True
        timer = threading.Timer(_STOP_SECONDS, self.leave)
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt

    def leave(self) -> NoReturn:
        """Ends this process now. Threads may be at work: a run is made to survive worse."""
        with suppress(Exception):
            if sys.stderr.isatty():
                sys.stderr.write("\r\x1b[K\x1b[?25h")  # the line of a bar; the cursor back
            _complain(f"Stopped. Everything finished so far is kept.\n  to go on: {self.resume}")
            sys.stdout.flush()
        with suppress(Exception):
            if self.server is not None:
                self.server.stop()
        os._exit(ExitCode.FAILED)


@contextmanager
def _stopping(resume: str) -> Iterator[_Stopping]:
    stopping = _Stopping(resume)
    before = {
        number: signal.signal(number, stopping.begin) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stopping
    except BaseException:
        # Prefect wraps some interruptions in exceptions of its own: what counts is the signal.
        if stopping.has_begun:
            stopping.leave()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- reading what was published -----------------------------------------------------------


@contextmanager
def _published(run: Path) -> Iterator[tuple[RunFolder, Store]]:
    from ..store.database import open_store
    from ..store.run_folder import RunFolder

    folder = RunFolder(run)
    # The database alone is enough to be read, as when someone was sent it.
    if not folder.database.exists():
        RunFolder.open_existing(run)
        raise UserMistake(
            "Nothing has been collected in this run yet.",
            where=str(folder.path),
            mend=f"type `{_program()} run {shlex.quote(str(run))}`",
        )
    with open_store(folder.path) as store:
        yield folder, store


def _print_report(report: RunReport) -> None:
    for stage in report.stages:
        for line in stage.remarks():
            _complain(line)


def _print_ending(folder: RunFolder) -> None:
    from ..store.status import read_extremes, read_status
    from .summary import render_ending

    with _published(folder.path) as (_, store):
        found = read_status(store.connection, folder.database)
        extremes = read_extremes(store.connection)
    _print(render_ending(found, extremes, folder, _program()))


def _print(page: Any) -> None:
    from rich.console import Console

    # Cropped, a command that is longer than a line could not be copied.
    Console(highlight=False).print(page, crop=False)


def _print_json(content: Any) -> None:
    import json

    typer.echo(json.dumps(content, ensure_ascii=False, indent=2, default=str))


# --- answering ----------------------------------------------------------------------------


def _answer(command: Callable[[], object]) -> int:
    """Runs a command; the exit status that the contract gives to how it ended."""
    try:
        command()
        sys.stdout.flush()
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else ExitCode.FAILED
    except ScopenoteError as error:
        _complain(f"Error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _complain("Stopped.")
        return ExitCode.FAILED
    except BrokenPipeError:
        # Whoever read us has gone, as `head` does: there is nobody left to tell.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED
    except Exception:
        traceback.print_exc()
        _complain(
            "This is a defect of Scopenote, not of yours. Please report it with the lines above; "
            "what was finished is kept."
        )
        return ExitCode.FAILED
    return ExitCode.DONE


def _complain(text: str) -> None:
    with suppress(OSError):
        typer.echo(text, err=True)


def _program() -> str:
    """How this program was called, to be typed again from here."""
    called = Path(sys.argv[0])
    if called.suffix == ".py" or not called.exists():
        return "scopenote"
    found = shutil.which("scopenote")
    if found is not None and Path(found).resolve() == called.resolve():
        return "scopenote"
    absolute = called.absolute()
    here = Path.cwd()
    shown = absolute.relative_to(here) if absolute.is_relative_to(here) else absolute
    return shlex.quote(str(shown))


if __name__ == "__main__":
    main()
