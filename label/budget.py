"""The limit on what calls may cost, kept also while many are under way."""

from __future__ import annotations

import time
from collections.abc import Iterable
from decimal import Decimal, localcontext
from threading import Lock

from ..store.errors import AllowanceSpent, BudgetSpent, ConfigurationError
from .pricing import EXACT, Prices


class Budget:
    """A limit on dollars; threads may share it.

    Before a call, `reserve` the most that it can cost; after it, `settle` what it did cost.
    """

    def __init__(
        self,
        limit_usd: Decimal,
        models: Iterable[str],
        prices: Prices,
        spent_usd: Decimal = Decimal(0),
        reserved_usd: Decimal = Decimal(0),
        is_allowance: bool = False,
    ) -> None:
        """A limit for calls to these models.

        Args:
            limit_usd: dollars, what is spent already included; 0 lets only free calls through.
            models: all that will be called.
            prices: what is known of them.
            spent_usd: what counts as spent before the first call.
            reserved_usd: what others that are under way may come to.
            is_allowance: the limit is that of one invocation, after which another goes on.

        Raises:
            ConfigurationError: a model has no price, or the limit is no amount of dollars.
        """
        if not limit_usd.is_finite() or limit_usd < 0:
            raise ConfigurationError(
                "The budget is not an amount of dollars.",
                found=str(limit_usd),
                expected="0 or more, such as 2.50",
            )
        if unknown := sorted(set(models) - set(prices)):
            raise ConfigurationError(
                "A budget is set, but what this model costs is not known.",
                found=", ".join(unknown),
                expected="one of " + ", ".join(sorted(prices)),
                mend="add it to a table of prices of your own (0 where it is free), or set no "
                "budget",
            )
        self.limit_usd = limit_usd
        self._spent = spent_usd
        self._reserved = reserved_usd
        self._is_allowance = is_allowance
        self._lock = Lock()

    @property
    def spent_usd(self) -> Decimal:
        """Dollars of the calls that are settled."""
        return self._spent

    @property
    def left_usd(self) -> Decimal:
        """Dollars neither spent nor reserved."""
        with self._lock, localcontext(EXACT):
            return self.limit_usd - self._spent - self._reserved

    @property
    def is_allowance(self) -> bool:
        """Whether the limit is that of one invocation, after which another goes on."""
        return self._is_allowance

    def reserve(self, most_usd: Decimal) -> bool:
        """Whether a call that may cost so much may be made now.

        Returns:
            True: its cost is reserved. False: only what calls under way have reserved is in the
            way; ask again when one of them is settled.

        Raises:
            BudgetSpent: it could exceed the limit whatever those come to.
        """
        with self._lock, localcontext(EXACT):
            if self._spent + most_usd > self.limit_usd:
                if self._is_allowance:
                    raise AllowanceSpent(
                        "What this invocation may spend does not cover the next call.",
                        found=f"up to ${most_usd:f} for it, ${self.limit_usd - self._spent:f} left",
                    )
                raise BudgetSpent(
                    "The budget does not cover the next call.",
                    found=f"${self._spent:f} spent, and up to ${most_usd:f} for this call",
                    expected=f"at most ${self.limit_usd:f}",
                    mend="give the same command with a larger --budget-usd: what was paid for is "
                    "kept",
                )
            if self._spent + self._reserved + most_usd > self.limit_usd:
                return False
            self._reserved += most_usd
            return True

    def settle(self, most_usd: Decimal, usd: Decimal | None) -> None:
        """Replaces what was reserved for a call by what it cost.

        Args:
            most_usd: what was reserved.
            usd: None where the endpoint did not say; it then counts as the most.
        """
        with self._lock, localcontext(EXACT):
            self._reserved -= most_usd
            self._spent += most_usd if usd is None else usd


class Allowance:
    """How many calls one invocation may make, and until when; threads may share it."""

    def __init__(self, calls: int | None = None, seconds: float | None = None) -> None:
        """From now on.

        Args:
            calls: None for any number.
            seconds: None for any time.
        """
        self._calls = calls
        self._until = None if seconds is None else time.monotonic() + seconds
        self._made = 0
        self._lock = Lock()

    @property
    def n_left(self) -> int | None:
        """How many more calls may be made; None for any number."""
        with self._lock:
            return None if self._calls is None else max(0, self._calls - self._made)

    @property
    def seconds_left(self) -> float | None:
        """How much time is left; None for any."""
        return None if self._until is None else max(0.0, self._until - time.monotonic())

    def lend(self, n: int) -> None:
        """Counts calls that others may make; what they did not make is given back as minus n."""
        with self._lock:
            self._made += n

    def require_time(self) -> None:
        """Makes sure that there is time left.

        Raises:
            AllowanceSpent: there is none.
        """
        if self._until is not None and time.monotonic() >= self._until:
            raise AllowanceSpent("The time that this invocation may take is over.")

    def take_call(self) -> None:
        """Counts a call that is about to be made.

        Raises:
            AllowanceSpent: it is one too many, or too late.
        """
        self.require_time()
        with self._lock:
            if self._calls is not None and self._made >= self._calls:
                raise AllowanceSpent(
                    "This invocation may make no further call.", found=f"{self._made:,} made"
                )
            self._made += 1
