"""Everything around a flow: the run's folder and lock, Prefect's home, progress, and Ctrl-C."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from ..store.errors import ConfigurationError, ExitCode, RunFolderBusy, ScopenoteError, UserMistake
from .terminal import complain, program

if TYPE_CHECKING:
    from ..store.database import Store
    from ..store.run_folder import RunFolder
    from .config import Config
    from .prefect_home import PrefectServer
    from .progress import Progress

_STOP_SECONDS = 5.0
# Labels and scores say by whom they are: other explainers, simulators and models add to them.
# A corpus may grow, parts are the same wherever they lie, and what each invocation may spend is its
# own affair.
_MAY_CHANGE = (
    "explain.",
    "score.simulators",
    "score.chat.",
    "search.",
    "score.intervention.",
    "corpus.max_tokens",
    "collect.parts_url",
    "corpus.max_bad_share",
    "budget.",
    "alerts.",
)


def configured_run(run: Path, config_file: Path | None) -> tuple[Config, RunFolder]:
    """The run's configuration and folder; of a run still to be made, where one is given."""
    from ..store.run_folder import RunFolder
    from .config import load_config

    if config_file is not None:
        config = load_config(config_file)
        return config, run_folder(run, config)
    folder = RunFolder.open_existing(run)
    return load_config(folder.config_file), folder


def run_folder(path: Path, config: Config) -> RunFolder:
    """The folder of a run with this configuration, made if need be; never of another one's."""
    from ..store.run_folder import RunFolder
    from .config import differing_keys, load_config

    folder = RunFolder(path)
    if not folder.exists:
        folder.create()
        folder.write_config(config.to_toml())
        return folder
    differing = differing_keys(load_config(folder.config_file), config)
    if fixed := {key: both for key, both in differing.items() if not key.startswith(_MAY_CHANGE)}:
        listed = "; ".join(
            f"`{key}` is {there!r} there and {here!r} here" for key, (there, here) in fixed.items()
        )
        raise ConfigurationError(
            "The run has another configuration.",
            where=str(folder.config_file),
            found=listed,
            expected="the configuration that the run began with",
            mend=f"name another folder with `--out`, or go on as it began: "
            f"`{program()} run {shlex.quote(str(path))}`",
        )
    if differing:
        folder.write_config(config.to_toml())
    return folder.create()


@contextmanager
def published(run: Path) -> Iterator[tuple[RunFolder, Store]]:
    """A run and its published database, for those who only read.

    Raises:
        UserMistake: there is no run, or nothing was collected in it.
    """
    from ..store.database import open_store
    from ..store.run_folder import RunFolder

    folder = RunFolder(run)
    # The database alone is enough to be read, as when someone was sent it.
    if not folder.database.exists():
        RunFolder.open_existing(run)
        raise UserMistake(
            "Nothing has been collected in this run yet.",
            where=str(folder.path),
            mend=f"type `{program()} run {shlex.quote(str(run))}`",
        )
    with ExitStack() as stack:
        store = stack.enter_context(open_store(folder.path))
        if store.is_older and folder.work_database.exists() and _bring_up_to_date(folder):
            store = stack.enter_context(open_store(folder.path))
        yield folder, store


def _bring_up_to_date(folder: RunFolder) -> bool:
    """Publishes in this version's tables what an older version had published.

    Returns:
        False where somebody works on the run: that will do it.
    """
    from ..store.database import open_work, publish

    try:
        with (
            folder.lock("scopenote, bringing an older database up to date"),
            open_work(folder.path) as work,
        ):
            publish(work, folder.path)
    except RunFolderBusy:
        return False
    return True


@contextmanager
def working(
    folder: RunFolder, command: str, again: list[str], use_own_server: bool
) -> Iterator[Progress]:
    """The place to run a flow in.

    Args:
        folder: locked meanwhile.
        command: that holds it, for the message that others get.
        again: the words of the command that goes on after a stop.
        use_own_server: the user's own Prefect server, not one for the run.

    Raises:
        RunFolderBusy: another process works on the folder.
    """
    from .prefect_home import isolate_prefect, without_heartbeats
    from .progress import Progress

    resume = f"{program()} {shlex.join(again)}"
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
            complain(f"Stopped. Everything finished so far is kept.\n  to go on: {self.resume}")
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
