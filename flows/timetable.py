"""When a run is to begin, as it is typed: `--cron`, `--every`, `--timezone`; and in words."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from ..store.errors import UserMistake

if TYPE_CHECKING:
    from prefect.client.schemas.actions import DeploymentScheduleCreate

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_FIELDS = "minute, hour, day of the month, month, day of the week"
# Prefect gives a firing to a worker every few seconds, and plans a hundred ahead.
_SHORTEST = timedelta(seconds=5)
_LONGEST = timedelta(days=366)


@dataclass(frozen=True, slots=True)
class Timetable:
    """When runs begin: by the clock, or so long after one another.

    Attributes:
        cron: five fields, or a name such as `@daily`; None where `every` is given.
        every: from one beginning to the next.
        timezone: whose clock `cron` means.
    """

    cron: str | None = None
    every: timedelta | None = None
    timezone: str = "UTC"

    @classmethod
    def parse(cls, cron: str | None, every: str | None, timezone: str | None) -> Timetable | None:
        """What was typed; None where nothing was.

        Raises:
            UserMistake: it is no such thing, or both were given.
        """
        if cron is not None and every is not None:
            raise UserMistake(
                "A schedule has one rule.",
                where="`--cron` and `--every`",
                found=f"{cron} and {every}",
                expected="one of them",
                mend="leave out the other",
            )
        if timezone is not None and cron is None:
            raise UserMistake(
                "Only `--cron` means a clock somewhere.",
                where="`--timezone`",
                found=timezone,
                mend="leave it out, or give `--cron`",
            )
        if every is not None:
            return cls(every=_parse_every(every))
        if cron is None:
            return None
        zone = _parse_timezone("UTC" if timezone is None else timezone)
        return cls(cron=_parse_cron(cron), timezone=zone)

    def schedule(self, anchor: datetime) -> DeploymentScheduleCreate:
        """As Prefect has it; intervals are counted from `anchor`."""
        from prefect.client.schemas.actions import DeploymentScheduleCreate
        from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule

        if self.every is not None:
            each = IntervalSchedule(interval=self.every, anchor_date=anchor)
            return DeploymentScheduleCreate(schedule=each)
        assert self.cron is not None
        return DeploymentScheduleCreate(
            schedule=CronSchedule(cron=self.cron, timezone=self.timezone)
        )

    def __str__(self) -> str:
        if self.every is not None:
            return f"every {span(self.every)}"
        return f"{self.cron} ({self.timezone})"


def span(length: timedelta) -> str:
    """A span of time as `--every` takes it: `90s`, `6h`, `1d`."""
    seconds = round(length.total_seconds())
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def deployment_name(run: Path) -> str:
    """The name that a run's deployment has: readable, and no other folder's."""
    place = str(run.resolve())
    readable = re.sub(r"[^\w.-]+", "-", run.resolve().name).strip("-") or "run"
    return f"{readable}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"


def _parse_every(typed: str) -> timedelta:
    match = re.fullmatch(r"\s*(\d{1,9})\s*([smhd])\s*", typed)
    every = timedelta(**{_UNITS[match[2]]: int(match[1])}) if match else timedelta()
    if not _SHORTEST <= every <= _LONGEST:
        raise UserMistake(
            "This is not a span of time that runs can be apart.",
            where="`--every`",
            found=typed,
            expected=f"a whole number and s, m, h or d, such as 90m or 6h; {span(_SHORTEST)} to "
            f"{span(_LONGEST)}",
        )
    return every


def _parse_cron(typed: str) -> str:
    cron = " ".join(typed.split())
    # Prefect would take six fields too, and the last for seconds.
    if not cron.startswith("@") and len(cron.split()) != 5:
        raise _no_cron(typed, f"{len(cron.split())} fields")
    from prefect.client.schemas.schedules import CronSchedule
    from pydantic import ValidationError

    try:
        CronSchedule(cron=cron)
    except ValidationError as error:
        raise _no_cron(typed, typed) from error
    return cron


def _no_cron(typed: str, found: str) -> UserMistake:
    return UserMistake(
        "This is not a schedule as cron has them.",
        where=f"`--cron {typed!r}`",
        found=found,
        expected=f"five fields: {_FIELDS}; or @hourly, @daily, @weekly",
        mend='at two every night: --cron "0 2 * * *"',
    )


def _parse_timezone(typed: str) -> str:
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

    try:
        ZoneInfo(typed)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        from difflib import get_close_matches

        near = get_close_matches(typed, available_timezones(), n=1)
        raise UserMistake(
            "There is no such time zone.",
            where="`--timezone`",
            found=typed,
            expected="a name such as Europe/Berlin or UTC",
            mend=f"perhaps `{near[0]}` was meant" if near else None,
        ) from error
    return typed
