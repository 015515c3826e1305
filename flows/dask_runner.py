"""Tasks that do their work on Dask's workers: a cluster that is there, or one on this machine.

Prefect's Dask integration gives the cluster and the client. What is sent are plain functions and
not Prefect's tasks: those would carry the whole flow to each worker, and want an answer of a
server that stands on the flow's own machine.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from prefect import Task
from prefect.task_runners import ThreadPoolTaskRunner

from ..store.errors import StoreError, UserMistake
from ..store.run_folder import RunFolder
from .runner_settings import RunnerSection
from .runners import submitted, worker_threads
from .worker_check import WorkerFound, dask_setup, look_around
from .worker_state import let_go

if TYPE_CHECKING:
    from prefect.futures import PrefectFuture

T = TypeVar("T")

_SECONDS_TO_ANSWER = 15
# So many threads of tasks wait for each worker: the next one's work is there when one is done.
_THREADS_PER_WORKER = 2


class DaskRunner:
    """Tasks wait in threads here for what workers do."""

    is_elsewhere = True

    def __init__(self, client: Any, tasks: ThreadPoolTaskRunner[Any]) -> None:
        self._client = client
        self._tasks = tasks
        threads = client.nthreads()
        self.n_at_once = sum(threads.values())
        # One task a process: it makes as many calls at once as it may.
        self.n_askers = self.n_clients = len(threads)

    def submit(self, task: Task[..., Any], **arguments: object) -> PrefectFuture[Any]:
        """Begins a task, which is given this runner and these arguments."""
        return submitted(self, self._tasks, task, arguments)

    def call(self, function: Callable[..., T], *arguments: object) -> T:
        """Has a worker do it; what a worker that died had begun, another begins again.

        Raises:
            StoreError: it has killed one worker after the other.
        """
        from distributed import KilledWorker

        # Not `pure`: a task that is tried again shall not get the error that it got before.
        future = self._client.submit(function, *arguments, pure=False)
        try:
            done: T = future.result()
        except KilledWorker as error:
            raise StoreError(
                "Workers die of a task, one after the other.",
                where=function.__name__,
                found=str(error).splitlines()[0],
                mend="look into the workers' logs; most often a machine has too little memory "
                "for its workers",
            ) from error
        finally:
            future.release()
        return done

    def let_go(self) -> None:
        """Has all workers close what tasks have opened there."""
        self._client.run(let_go)


@contextmanager
def dask_runner(settings: RunnerSection, folder: RunFolder) -> Iterator[DaskRunner]:
    """Workers of the cluster at the configured address, or of one that lives as long as the block.

    Raises:
        UserMistake: Dask is not installed, no scheduler answers, or its workers cannot work here.
    """
    try:
        import dask
        from distributed import LocalCluster
        from prefect_dask import DaskTaskRunner
    except ImportError as error:
        raise UserMistake(
            "Dask is not installed.",
            where="--runner dask, or `kind` under [runner]",
            found=str(error),
            mend="pip install 'scopenote[dask]', or use --runner thread",
        ) from error
    with ExitStack() as stack:
        # Workers begin with the environment of this process and nothing else: Dask would give
        # each of them one thread, and torch's threads decide how sums are rounded.
        stack.enter_context(dask.config.set({"distributed.nanny.pre-spawn-environ": {}}))
        if settings.address is not None:
            cluster = {"address": settings.address}
        else:
            n_workers = settings.workers or worker_threads()
            cluster = {
                "cluster": stack.enter_context(
                    LocalCluster(
                        n_workers=n_workers,
                        threads_per_worker=1,
                        host="127.0.0.1",
                        dashboard_address="127.0.0.1:0",
                        worker_dashboard_address=None,
                        memory_limit=0,  # what is taken is planned, by `collect.memory_gib`
                        local_directory=str(folder.prefect_home.absolute() / "dask"),
                        preload=[dask_setup.__module__],
                        silence_logs=logging.ERROR,
                    )
                )
            }
        connection = DaskTaskRunner(**cluster, client_kwargs={"timeout": _SECONDS_TO_ANSWER})
        try:
            client = stack.enter_context(connection).client
            client.wait_for_workers(1, timeout=_SECONDS_TO_ANSWER)
        except (OSError, ValueError) as error:  # Dask's TimeoutError is an OSError's
            raise UserMistake(
                "No Dask scheduler with workers answers.",
                where=f"address = {settings.address!r} under [runner]",
                found=str(error).splitlines()[0] if str(error) else type(error).__name__,
                expected="the address of a scheduler with at least one worker",
                mend="start them: `dask scheduler`, and on each machine `dask worker ADDRESS`",
            ) from error
        _require_fit(client, folder)
        n_threads = _THREADS_PER_WORKER * sum(client.nthreads().values())
        tasks: Any = stack.enter_context(ThreadPoolTaskRunner(max_workers=n_threads))
        runner = DaskRunner(client, tasks)
        try:
            yield runner
        finally:
            # A cluster that is there serves others; and DuckDB prints a page of warnings where a
            # process ends with a connection. A worker that is gone has nothing open.
            with suppress(OSError):
                runner.let_go()


def _require_fit(client: Any, folder: RunFolder) -> None:
    """Makes sure that all workers have this version and see this folder."""
    place = str(folder.path.absolute())
    try:
        found: dict[str, WorkerFound] = client.run(look_around, place)
    except ImportError as error:
        raise UserMistake(
            "A Dask worker has no Scopenote.",
            where=f"the workers of {client.scheduler.address}",
            found=str(error),
            expected="the same version of Scopenote on every machine",
            mend="install it where the workers run",
        ) from error
    here = look_around(place)
    for address, there in sorted(found.items()):
        if there != here:
            raise UserMistake(
                "A Dask worker does not see this run, or has another version of Scopenote.",
                where=f"worker {address}",
                found=str(there),
                expected=str(here),
                mend="install the same version everywhere, and mount the run's folder under the "
                "same path on every machine",
            )
