"""The budget: no call is made that could exceed it, however many are under way."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scopenote.label.budget import Allowance, Budget
from scopenote.label.pricing import Price, load_prices
from scopenote.store.errors import AllowanceSpent, BudgetSpent, ConfigurationError, ExitCode

MINI = "gpt-4o-mini"
PRICES = load_prices()
FREE = Price(Decimal(0), Decimal(0), Decimal(0), Decimal(1), "2026-11")


def make_budget(limit: str, spent: str = "0") -> Budget:
    return Budget(Decimal(limit), [MINI], PRICES, Decimal(spent))


def test_calls_are_let_through_up_to_the_limit_and_not_beyond() -> None:
    budget = make_budget("1")
    for _ in range(4):
        assert budget.reserve(Decimal("0.25"))
        budget.settle(Decimal("0.25"), Decimal("0.25"))
    with pytest.raises(BudgetSpent, match=r"\$1\.00 spent, and up to \$0\.0000001 for this call"):
        budget.reserve(Decimal("0.0000001"))
    assert budget.spent_usd == 1


def test_what_was_spent_before_counts() -> None:
    budget = make_budget("1", spent="0.9")
    with pytest.raises(BudgetSpent):
        budget.reserve(Decimal("0.2"))
    assert budget.reserve(Decimal("0.1"))


def test_calls_under_way_are_waited_for_before_the_budget_is_called_spent() -> None:
    budget = make_budget("1")
    assert budget.reserve(Decimal("0.8"))
    assert not budget.reserve(Decimal("0.5"))
    budget.settle(Decimal("0.8"), Decimal("0.1"))
    assert budget.reserve(Decimal("0.5"))
    budget.settle(Decimal("0.5"), Decimal("0.5"))
    with pytest.raises(BudgetSpent):
        budget.reserve(Decimal("0.5"))


def test_a_call_whose_cost_is_not_told_counts_as_the_most_it_can_cost() -> None:
    budget = make_budget("1")
    budget.reserve(Decimal("0.7"))
    budget.settle(Decimal("0.7"), None)
    assert budget.spent_usd == Decimal("0.7")


def test_a_failed_call_that_cost_nothing_gives_its_reservation_back() -> None:
    budget = make_budget("1")
    budget.reserve(Decimal("1"))
    budget.settle(Decimal("1"), Decimal(0))
    assert budget.reserve(Decimal("1"))


def test_a_budget_of_zero_refuses_the_first_paid_call_and_no_free_one() -> None:
    budget = Budget(Decimal(0), [MINI, "local"], {**PRICES, "local": FREE})
    assert budget.reserve(FREE.most(100_000, 1000))
    with pytest.raises(BudgetSpent) as caught:
        budget.reserve(PRICES[MINI].most(1, 1))
    assert caught.value.exit_code == ExitCode.FAILED
    assert "--budget-usd" in (caught.value.mend or "")


def test_a_budget_for_a_model_of_unknown_price_is_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match="not known") as caught:
        Budget(Decimal(1), [MINI, "local-b", "local-a"], PRICES)
    assert caught.value.found == "local-a, local-b"


@pytest.mark.parametrize("limit", ["-0.01", "NaN", "Infinity"])
def test_a_limit_that_is_no_amount_is_refused(limit: str) -> None:
    with pytest.raises(ConfigurationError, match="not an amount"):
        make_budget(limit)


cents = st.integers(0, 100).map(lambda n: Decimal(n).scaleb(-2))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.booleans(), cents, cents)), cents)
def test_spent_and_reserved_together_never_exceed_the_limit(
    steps: list[tuple[bool, Decimal, Decimal]], limit: Decimal
) -> None:
    budget = make_budget(str(limit))
    under_way: list[Decimal] = []
    spent = Decimal(0)
    for is_new, most, share in steps:
        if is_new:
            try:
                allowed = budget.reserve(most)
            except BudgetSpent:
                assert spent + most > limit
                continue
            assert allowed == (spent + sum(under_way) + most <= limit)
            under_way += [most] * allowed
        elif under_way:
            most = under_way.pop()
            budget.settle(most, most * share)
            spent += most * share
        assert budget.spent_usd == spent
        assert spent + sum(under_way) <= limit


def test_threads_together_keep_to_the_limit() -> None:
    budget, each = make_budget("1"), Decimal("0.001")
    with ThreadPoolExecutor(8) as threads:
        allowed = sum(threads.map(lambda _: _try(budget, each), range(1500)))
    assert allowed == 1000
    assert budget.spent_usd == 1


def _try(budget: Budget, most: Decimal) -> bool:
    try:
        allowed = budget.reserve(most)
    except BudgetSpent:
        return False
    if allowed:
        budget.settle(most, most)
    return allowed


def test_what_others_under_way_may_come_to_is_reserved_and_not_spent() -> None:
    prices = {"m": Price(Decimal(1), Decimal(1), Decimal(1), Decimal(1), "2026-11")}
    budget = Budget(Decimal("1"), ["m"], prices, Decimal("0.2"), Decimal("0.5"))
    assert budget.spent_usd == Decimal("0.2")
    assert budget.reserve(Decimal("0.3"))
    assert not budget.reserve(Decimal("0.01"))
    with pytest.raises(BudgetSpent):
        budget.reserve(Decimal("0.81"))


def test_an_allowance_lets_so_many_calls_through_whoever_makes_them() -> None:
    allowance = Allowance(calls=50)

    def take(_: int) -> bool:
        try:
            allowance.take_call()
        except AllowanceSpent:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(take, range(200))) == 50
    assert allowance.n_left == 0
    with pytest.raises(AllowanceSpent, match="no further call") as caught:
        allowance.take_call()
    assert caught.value.found == "50 made"


def test_calls_that_others_may_make_count_until_they_are_given_back() -> None:
    allowance = Allowance(calls=10)
    allowance.lend(8)
    assert allowance.n_left == 2
    allowance.lend(-5)
    assert allowance.n_left == 7


def test_an_allowance_of_time_ends() -> None:
    allowance = Allowance(seconds=3600)
    assert 3590 < (allowance.seconds_left or 0) <= 3600
    allowance.take_call()
    over = Allowance(seconds=0)
    assert over.seconds_left == 0
    for refused in (over.take_call, over.require_time):
        with pytest.raises(AllowanceSpent, match="time"):
            refused()


def test_without_limits_there_is_no_end() -> None:
    allowance = Allowance()
    for _ in range(1000):
        allowance.take_call()
    assert (allowance.n_left, allowance.seconds_left) == (None, None)
