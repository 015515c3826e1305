"""A flow in a worker's process that is told to end does so within seconds.

Prefect's runner sends SIGTERM when a run is cancelled, and kills after 30 s. Prefect's own
handler has to stay: by it the run knows that it was cancelled and did not crash. It unwinds the
main thread, but then tasks in threads are waited for. A run is made to survive worse.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

from .terminal import complain

_SECONDS = 5.0
_CONFIRM_SECONDS = 2.0
_TOLD = {signal.SIGTERM, signal.SIGINT}


@contextmanager
def leaving_when_told(seconds: float = _SECONDS) -> Iterator[None]:
    """Once a signal comes within the block, this process ends after so many seconds at most."""
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread gets signals: whoever runs the flow elsewhere ends it too.
        yield
        return
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    # The interpreter writes each signal's number there, whoever handles it and however long the
    # main thread stays in a library's code.
    before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    arguments = (read_end, flow_run.id, seconds)
    threading.Thread(target=_watch, args=arguments, name="leaving", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(write_end)


def _watch(read_end: int, flow_run_id: str | None, seconds: float) -> None:
    # At the end of the block the pipe ends; a signal that came within it counts on.
    while told := os.read(read_end, 64):
        if _TOLD.intersection(told):
            break
    os.close(read_end)
    if not told:
        return
    time.sleep(seconds)
    complain("Stopped. Everything finished so far is kept; the next run goes on from it.")
    # A worker takes any other status for a crash, also of a run that was cancelled.
    os._exit(0 if _is_cancelled(flow_run_id) else 128 + signal.SIGTERM)


def _is_cancelled(flow_run_id: str | None) -> bool:
    """Whether the server says so; False where it says nothing in time."""
    found: list[bool] = []

    def ask() -> None:
        if flow_run_id is None:
            return
        # Any trouble at all: the process is on its way out.
        with suppress(Exception), get_client(sync_client=True) as client:
            state = client.read_flow_run(UUID(flow_run_id)).state
            found.append(state is not None and (state.is_cancelling() or state.is_cancelled()))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_CONFIRM_SECONDS)
    return bool(found and found[0])
