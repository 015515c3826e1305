"""Cutting features into tasks, running the tasks, and what every stage asks first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import groupby
from typing import Any, TypeVar, cast

from prefect.futures import as_completed
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import quote

from ..store.database import open_work, publish_if_behind
from ..store.errors import StoreError
from ..store.run_folder import RunFolder
from .progress import Stage
from .runners import Runner, worker_threads
from .worker_state import held_no_longer

T = TypeVar("T")


def as_is(value: T) -> T:
    """Hands a value to a task without Prefect searching it for the results of other tasks."""
    return cast(T, quote(value))


def task_ranges(missing: Mapping[str, list[int]], size: int) -> Iterator[tuple[str, range]]:
    """Runs of consecutive missing features, at most `size` long, SAE by SAE.

    A run never crosses a multiple of `size`, so that what was interrupted is cut the same way.
    """
    for sae_id, features in missing.items():
        begin = 0
        for end in range(1, len(features) + 1):
            is_last = end == len(features)
            if (
                is_last
                or features[end] != features[end - 1] + 1
                or features[end] // size != features[begin] // size
            ):
                yield sae_id, range(features[begin], features[end - 1] + 1)
                begin = end


def task_blocks(
    missing: Mapping[str, list[int]], size: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Missing features between two multiples of `size`, however few, SAE by SAE.

    For tasks that need not have consecutive features: of a few drawn from many, one would
    otherwise become a task each.
    """
    for sae_id, features in missing.items():
        for _, block in groupby(features, key=lambda feature: feature // size):
            yield sae_id, tuple(block)


def side_by_side() -> Any:
    """The task runner of flows over features.

    `Any`, because Prefect's flows ask for a runner of futures more general than those that its
    own runner of threads declares.
    """
    return ThreadPoolTaskRunner(max_workers=worker_threads())


def run_over_features(
    runner: Runner,
    batch_task: Any,
    work: object,
    missing: Mapping[str, list[int]],
    features_per_task: int,
    stage: Callable[[int], AbstractContextManager[Stage]],
) -> Iterator[Counter[str]]:
    """Runs a task over all missing features, and gives what each batch counts as it comes.

    At the first failure the others are left unstarted.

    Args:
        runner: where they work.
        batch_task: called with the runner, `work`, the SAE's id and consecutive features.
        work: describes what all batches need.
        missing: features by SAE.
        features_per_task: how many at most are one batch.
        stage: begins the progress of so many features.
    """
    tasks = list(task_ranges(missing, features_per_task))
    with held_no_longer():
        futures = [
            runner.submit(batch_task, work=work, sae_id=sae_id, features=features)
            for sae_id, features in tasks
        ]
        with stage(sum(len(features) for _, features in tasks)) as progress:
            for future in as_completed(futures):
                counted: Counter[str] = future.result()
                progress.advance(counted.total())
                yield counted


def require_collected(folder: RunFolder) -> None:
    """Makes sure that there is something to explain or score, and that readers can see it.

    Raises:
        StoreError: nothing has been collected.
    """
    with open_work(folder.path) as work:
        if not work.execute("SELECT 1 FROM features LIMIT 1").fetchall():
            raise StoreError(
                "This run has collected nothing yet.",
                where=str(folder.path),
                expected="the contexts of at least one SAE",
                mend=f"scopenote collect {folder.path}",
            )
        publish_if_behind(work, folder.path)
