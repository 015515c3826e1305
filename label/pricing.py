"""What calls cost.

Prices come from a dated table (`prices.toml`) that the user's own table adds to. A model that
neither names has no price: its calls cost None, never 0. All arithmetic is exact, in decimals.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Context, Decimal, DivisionByZero, Inexact, InvalidOperation, localcontext
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..store.errors import ConfigurationError

# For sums of dollars: wide enough for any, and an error rather than a rounding if it were not.
EXACT = Context(prec=80, traps=[Inexact, InvalidOperation, DivisionByZero])
# Decimals that prices may have, so that a cost fits the ledger's 18: 6 of them are "per million".
_DECIMALS = {"input": 9, "cached_input": 9, "output": 9, "batch_share": 3}
_SHAPE = 'as_of = "YYYY-MM" and tables [models."NAME"] with ' + ", ".join(_DECIMALS)


@dataclass(frozen=True, slots=True)
class Price:
    """What a model's tokens cost, in US dollars per million.

    Attributes:
        input: of tokens of the prompt.
        cached_input: of those among them that the endpoint had cached.
        output: of tokens of the reply.
        batch_share: the share of these prices that a batch costs.
        as_of: when that was so.
    """

    input: Decimal
    cached_input: Decimal
    output: Decimal
    batch_share: Decimal
    as_of: str

    def cost(
        self,
        prompt_tokens: int,
        cached_tokens: int,
        completion_tokens: int,
        in_batch: bool = False,
    ) -> Decimal:
        """Dollars for a call, exactly; the cached tokens are among the prompt's."""
        # An endpoint that counts more of them than the prompt has must not make the rest negative.
        cached_tokens = min(cached_tokens, prompt_tokens)
        with localcontext(EXACT):
            per_million = (
                (prompt_tokens - cached_tokens) * self.input
                + cached_tokens * self.cached_input
                + completion_tokens * self.output
            )
            return (per_million * (self.batch_share if in_batch else 1)).scaleb(-6)

    def most(self, prompt_tokens: int, completion_tokens: int, in_batch: bool = False) -> Decimal:
        """Dollars that a call of at most so many tokens cannot exceed, cached or not."""
        cost = self.cost(prompt_tokens, 0, completion_tokens, in_batch)
        cached = self.cost(prompt_tokens, prompt_tokens, completion_tokens, in_batch)
        return max(cost, cached)


FREE = Price(Decimal(0), Decimal(0), Decimal(0), batch_share=Decimal(1), as_of="always")
"""The price of a model that runs in this process: known, and nothing."""

Prices = Mapping[str, Price]


def in_dollars(usd: Decimal) -> str:
    """An amount as people read it: to the cent, or two digits of what is less."""
    if not usd or usd >= Decimal("0.1"):
        return f"${usd:,.2f}"
    return f"${Decimal(f'{usd:.1e}'):f}"


def cost_of_call(
    prices: Prices,
    model: str,
    prompt_tokens: int | None,
    cached_tokens: int | None,
    completion_tokens: int | None,
    in_batch: bool = False,
) -> Decimal | None:
    """Dollars for a call; None where the model has no price or the endpoint counted no tokens.

    The model is found by its exact name. Of no word about cached tokens it follows that all are
    paid in full.
    """
    price = prices.get(model)
    if price is None or prompt_tokens is None or completion_tokens is None:
        return None
    return price.cost(prompt_tokens, cached_tokens or 0, completion_tokens, in_batch)


# --- the table --------------------------------------------------------------------------------


def load_prices(own: Path | None = None) -> dict[str, Price]:
    """The prices that are known, by model; those of the user's own table come first.

    Args:
        own: a TOML file of the form of `prices.toml`.

    Raises:
        ConfigurationError: it cannot be read, or has another form.
    """
    shipped = files("scopenote.label").joinpath("prices.toml").read_text("utf-8")
    prices = _parse_prices(shipped, "prices.toml")
    if own is not None:
        try:
            text = own.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                "The table of prices cannot be read.", where=str(own), found=str(error)
            ) from error
        prices |= _parse_prices(text, str(own))
    return prices


def _parse_prices(text: str, file: str) -> dict[str, Price]:
    try:
        table = tomllib.loads(text, parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(
            "The table of prices is not TOML.", where=file, found=str(error), expected=_SHAPE
        ) from error
    _require_keys(table, {"as_of", "models"}, file, "at the top")
    as_of, models = table["as_of"], table["models"]
    if not isinstance(as_of, str):
        raise _wrong(file, "as_of", as_of, 'a month in quotes, such as "2026-11"')
    if not isinstance(models, dict):
        raise _wrong(file, "models", models, _SHAPE)
    return {name: _price(name, entry, as_of, file) for name, entry in models.items()}


def _price(name: str, entry: Any, as_of: str, file: str) -> Price:
    key = f'models."{name}"'
    if not isinstance(entry, dict):
        raise _wrong(file, key, entry, "a table with " + ", ".join(_DECIMALS))
    _require_keys(entry, set(_DECIMALS), file, key)
    numbers = {
        each: _number(entry[each], decimals, file, f"{key}.{each}")
        for each, decimals in _DECIMALS.items()
    }
    if numbers["batch_share"] > 1:
        raise _wrong(file, f"{key}.batch_share", entry["batch_share"], "at most 1")
    return Price(**numbers, as_of=as_of)


def _number(value: Any, decimals: int, file: str, key: str) -> Decimal:
    expected = f"a number from 0 to 1000000 with at most {decimals} decimals"
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise _wrong(file, key, value, expected)
    number = Decimal(value)
    exponent = number.as_tuple().exponent
    # Of what is not finite the exponent is a letter.
    if not isinstance(exponent, int) or exponent < -decimals or not 0 <= number <= 1_000_000:
        raise _wrong(file, key, value, expected)
    return number


def _require_keys(table: dict[str, Any], wanted: set[str], file: str, where: str) -> None:
    if table.keys() != wanted:
        raise ConfigurationError(
            "The table of prices lacks a key or has an unknown one.",
            where=f"{file}, {where}",
            found=", ".join(sorted(table)) or "nothing",
            expected=", ".join(sorted(wanted)),
        )


def _wrong(file: str, key: str, found: Any, expected: str) -> ConfigurationError:
    return ConfigurationError(
        "The table of prices has a value that is not allowed.",
        where=f"{file}, key `{key}`",
        found=str(found),
        expected=expected,
    )
