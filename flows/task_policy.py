"""How tasks are retried: one policy for all of them.

What may pass by itself is tried again twice, after a short pause: a disk, a device or a network
that failed once. What is wrong stays wrong and is said at once: our own errors, programming
errors, a full disk, and Ctrl-C.
"""

from __future__ import annotations

import errno
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

from prefect import Task
from prefect.cache_policies import NO_CACHE

from ..store.errors import ScopenoteError

PAUSES_SECONDS = (0.5, 3.0)
# A disk that refuses, a path that is wrong: nothing of this passes while one waits.
_LASTING = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EMFILE,
}
# DuckDB says them in the words of the C library.
_OF_DISKS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
P = ParamSpec("P")
R = TypeVar("R")

_noted: ContextVar[Counter[str] | None] = ContextVar("_noted", default=None)


def is_transient(error: BaseException) -> bool:
    """Whether the same may succeed a moment later."""
    if isinstance(error, ScopenoteError):
        return False
    if isinstance(error, OSError):
        return error.errno not in _LASTING
    if type(error).__module__.lstrip("_").startswith("duckdb"):
        return any(os.strerror(code) in str(error) for code in _OF_DISKS)
    # Torch's errors of devices are RuntimeErrors, which otherwise are mistakes of ours. That a
    # device is too small is dealt with where its memory is planned.
    words = str(error)
    return (
        isinstance(error, RuntimeError)
        and ("CUDA error" in words or "CUBLAS_STATUS" in words or "cuDNN error" in words)
        and "out of memory" not in words
    )


def retried_task(name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Makes a function a task of this name under the policy; it must be able to begin again."""

    def make(function: Callable[P, R]) -> Task[P, R]:
        return Task(
            function,
            name=name,
            cache_policy=NO_CACHE,
            persist_result=False,
            retries=len(PAUSES_SECONDS),
            retry_delay_seconds=list(PAUSES_SECONDS),
            retry_condition_fn=_may_pass,
        )

    return make


def patiently(what: str, function: Callable[[], R]) -> R:
    """What the function gives, under the same policy where no task is."""
    for pause in PAUSES_SECONDS:
        try:
            return function()
        except Exception as error:
            if not is_transient(error):
                raise
            _note(what, error)
            time.sleep(pause)
    return function()


@contextmanager
def noting_retries() -> Iterator[Counter[str]]:
    """Counts what tasks begun within the block were retried for, by what went wrong."""
    noted: Counter[str] = Counter()
    token = _noted.set(noted)
    try:
        yield noted
    finally:
        _noted.reset(token)


def retry_notes(noted: Counter[str]) -> tuple[str, ...]:
    """What a person should know of retries, a sentence each."""
    return tuple(
        f"{task} was begun again {'once' if n == 1 else f'{n:,} times'}"
        for task, n in sorted(noted.items())
    )


def _may_pass(task: Task[..., Any], task_run: Any, state: Any) -> bool:
    error = state.data
    if not (isinstance(error, BaseException) and is_transient(error)):
        return False
    _note(f"a task of {task.name}", error)
    return True


def _note(what: str, error: BaseException) -> None:
    noted = _noted.get()
    if noted is not None:
        words = str(error).splitlines()[0] if str(error) else "no words on it"
        noted[f"{what} ({type(error).__name__}: {words})"] += 1
