"""Threads that work on batches side by side.

On a CPU every batch is computed by few threads, or one, and several batches at once: dividing
each operation among all processors leaves them waiting for each other between operations. On a
GPU one batch is computed while the firings of another are taken in. Either way results do not
depend on how many work side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event

import torch

# Each batch in work holds its activations: a bound for machines of many processors.
_MOST_AT_ONCE = 4


def n_at_once(device: torch.device) -> int:
    """How many batches are worked on side by side."""
    return min(torch.get_num_threads(), _MOST_AT_ONCE) if device.type == "cpu" else 2


def threads_per_batch(device: torch.device) -> int:
    """How many threads compute one batch on the CPU; rounding depends on it."""
    return max(1, torch.get_num_threads() // n_at_once(device))


@contextmanager
def few_threads(device: torch.device) -> Iterator[None]:
    """Within the block torch computes with as many threads as a batch gets."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads_per_batch(device))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def batch_workers(device: torch.device, cancelled: Event) -> Iterator[tuple[Executor, int]]:
    """An executor for batches and how many it takes at once; torch's threads are divided.

    Args:
        device: where the model computes.
        cancelled: set when the block is left by an exception, so that the model gives up
            the batches in work at their next layer.
    """
    n = n_at_once(device)
    with few_threads(device):
        executor = ThreadPoolExecutor(n, thread_name_prefix="batch")
        try:
            yield executor, n
        except BaseException:
            cancelled.set()
            raise
        finally:
            executor.shutdown(wait=True, cancel_futures=True)
            cancelled.clear()
