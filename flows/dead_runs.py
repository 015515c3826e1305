"""Flow runs that died with their process, which Prefect still shows as running.

After `kill -9` nobody tells the server. Who is alive is asked of the kernel: each scheduled run
holds a lock of its own for as long as its process lives.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.runtime import flow_run
from prefect.states import Crashed

from ..store.database import open_work
from ..store.run_folder import RunFolder, clear_disk_errors
from ..store.runs import flow_runs_without_an_end

_AT_MOST = 100
_NOT_ENDED = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]
_MESSAGE = "Its process died: another run of the same folder found it gone."


@contextmanager
def alive(folder: RunFolder) -> Iterator[None]:
    """Within the block other processes can see that this flow run lives."""
    flow_run_id = flow_run.id
    if flow_run_id is None:
        yield
        return
    place = _place(folder)
    file, unlocked = place / flow_run_id, place / f".{flow_run_id}"
    with clear_disk_errors(file):
        place.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(unlocked, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unlocked.rename(file)  # nobody ever sees it without its lock while we live
        try:
            yield
        except Exception:
            file.unlink(missing_ok=True)
            raise
        # Whoever is told to end may not come to tell the server: then the next run does.
        file.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def declare_dead_runs(folder: RunFolder) -> list[str]:
    """Has the server show as crashed what died on this folder; a sentence for each.

    The folder's lock must be ours. What the server does not know, or knows the end of, is left
    alone.
    """
    marks = [file for file in _marks(folder) if not _is_held(file)]
    with open_work(folder.path) as work:
        recorded = flow_runs_without_an_end(work, _AT_MOST)
    dead = {*(file.name for file in marks), *recorded} - {flow_run.id}
    lines = _declare([UUID(each) for each in sorted(dead)])
    for file in marks:
        file.unlink(missing_ok=True)
    return lines


def _declare(dead: Sequence[UUID]) -> list[str]:
    lines = []
    with get_client(sync_client=True) as client:

        def unended(which: FlowRunFilter) -> list[FlowRun]:
            which.state = FlowRunFilterState(type=FlowRunFilterStateType(any_=_NOT_ENDED))
            return client.read_flow_runs(flow_run_filter=which)

        if not dead:
            return []
        found = unended(FlowRunFilter(id=FlowRunFilterId(any_=list(dead))))
        # Each stage is a flow run of its own, below the one that died with it.
        parents = list(dead)
        while parents:
            below = FlowRunFilterParentFlowRunId(any_=parents)
            children = unended(FlowRunFilter(parent_flow_run_id=below))
            found += children
            parents = [child.id for child in children]
        for each in found:
            client.set_flow_run_state(each.id, Crashed(message=_MESSAGE), force=True)
            if each.parent_task_run_id is None:
                lines.append(f"run {each.name} had died with its process, which Prefect knows now")
    return lines


def _place(folder: RunFolder) -> Path:
    return folder.prefect_home / "alive"


def _marks(folder: RunFolder) -> list[Path]:
    return sorted(_place(folder).glob("*-*-*-*-*"))


def _is_held(file: Path) -> bool:
    try:
        descriptor = os.open(file, os.O_RDWR)
    except FileNotFoundError:
        return True  # it has ended as it should
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
