"""What may be spent, divided among the tasks that spend it, wherever they are.

Who has the flow lends each task a share: dollars, calls, time. A task gives back what it did not
spend. What is lent and what is spent together never exceed what may be spent, however many tasks
are at work; and where a share turns out too small, the rest of the task's work is begun again
with a larger one, while there is any left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar
from uuid import uuid4

from ..label.budget import Allowance, Budget
from ..label.pricing import EXACT, Prices
from ..label.recorded_client import Tally
from ..store.errors import BudgetSpent, EndpointRefuses, ScopenoteError

if TYPE_CHECKING:
    from prefect.futures import PrefectFuture

# Shares are whole billionths of a dollar, so that sums are exact.
_SHARE_DECIMALS = 9


@dataclass(frozen=True, slots=True)
class Share:
    """What one task may spend, in all its attempts.

    Attributes:
        name: of its own, which its journals carry.
        limit_usd: what may be spent in all, so that what is said of it holds for all; None for
            no limit.
        gone_usd: what of that is spent, or lent to others.
        usd: what of it is this task's to spend.
        is_allowance: the limit is that of one invocation.
        calls: how many it may make; None for any number.
        seconds: how long it may go on making them; None for any time.
    """

    name: str
    limit_usd: Decimal | None = None
    gone_usd: Decimal = Decimal(0)
    usd: Decimal = Decimal(0)
    is_allowance: bool = False
    calls: int | None = None
    seconds: float | None = None

    def budget(self, model: str, prices: Prices, before_usd: Decimal) -> Budget | None:
        """The limit on dollars.

        Args:
            model: that is asked.
            prices: what is known of it.
            before_usd: what earlier attempts have spent of it.
        """
        if self.limit_usd is None:
            return None
        with localcontext(EXACT):
            spent = self.gone_usd + before_usd
        return Budget(self.limit_usd, [model], prices, spent, is_allowance=self.is_allowance)

    def allowance(self, calls_before: int) -> Allowance:
        """The limit on calls and time, of which earlier attempts have made so many."""
        calls = None if self.calls is None else max(0, self.calls - calls_before)
        return Allowance(calls, self.seconds)


UNLIMITED = Share("")


@dataclass(frozen=True, slots=True)
class Spent:
    """What a task has spent of its share, and how it ended.

    Attributes:
        usd: with what broken-off calls may have cost.
        tally: its calls.
        stopped: why it ended early, where it did.
        lacking: what the endpoint turned out not to offer.
    """

    usd: Decimal = Decimal(0)
    tally: Tally = field(default_factory=Tally)
    stopped: ScopenoteError | None = None
    lacking: dict[str, str] = field(default_factory=dict)


P = TypeVar("P")
R_co = TypeVar("R_co", bound="SharedWork[Any]", covariant=True)
R = TypeVar("R", bound="SharedWork[Any]")
P_co = TypeVar("P_co", covariant=True)


class SharedWork(Protocol[P_co]):
    """What came of a piece of work that was done on a share."""

    @property
    def spent(self) -> Spent:
        """What it has spent."""
        ...

    @property
    def rest(self) -> P_co | None:
        """What of the piece is left where the share did not suffice."""
        ...


class Purse:
    """What may be spent, as it is lent and given back."""

    def __init__(self, budget: Budget | None, allowance: Allowance, n_places: int) -> None:
        """Of dollars, calls and time, for so many tasks at once."""
        self._budget = budget
        self._allowance = allowance
        self._n_places = n_places
        self.stopped: ScopenoteError | None = None

    def lend(self, n_lent: int, too_small: Share | None) -> Share | None:
        """A share for one more task; None while others have to give theirs back first.

        Args:
            n_lent: how many tasks have a share.
            too_small: the share that did not suffice for this one before.
        """
        free = self._n_places - n_lent
        if free <= 0:
            return None
        usd, calls = self._left_usd, self._allowance.n_left
        if n_lent and (usd == 0 or calls == 0):
            return None
        if too_small is not None:
            wanted_calls = 2 * (too_small.calls or 0)
            if n_lent and (
                (usd is not None and usd < 2 * too_small.usd)
                or (calls is not None and calls < wanted_calls)
            ):
                return None
        if free > 1:
            if usd is not None:
                least = Decimal(0) if too_small is None else min(usd, 2 * too_small.usd)
                usd = max(least, _part(usd, free))
            if calls is not None:
                least_calls = 1 if too_small is None else min(calls, 2 * (too_small.calls or 0))
                calls = min(calls, max(least_calls, calls // free))
        return self._lent(usd, calls)

    def _lent(self, usd: Decimal | None, calls: int | None) -> Share:
        limit, gone = None, Decimal(0)
        if self._budget is not None and usd is not None:
            limit = self._budget.limit_usd
            if usd:
                self._budget.reserve(usd)
            with localcontext(EXACT):
                # More may be spent than the limit, where that is lower than it was before.
                gone = (max(limit, self._budget.spent_usd) - usd).normalize()
        if calls is not None:
            self._allowance.lend(calls)
        return Share(
            name=uuid4().hex[:12],
            limit_usd=limit,
            gone_usd=gone,
            usd=usd or Decimal(0),
            is_allowance=self._budget is not None and self._budget.is_allowance,
            calls=calls,
            seconds=self._allowance.seconds_left,
        )

    def take_back(self, share: Share, spent: Spent) -> None:
        """Notes what a task has spent of its share; the rest may be lent again."""
        if self._budget is not None:
            self._budget.settle(share.usd, spent.usd)
        if share.calls is not None:
            self._allowance.lend(min(0, spent.tally.n_calls - share.calls))

    def may_lend_more(self, share: Share, spent: Spent, n_lent: int) -> bool:
        """Whether more can come together for a task than the share that was too small for it."""
        if self._allowance.seconds_left == 0:
            return False
        if n_lent:
            return True
        left_usd, left_calls = self._left_usd, self._allowance.n_left
        with localcontext(EXACT):
            has_more_usd = left_usd is not None and left_usd > share.usd - spent.usd
        return has_more_usd or (
            left_calls is not None
            and share.calls is not None
            and left_calls > share.calls - spent.tally.n_calls
        )

    @property
    def _left_usd(self) -> Decimal | None:
        return None if self._budget is None else max(Decimal(0), self._budget.left_usd)


def _part(usd: Decimal, places: int) -> Decimal:
    """One of so many equal parts, rounded down."""
    return Decimal(int(usd.scaleb(_SHARE_DECIMALS)) // places).scaleb(-_SHARE_DECIMALS)


def run_in_shares(
    begin: Callable[[P, Share], PrefectFuture[R]], pieces: Iterable[P], purse: Purse
) -> Iterator[R]:
    """Does pieces of work on shares of what may be spent, and gives what they come to.

    Where no more may be spent or the endpoint refuses, what is under way ends, nothing more is
    begun, and `purse.stopped` says why.

    Args:
        begin: begins a task for a piece, on a share.
        pieces: in order.
        purse: what may be spent.
    """
    waiting: deque[tuple[P, Share | None]] = deque((piece, None) for piece in pieces)
    running = _Running[R]()
    while True:
        while waiting:
            piece, too_small = waiting[0]
            share = purse.lend(len(running), too_small)
            if share is None:
                break
            waiting.popleft()
            running.add(begin(piece, share), share)
        if not running:
            return
        share, result = running.next()
        spent = result.spent
        purse.take_back(share, spent)
        yield result
        if (
            isinstance(spent.stopped, BudgetSpent)
            and purse.stopped is None
            and result.rest is not None
            and purse.may_lend_more(share, spent, len(running))
        ):
            waiting.appendleft((result.rest, share))
            continue
        if spent.stopped is not None:
            if purse.stopped is None or isinstance(spent.stopped, EndpointRefuses):
                purse.stopped = spent.stopped
            waiting.clear()


class _Running(Generic[R]):
    """Tasks that are under way with the shares that they have."""

    def __init__(self) -> None:
        self._ended: SimpleQueue[PrefectFuture[R]] = SimpleQueue()
        self._shares: dict[PrefectFuture[R], Share] = {}

    def __len__(self) -> int:
        return len(self._shares)

    def add(self, future: PrefectFuture[R], share: Share) -> None:
        self._shares[future] = share
        future.add_done_callback(self._ended.put)

    def next(self) -> tuple[Share, R]:
        """The next that ends."""
        future = self._ended.get()
        return self._shares.pop(future), future.result()
