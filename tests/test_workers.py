"""Batches side by side: how torch's threads are divided, given back, and work given up."""

from __future__ import annotations

from threading import Event

import pytest
import torch
from scopenote.extract.workers import batch_workers, n_at_once, threads_per_batch

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 2, 3, 8, 16])
def threads(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def test_threads_are_divided_and_given_back(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert n_at_once(CPU) * threads_per_batch(CPU) <= threads
        share = threads_per_batch(CPU)
        with batch_workers(CPU, Event()) as (executor, n):
            assert n == min(threads, 4)
            assert executor.submit(torch.get_num_threads).result() == share
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_an_exception_cancels_what_is_in_work_and_what_waits() -> None:
    cancelled, started, before = Event(), Event(), torch.get_num_threads()

    def work() -> bool:
        started.set()
        return cancelled.wait(30)

    with pytest.raises(KeyError), batch_workers(CPU, cancelled) as (executor, n):
        in_work = executor.submit(work)
        waiting = [executor.submit(work) for _ in range(4 * n)]
        started.wait(30)
        raise KeyError
    assert in_work.result()
    assert waiting[-1].cancelled()
    assert not cancelled.is_set()
    assert torch.get_num_threads() == before
