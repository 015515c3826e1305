"""How many calls are made at once and per minute, and less of everything where that is too much.

One object serves all calls to an endpoint in a process. Waiting is by a monotonic clock: a wall
clock that jumps changes nothing. Left out: whether a call is sent again (`endpoint_client.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ..store.errors import ConfigurationError

# What may be taken at once after a pause, in seconds' worth: some slack for uneven sending, yet
# no burst that an endpoint which counts by the second would refuse.
BURST_SECONDS = 1.0
# Even one call at a time can be too much; below this share waiting is left to the back-off. It is
# also the most that one answered call gives back, where few are made at once.
SMALLEST_SHARE = 1 / 64


class Pace:
    """Spreads amounts evenly, so that no 60 seconds have more than allowed.

    The generic cell rate algorithm (ITU-T I.371): each amount occupies its share of time, and may
    start `BURST_SECONDS` before the time occupied by those before it has passed. What starts in any
    60 seconds, its last call left out, is less than `per_minute`.
    """

    def __init__(self, per_minute: float) -> None:
        self._per_second = per_minute / (60 + BURST_SECONDS)
        self._occupied_until = float("-inf")

    def book(self, amount: float, now: float, share: float = 1.0) -> float:
        """Books an amount behind those before it; the seconds from now until it may start."""
        begin = max(now, self._occupied_until)
        self._occupied_until = begin + amount / (self._per_second * share)
        return max(0.0, begin - BURST_SECONDS - now)

    def correct(self, difference: float, share: float = 1.0) -> None:
        """Books more, or gives back, once it is known what was really used.

        Args:
            difference: used minus booked.
            share: the one it was booked with.
        """
        self._occupied_until += difference / (self._per_second * share)


class Turn:
    """The right to make one call, booked and settled by whoever has it."""

    def __init__(self, limits: CallLimits) -> None:
        self._limits = limits
        self._share = limits.share
        self._slowdowns_before = 0
        self._booked_tokens = 0

    async def book(self, estimated_tokens: int) -> None:
        """Waits until the call may be made.

        Args:
            estimated_tokens: what it will take at most, prompt and reply.
        """
        self._share = self._limits.share
        self._booked_tokens = estimated_tokens
        await self._limits._pause(estimated_tokens, self._share)
        self._slowdowns_before = self._limits._slowdowns

    def settle(self, tokens: int | None) -> None:
        """Says that the call was answered and what it took; if unknown, the estimate stands."""
        used = self._booked_tokens if tokens is None else tokens
        self._limits._grow(used - self._booked_tokens, self._share)

    def too_much(self) -> None:
        """Says that the endpoint refused the call because there were too many (429)."""
        self._limits._slow_down(self._slowdowns_before)


class CallLimits:
    """Calls at once, calls per minute and tokens per minute, all lowered together on 429.

    They are halved when a call is refused that began after the last halving (of calls in flight
    together one refusal says as much as ten), and grow by one call at once for each round of
    calls that was answered, as TCP does it (RFC 5681).

    Args:
        concurrency: at most so many calls at once.
        requests_per_minute: None for no limit.
        tokens_per_minute: prompt and reply together, exceeded by one call at most; None for no
            limit.

    Raises:
        ConfigurationError: a limit is not above 0.
    """

    def __init__(
        self,
        concurrency: int,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
    ) -> None:
        for name, value in {
            "concurrency": concurrency,
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
        }.items():
            if value is not None and not value > 0:
                raise ConfigurationError(
                    "a limit of calls is not above 0", name, str(value), "a number above 0"
                )
        self._concurrency = concurrency
        self._requests = None if requests_per_minute is None else Pace(requests_per_minute)
        self._tokens = None if tokens_per_minute is None else Pace(tokens_per_minute)
        self._share = 1.0
        self._slowdowns = 0
        self._running = 0
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def share(self) -> float:
        """What is left of the limits: 1 for all, 0.5 after the endpoint once refused."""
        return self._share

    @property
    def at_once(self) -> int:
        """How many calls may be made at once at present."""
        return max(1, int(self._concurrency * self._share))

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        """Waits until there is room for one more call, in the order of asking."""
        await self._enter()
        try:
            yield Turn(self)
        finally:
            self._running -= 1
            self._admit()

    async def _enter(self) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(place)
        self._admit()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # admitted and cancelled in one breath
                self._running -= 1
                self._admit()
            raise

    def _admit(self) -> None:
        while self._queue and self._running < self.at_once:
            place = self._queue.popleft()
            if not place.done():  # else whoever waited was cancelled
                self._running += 1
                place.set_result(None)

    async def _pause(self, estimated_tokens: int, share: float) -> None:
        now = time.monotonic()
        pause = 0.0
        if self._requests is not None:
            pause = self._requests.book(1, now, share)
        if self._tokens is not None:
            pause = max(pause, self._tokens.book(estimated_tokens, now, share))
        if pause:
            await asyncio.sleep(pause)

    def _grow(self, tokens_off: int, share: float) -> None:
        if self._tokens is not None:
            self._tokens.correct(tokens_off, share)
        one_more_a_round = 1 / (self._concurrency * self.at_once)
        self._share = min(1.0, self._share + min(one_more_a_round, SMALLEST_SHARE))

    def _slow_down(self, slowdowns_before: int) -> None:
        if slowdowns_before == self._slowdowns:
            self._share = max(SMALLEST_SHARE, self._share / 2)
            self._slowdowns += 1
