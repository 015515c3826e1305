"""Our deployments on a Prefect server: made, listed, paused, resumed, removed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    DeploymentFilterTags,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import get_current_settings
from prefect.utilities.callables import parameter_schema
from prefect.workers.process import ProcessWorker

from ..store.errors import StoreError, UserMistake
from .scheduled_run import ENTRYPOINT, FLOW_NAME, scheduled_run
from .timetable import Timetable

_TAG = "scopenote"
_POOL_TYPE = "process"
_AT_MOST = 200
_LAST_STATES = [StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED]
_LAST_STATES += [StateType.RUNNING, StateType.CANCELLING]
# Nothing secret: a key is the worker's to have.
_ENVIRONMENT = {"DO_NOT_TRACK": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True)
class Deployment:
    """A deployment of ours, as the server has it.

    Attributes:
        name: made of the run's folder.
        run: the run's folder.
        config: its configuration.
        schedules: in words.
        next_runs: when the next ones begin, as far as the server has planned.
        last_state: how the last one that began ended, or stands.
        last_message: what it said.
        last_at: when that was.
    """

    name: str
    run: str
    config: str
    when_busy: str
    schedules: tuple[str, ...]
    is_paused: bool
    pool: str | None
    next_runs: tuple[datetime, ...]
    last_state: str | None
    last_message: str | None
    last_at: datetime | None


@contextmanager
def prefect_client(mend: str) -> Iterator[SyncPrefectClient]:
    """The Prefect server of the profile and environment, when it answers.

    Args:
        mend: what to do where there is none.

    Raises:
        UserMistake: none is named, or nobody answers there.
        StoreError: it refuses something.
    """
    url = get_current_settings().api.url
    if not url:
        raise UserMistake(
            "There is no Prefect server to keep a schedule.",
            where="PREFECT_API_URL, or Prefect's profile",
            found="no address",
            mend=mend,
        )
    with get_client(sync_client=True) as client:
        trouble = client.api_healthcheck()
        if trouble is not None:
            raise UserMistake(
                "The Prefect server does not answer.",
                where=str(url),
                found=str(trouble) or type(trouble).__name__,
                mend=mend,
            )
        try:
            yield client
        except (PrefectHTTPStatusError, httpx.HTTPError) as error:
            raise StoreError(
                "The Prefect server refused.", where=str(url), found=str(error)
            ) from error


def deploy(
    client: SyncPrefectClient,
    name: str,
    parameters: dict[str, Any],
    timetable: Timetable | None,
    pool: str,
) -> Deployment:
    """Makes the deployment, or brings it up to date.

    Args:
        client: of the server.
        name: of the deployment.
        parameters: of the flow.
        timetable: None leaves the one it has.
        pool: whose workers run it; made if there is none.

    Raises:
        UserMistake: it has no timetable yet, or the pool is for other things than processes.
    """
    before = _find(client, name)
    if timetable is None and (before is None or not before.schedules):
        raise UserMistake(
            "When is it to run?",
            where=parameters["run"],
            expected="`--cron` or `--every`",
            mend='such as --cron "0 2 * * *" or --every 6h',
        )
    _make_pool(client, pool)
    if timetable is None:
        assert before is not None
        schedules = [_same(each) for each in before.schedules]
    else:
        schedules = [timetable.schedule(_anchor(before, timetable))]
    if before is not None:
        # Also drops what was due while no worker ran: it would all begin at once.
        client.pause_deployment(before.id)
    deployment_id = client.create_deployment(
        flow_id=client.create_flow_from_name(FLOW_NAME),
        name=name,
        schedules=schedules,
        parameters=parameters,
        parameter_openapi_schema=parameter_schema(scheduled_run).model_dump_for_openapi(),
        enforce_parameter_schema=True,
        entrypoint=ENTRYPOINT,
        work_pool_name=pool,
        tags=[_TAG],
        job_variables={"env": _ENVIRONMENT},
        paused=False,
    )
    # The server would come to it by itself, some seconds later.
    client.request("POST", "/deployments/{id}/schedule", path_params={"id": deployment_id}, json={})
    return _described(client, client.read_deployment(deployment_id))


def read_deployments(client: SyncPrefectClient) -> tuple[Deployment, ...]:
    """All of ours on this server, by their folders."""
    filter_ = DeploymentFilter(tags=DeploymentFilterTags(all_=[_TAG]))
    found = client.read_deployments(deployment_filter=filter_, limit=_AT_MOST)
    ours = [each for each in found if each.entrypoint == ENTRYPOINT]
    return tuple(
        sorted((_described(client, each) for each in ours), key=lambda each: (each.run, each.name))
    )


def pause(client: SyncPrefectClient, name: str, run: str) -> Deployment:
    """Nothing begins until it is resumed; what is running goes on."""
    found = _existing(client, name, run)
    client.pause_deployment(found.id)
    return _described(client, client.read_deployment(found.id))


def resume(client: SyncPrefectClient, name: str, run: str) -> Deployment:
    """Begins again at the next time that is due."""
    found = _existing(client, name, run)
    client.resume_deployment(found.id)
    client.request("POST", "/deployments/{id}/schedule", path_params={"id": found.id}, json={})
    return _described(client, client.read_deployment(found.id))


def remove(client: SyncPrefectClient, name: str, run: str) -> None:
    """Forgets the schedule; the run's folder is left alone, and so is what is running."""
    client.delete_deployment(_existing(client, name, run).id)


def _existing(client: SyncPrefectClient, name: str, run: str) -> DeploymentResponse:
    found = _find(client, name)
    if found is None:
        raise UserMistake(
            "This run has no schedule here.",
            where=f"{run}, on {client.api_url}",
            mend="`scopenote schedule --list` shows those that there are",
        )
    return found


def _find(client: SyncPrefectClient, name: str) -> DeploymentResponse | None:
    try:
        return client.read_deployment_by_name(f"{FLOW_NAME}/{name}")
    except ObjectNotFound:
        return None


def _anchor(before: DeploymentResponse | None, timetable: Timetable) -> datetime:
    """Where intervals are counted from: now, or as before where the interval is the same."""
    for each in before.schedules if before is not None else ():
        rule = each.schedule
        if isinstance(rule, IntervalSchedule) and rule.interval == timetable.every:
            return rule.anchor_date
    return datetime.now(UTC)


def _same(schedule: Any) -> Any:
    from prefect.client.schemas.actions import DeploymentScheduleCreate

    return DeploymentScheduleCreate(schedule=schedule.schedule, active=schedule.active)


def _make_pool(client: SyncPrefectClient, name: str) -> None:
    try:
        pool = client.read_work_pool(name)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(
            WorkPoolCreate(name=name, type=_POOL_TYPE, base_job_template=template)
        )
        return
    if pool.is_paused:
        raise UserMistake(
            "The work pool is paused: nothing would begin.",
            where=name,
            mend=f"prefect work-pool resume {name}",
        )


def _described(client: SyncPrefectClient, found: DeploymentResponse) -> Deployment:
    mine = DeploymentFilter(id=DeploymentFilterId(any_=[found.id]))

    def runs(states: Sequence[StateType], sort: FlowRunSort, limit: int) -> list[FlowRun]:
        state = FlowRunFilterState(type=FlowRunFilterStateType(any_=list(states)))
        return client.read_flow_runs(
            deployment_filter=mine,
            flow_run_filter=FlowRunFilter(state=state),
            sort=sort,
            limit=limit,
        )

    planned = runs([StateType.SCHEDULED], FlowRunSort.EXPECTED_START_TIME_ASC, 3)
    last = next(iter(runs(_LAST_STATES, FlowRunSort.START_TIME_DESC, 1)), None)
    state = last.state if last is not None else None
    return Deployment(
        name=found.name,
        run=str(found.parameters.get("run", "")),
        config=str(found.parameters.get("config", "")),
        when_busy=str(found.parameters.get("when_busy", "skip")),
        schedules=tuple(_in_words(each.schedule) for each in found.schedules if each.active),
        is_paused=bool(found.paused),
        pool=found.work_pool_name,
        next_runs=tuple(each.expected_start_time for each in planned if each.expected_start_time),
        last_state=state.name if state is not None else None,
        last_message=state.message if state is not None else None,
        last_at=state.timestamp if state is not None else None,
    )


def _in_words(schedule: object) -> str:
    if isinstance(schedule, IntervalSchedule):
        return str(Timetable(every=schedule.interval))
    if isinstance(schedule, CronSchedule):
        return str(Timetable(cron=schedule.cron, timezone=schedule.timezone or "UTC"))
    return str(schedule)
