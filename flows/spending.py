"""What an invocation may spend, counted from its beginning over all its stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING

from ..label.budget import Allowance, Budget
from ..store.batch_record import Batch, batches_under_way
from ..store.calls import spent

if TYPE_CHECKING:
    import duckdb

    from ..label.pricing import Prices
    from .config import BudgetSection


@dataclass(frozen=True, slots=True)
class Spending:
    """Limits of one invocation.

    Attributes:
        limit_usd: what the run may have cost at its end, with what it had cost before; None for
            no limit.
        is_allowance: that limit is the invocation's own, and reaching it a good end.
        allowance: of calls and time.
        is_limited: whether there is any limit of the invocation's own.
    """

    limit_usd: Decimal | None = None
    is_allowance: bool = False
    allowance: Allowance = field(default_factory=Allowance)
    is_limited: bool = False

    def budget(
        self,
        connection: duckdb.DuckDBPyConnection,
        model: str,
        prices: Prices,
        under_way: Sequence[Batch] | None = None,
    ) -> Budget | None:
        """The limit on dollars for calls to a model; None where there is none.

        Args:
            connection: to the state of the run that knows all calls made so far.
            model: that is asked.
            prices: what is known of it.
            under_way: batches that have ended nowhere yet; read where not given.

        Raises:
            ConfigurationError: the model has no price.
        """
        if self.limit_usd is None:
            return None
        batches = batches_under_way(connection) if under_way is None else under_way
        gone = usd_spent(connection) + usd_under_way(batches)
        return Budget(self.limit_usd, [model], prices, gone, is_allowance=self.is_allowance)


def begin_spending(
    connection: duckdb.DuckDBPyConnection, settings: BudgetSection, total_usd: Decimal | None
) -> Spending:
    """What may be spent from now on.

    Args:
        connection: to the run as it is.
        settings: what one invocation may spend.
        total_usd: what all invocations together may have cost.
    """
    limit, is_allowance = total_usd, False
    if settings.usd is not None:
        before = usd_spent(connection) + usd_under_way(batches_under_way(connection))
        own = before + Decimal(str(settings.usd))
        if limit is None or own < limit:
            limit, is_allowance = own, True
    seconds = None if settings.minutes is None else 60 * settings.minutes
    allowance = Allowance(settings.calls, seconds)
    return Spending(limit, is_allowance, allowance, settings.is_set)


def usd_spent(connection: duckdb.DuckDBPyConnection) -> Decimal:
    """What the calls of a run have cost, as far as is known."""
    return sum((each.usd or Decimal(0) for each in spent(connection)), Decimal(0))


def usd_under_way(batches: Sequence[Batch]) -> Decimal:
    """What batches under way cost at most, as far as that is known."""
    return sum((batch.most_usd or Decimal(0) for batch in batches), Decimal(0))
