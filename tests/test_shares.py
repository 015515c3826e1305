"""What may be spent, divided among tasks: never exceeded, and spent to its end."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from decimal import Decimal
from threading import Lock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scopenote.flows.shares import Purse, Share, Spent, run_in_shares
from scopenote.label.budget import Allowance, Budget
from scopenote.label.pricing import Price
from scopenote.label.recorded_client import Tally
from scopenote.store.errors import AllowanceSpent, BudgetSpent, EndpointRefuses

PRICES = {"m": Price(Decimal(1), Decimal(1), Decimal(1), Decimal(1), "2026-11")}
CENT = Decimal("0.01")


@dataclass(frozen=True)
class Work:
    spent: Spent
    rest: int | None
    n_done: int


@dataclass
class Tasks:
    """Tasks of so many calls at a cent each, in threads."""

    threads: ThreadPoolExecutor
    refuses_after: int | None = None
    n_calls: int = 0
    lock: Lock = field(default_factory=Lock)

    def begin(self, piece: int, share: Share) -> Future[Work]:
        return self.threads.submit(self.work, piece, share)

    def work(self, piece: int, share: Share) -> Work:
        budget, allowance = share.budget("m", PRICES, Decimal(0)), share.allowance(0)
        n_done, stopped = 0, None
        try:
            while n_done < piece:
                if self.refuses_after is not None and self.n_calls >= self.refuses_after:
                    raise EndpointRefuses("no")
                if budget is not None:
                    assert budget.reserve(CENT)
                allowance.take_call()
                if budget is not None:
                    budget.settle(CENT, CENT)
                n_done += 1
                with self.lock:
                    self.n_calls += 1
        except (BudgetSpent, EndpointRefuses) as error:
            stopped = error
        usd = n_done * CENT if budget is not None else Decimal(0)
        return Work(Spent(usd, Tally(n_calls=n_done), stopped), (piece - n_done) or None, n_done)


def do(
    pieces: list[int],
    n_places: int,
    usd: Decimal | None = None,
    calls: int | None = None,
    refuses_after: int | None = None,
) -> tuple[Tasks, Purse]:
    budget = None if usd is None else Budget(usd, ["m"], PRICES)
    purse = Purse(budget, Allowance(calls), n_places)
    with ThreadPoolExecutor(n_places) as threads:
        tasks = Tasks(threads, refuses_after)
        n_done = sum(work.n_done for work in run_in_shares(tasks.begin, pieces, purse))
    assert n_done == tasks.n_calls
    return tasks, purse


PIECES = st.lists(st.integers(1, 30), min_size=1, max_size=20)


@given(PIECES, st.integers(1, 9), st.integers(0, 300))
def test_dollars_are_spent_to_their_end_and_never_exceeded(
    pieces: list[int], n_places: int, cents: int
) -> None:
    tasks, purse = do(pieces, n_places, usd=cents * CENT)
    assert tasks.n_calls == min(sum(pieces), cents)
    if cents < sum(pieces):
        assert isinstance(purse.stopped, BudgetSpent)
        # In terms of all that may be spent, not of the last task's share.
        assert purse.stopped.found is not None
        spent = purse.stopped.found.removeprefix("$").partition(" spent")[0]
        assert Decimal(spent) == cents * CENT
    else:
        assert purse.stopped is None


@given(PIECES, st.integers(1, 9), st.integers(0, 300))
def test_calls_are_made_to_the_last_and_no_more(
    pieces: list[int], n_places: int, calls: int
) -> None:
    tasks, purse = do(pieces, n_places, calls=calls)
    assert tasks.n_calls == min(sum(pieces), calls)
    assert isinstance(purse.stopped, AllowanceSpent) == (calls < sum(pieces))


def test_what_is_lent_is_never_more_than_there_is() -> None:
    for n_places in (1, 2, 7, 32):
        budget = Budget(Decimal(1), ["m"], PRICES, spent_usd=Decimal("0.25"))
        purse = Purse(budget, Allowance(), n_places)
        shares: list[Share] = []
        while (share := purse.lend(len(shares), None)) is not None:
            shares.append(share)
        assert len(shares) == n_places
        assert sum(share.usd for share in shares) <= Decimal("0.75")
        assert sum(share.usd for share in shares) > Decimal("0.7499")
        assert budget.left_usd >= 0


def test_what_a_task_did_not_spend_is_lent_to_the_next() -> None:
    budget = Budget(Decimal(1), ["m"], PRICES)
    purse = Purse(budget, Allowance(), 2)
    first = purse.lend(0, None)
    second = purse.lend(1, None)
    assert first is not None is not second
    assert (first.usd, second.usd) == (Decimal("0.5"), Decimal("0.5"))
    assert purse.lend(2, None) is None
    purse.take_back(first, Spent(usd=Decimal("0.1")))
    third = purse.lend(1, None)
    assert third is not None
    assert third.usd == Decimal("0.4")


def test_where_more_is_spent_than_the_limit_nothing_is_lent() -> None:
    budget = Budget(Decimal(1), ["m"], PRICES, spent_usd=Decimal(2))
    share = Purse(budget, Allowance(), 2).lend(0, None)
    assert share is not None
    assert share.usd == 0
    mine = share.budget("m", PRICES, Decimal(0))
    assert mine is not None
    with pytest.raises(BudgetSpent) as stopped:
        mine.reserve(CENT)
    assert stopped.value.found is not None
    assert stopped.value.found.startswith("$2 spent")


def test_what_an_earlier_attempt_spent_is_no_longer_there() -> None:
    share = Share("name", Decimal(1), Decimal("0.5"), Decimal("0.5"), calls=10)
    budget, allowance = share.budget("m", PRICES, Decimal("0.45")), share.allowance(9)
    assert budget is not None
    assert budget.left_usd == Decimal("0.05")
    assert allowance.n_left == 1


def test_where_the_endpoint_refuses_nothing_more_is_begun() -> None:
    tasks, purse = do([5] * 100, n_places=4, refuses_after=20)
    assert isinstance(purse.stopped, EndpointRefuses)
    assert tasks.n_calls < 30


def test_without_a_limit_all_is_done() -> None:
    tasks, purse = do([3] * 50, n_places=3)
    assert tasks.n_calls == 150
    assert purse.stopped is None


def test_when_the_time_is_over_the_rest_is_left() -> None:
    purse = Purse(None, Allowance(seconds=0), 2)
    with ThreadPoolExecutor(2) as threads:
        done = list(run_in_shares(Tasks(threads).begin, [3, 3], purse))
    assert sum(work.n_done for work in done) == 0
    assert isinstance(purse.stopped, AllowanceSpent)
