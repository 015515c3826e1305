"""Firings that were due while no worker ran, or while all were busy: one run does for all of them.

Otherwise a worker that comes back begins every one of them at once, each a process of its own.
"""

from __future__ import annotations

from datetime import UTC, datetime

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import State, StateType
from prefect.context import FlowRunContext
from prefect.states import Completed

_MESSAGE = "It was due before run {name} began, which does what it would have done."


def skip_what_was_due() -> int:
    """Has the server end the firings of this flow run's deployment that are due; how many."""
    context = FlowRunContext.get()
    mine = context.flow_run if context is not None else None
    if mine is None or mine.deployment_id is None:
        return 0
    due = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
        expected_start_time=FlowRunFilterExpectedStartTime.model_validate(
            {"before_": datetime.now(UTC)}
        ),
    )
    ours = DeploymentFilter(id=DeploymentFilterId(any_=[mine.deployment_id]))
    skipped: State[None] = Completed(name="Skipped", message=_MESSAGE.format(name=mine.name))
    with get_client(sync_client=True) as client:
        # What somebody began by hand is meant to run by itself.
        found = [
            each
            for each in client.read_flow_runs(deployment_filter=ours, flow_run_filter=due)
            if each.auto_scheduled
        ]
        for each in found:
            client.set_flow_run_state(each.id, skipped, force=True)
    return len(found)
