"""What calls cost, exactly."""

from __future__ import annotations

from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scopenote.label.pricing import Price, cost_of_call, load_prices
from scopenote.store.errors import ConfigurationError
from scopenote.store.records import USD_DECIMALS

MINI = "gpt-4o-mini"
OWN = """
as_of = "2027-01"
[models."llama3.1:8b"]
input = 0
cached_input = 0
output = 0
batch_share = 1
"""

tokens = st.integers(0, 10**12)
prices = st.integers(0, 10**15).map(lambda n: Decimal(n).scaleb(-9))
shares = st.integers(0, 1000).map(lambda n: Decimal(n).scaleb(-3))


def test_a_call_to_gpt_4o_mini_costs_what_its_provider_says() -> None:
    """$0.15 in, $0.075 cached in, $0.60 out per million tokens; half of it in a batch."""
    price = load_prices()[MINI]
    million = 1_000_000
    assert price.cost(million, 0, 0) == Decimal("0.15")
    assert price.cost(million, million, 0) == Decimal("0.075")
    assert price.cost(0, 0, million) == Decimal("0.60")
    assert price.cost(1500, 1024, 40) == Decimal("0.0001722")
    assert price.cost(1, 1, 0, in_batch=True) == Decimal("0.0000000375")
    assert price.as_of == "2026-11"


@settings(max_examples=60)
@given(prices, prices, prices, shares, tokens, tokens, tokens, st.booleans())
def test_costs_are_exact_and_fit_the_ledger(
    full: Decimal,
    cached: Decimal,
    output: Decimal,
    share: Decimal,
    n_full: int,
    n_cached: int,
    n_output: int,
    in_batch: bool,
) -> None:
    price = Price(full, cached, output, share, "2026-11")
    with localcontext(prec=3):  # whatever precision others have set
        cost = price.cost(n_full + n_cached, n_cached, n_output, in_batch)
        most = price.most(n_full + n_cached, n_output, in_batch)
    expected = n_full * Fraction(full) + n_cached * Fraction(cached) + n_output * Fraction(output)
    expected *= Fraction(share) if in_batch else 1
    assert Fraction(cost) == expected / 1_000_000
    assert cost.as_tuple().exponent >= -USD_DECIMALS
    assert cost <= most


def test_more_cached_tokens_than_the_prompt_has_make_no_call_cheaper() -> None:
    price = load_prices()[MINI]
    assert price.cost(100, 10_000, 0) == price.cost(100, 100, 0)


def test_what_is_not_known_costs_none() -> None:
    known = load_prices()
    assert cost_of_call(known, "another model", 10, 0, 10) is None
    assert cost_of_call(known, MINI, None, None, 10) is None
    assert cost_of_call(known, MINI, 10, 0, None) is None
    assert cost_of_call(known, MINI, 10, None, 10) == known[MINI].cost(10, 0, 10)
    assert cost_of_call(known, MINI, 10, 4, 10, True) == known[MINI].cost(10, 4, 10, True)


def test_prices_of_ones_own_are_added_and_come_first(tmp_path: Path) -> None:
    own = tmp_path / "prices.toml"
    own.write_text(OWN)
    assert set(load_prices(own)) == {*load_prices(), "llama3.1:8b"}
    assert cost_of_call(load_prices(own), "llama3.1:8b", 10, 0, 10) == 0
    own.write_text(OWN.replace("llama3.1:8b", MINI).replace("output = 0", "output = 0.8"))
    assert load_prices(own)[MINI].output == Decimal("0.8")
    assert load_prices(own)[MINI].as_of == "2027-01"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("input = 0\n", "input = -0.1\n", r'models\."llama3\.1:8b"\.input'),
        ("input = 0\n", "input = nan\n", "found: NaN"),
        ("input = 0\n", 'input = "0.1"\n', "a number from 0"),
        ("input = 0\n", "input = true\n", "a number from 0"),
        ("input = 0\n", "input = 0.0000000001\n", "at most 9 decimals"),
        ("input = 0\n", "input = 1e7\n", "from 0 to 1000000"),
        ("batch_share = 1", "batch_share = 1.5", "at most 1"),
        ("batch_share = 1", "batch_share = 0.0005", "at most 3 decimals"),
        ("batch_share = 1", "", "lacks a key"),
        ("batch_share = 1", "batch_share = 1\nbatch = 2", "unknown one"),
        ('as_of = "2027-01"', "", "as_of"),
        ('as_of = "2027-01"', "as_of = 2027-01-01", "a month in quotes"),
        ('as_of = "2027-01"', 'as_of = "2027-01"\ncurrency = "EUR"', "currency"),
        ('[models."llama3.1:8b"]', "[[models]]", "key `models`"),
        ('[models."llama3.1:8b"]', "[models]", "a table with input"),
        ("output = 0", "output 0", "not TOML"),
    ],
)
def test_a_wrong_table_is_answered_with_the_file_and_the_key(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    own = tmp_path / "own.toml"
    own.write_text(OWN.replace(old, new))
    with pytest.raises(ConfigurationError, match=said) as caught:
        load_prices(own)
    assert str(own) in str(caught.value)


def test_a_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.toml"):
        load_prices(tmp_path / "none.toml")
