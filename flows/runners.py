"""Where the tasks of flows do their work: in threads of this process, or on Dask's workers.

A task is Prefect's, in a thread of the process that has the flow, which keeps retries, notes and
the record of runs in one place. What the task does is a function of values: `Runner.call` does it
there and then, or sends it to a worker and waits. So a worker needs neither Prefect nor a way
back to Prefect's server, and flows are the same for both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from prefect import Task
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import quote

from ..store.run_folder import RunFolder
from .runner_settings import RunnerSection
from .worker_state import let_go

if TYPE_CHECKING:
    from prefect.futures import PrefectFuture

T = TypeVar("T")


class Runner(Protocol):
    """Where tasks do their work."""

    @property
    def n_at_once(self) -> int:
        """How many tasks work side by side."""
        ...

    @property
    def n_askers(self) -> int:
        """How many of those that ask a model do."""
        ...

    @property
    def n_clients(self) -> int:
        """In how many processes these work: each has a part of the model's limits."""
        ...

    @property
    def is_elsewhere(self) -> bool:
        """Whether tasks work in other processes, which open everything themselves."""
        ...

    def submit(self, task: Task[..., Any], **arguments: object) -> PrefectFuture[Any]:
        """Begins a task, which is given this runner and these arguments."""
        ...

    def call(self, function: Callable[..., T], *arguments: object) -> T:
        """Has a function do its work; within a task.

        Args:
            function: of a module that workers can import.
            arguments: small values that can be sent.
        """
        ...

    def let_go(self) -> None:
        """Has all processes close what tasks have opened there."""
        ...


class ThreadRunner:
    """Tasks work in threads of this process, one a processor."""

    is_elsewhere = False
    n_clients = 1

    def __init__(self, tasks: ThreadPoolTaskRunner[Any], n_at_once: int) -> None:
        self._tasks = tasks
        self.n_at_once = self.n_askers = n_at_once

    def submit(self, task: Task[..., Any], **arguments: object) -> PrefectFuture[Any]:
        """Begins a task, which is given this runner and these arguments."""
        return submitted(self, self._tasks, task, arguments)

    def call(self, function: Callable[..., T], *arguments: object) -> T:
        """Does it here."""
        return function(*arguments)

    def let_go(self) -> None:
        """Has this process close what tasks have opened."""
        let_go()


def submitted(
    runner: Runner,
    tasks: ThreadPoolTaskRunner[Any],
    task: Task[..., Any],
    arguments: dict[str, object],
) -> PrefectFuture[Any]:
    """A task begun in Prefect's threads; Prefect searches nothing that it is given."""
    given = {"runner": runner, **arguments}
    return tasks.submit(task, {name: quote(value) for name, value in given.items()})


_current: ContextVar[Runner | None] = ContextVar("_current", default=None)


@contextmanager
def task_runner(settings: RunnerSection, folder: RunFolder) -> Iterator[Runner]:
    """The runner for tasks of this run; within the block of a whole job it is the job's.

    Raises:
        UserMistake: Dask is not installed, no scheduler answers, or its workers cannot work here.
    """
    outer = _current.get()
    if outer is not None:
        yield outer
        return
    with ExitStack() as stack:
        stack.callback(let_go)
        runner: Runner
        if settings.kind == "dask":
            from .dask_runner import dask_runner

            runner = stack.enter_context(dask_runner(settings, folder))
        else:
            n = worker_threads()
            tasks: Any = stack.enter_context(ThreadPoolTaskRunner(max_workers=n))
            runner = ThreadRunner(tasks, n)
        token = _current.set(runner)
        try:
            yield runner
        finally:
            _current.reset(token)


def worker_threads() -> int:
    """Threads that explain or score at once: one a processor."""
    return os.cpu_count() or 1
