"""What labels are asked of a language model for, and what came of asking."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

import duckdb

from ..label.pricing import in_dollars
from ..label.prompted import PromptedExplainer
from ..label.recorded_client import Tally
from ..store.batch_record import Batch
from ..store.calls import spent
from ..store.errors import ScopenoteError
from ..store.run_folder import RunFolder
from .explain_settings import ExplainSection
from .progress import Progress
from .terminal import program

PURPOSE = "explain"


@dataclass(frozen=True, slots=True)
class AskJob:
    """What is asked, and where what comes of it goes.

    Attributes:
        explainers: whose prompts.
        settings: how the model is asked.
        folder: the run.
        progress: where it is shown.
        run_id: the run that the labels are of.
        budget_usd: what the whole run may cost, with what it has cost already.
        retry_failed: send again what got no reply before.
        began_at: when this command did.
        absorb: brings finished parts and journals into the database and publishes it.
    """

    explainers: Sequence[PromptedExplainer]
    settings: ExplainSection
    folder: RunFolder
    progress: Progress
    run_id: str
    budget_usd: Decimal | None
    retry_failed: bool
    began_at: datetime
    absorb: Callable[[], None]


@dataclass(slots=True)
class Asked:
    """What came of asking models.

    Attributes:
        labels: how many were written, by the reason of failure; "" for those that are labels.
        tally: the calls.
        lacking: what the endpoint turned out not to offer, and what it said about that.
        stopped: why asking ended early, where it did.
        failed_windows: windows that a judge did not rate, by the reason.
        n_waiting: labels that wait for answers of batches.
        under_way: the batches under way at the end.
        held_back: how many requests wait until those have ended, by the reason.
        notes: what else a person should know, a sentence each.
    """

    labels: Counter[str] = field(default_factory=Counter)
    tally: Tally = field(default_factory=Tally)
    lacking: Mapping[str, str] = field(default_factory=dict)
    stopped: ScopenoteError | None = None
    failed_windows: Counter[str] = field(default_factory=Counter)
    n_waiting: int = 0
    under_way: Sequence[Batch] = ()
    held_back: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def notes_on(asked: Asked, folder: RunFolder) -> tuple[str, ...]:
    """What a person should know about it, a sentence each."""
    return (
        *_calls(asked.tally),
        *(f"the endpoint has no {name}: {words}" for name, words in asked.lacking.items()),
        *asked.notes,
        *_batches(asked, folder),
    )


def _calls(tally: Tally) -> Iterator[str]:
    if not tally.n_calls and not tally.n_known:
        return
    calls = (
        f"{tally.n_calls:,} calls, {tally.prompt_tokens:,} tokens read and "
        f"{tally.completion_tokens:,} written, {in_dollars(tally.usd)}"
    )
    if tally.n_unpriced:
        calls += f" without {tally.n_unpriced:,} calls of unknown price"
    if tally.n_known:
        calls += f"; {tally.n_known:,} more were answered from the record"
    yield calls


def _batches(asked: Asked, folder: RunFolder) -> Iterator[str]:
    for reason, count in asked.held_back.items():
        yield f"{count:,} requests wait: {reason}"
    if asked.under_way:
        n_requests = sum(batch.n_requests for batch in asked.under_way)
        n = len(asked.under_way)
        yield (
            f"{n_requests:,} requests in {n} batch{'es' if n > 1 else ''} at the provider; "
            f"`{program()} explain {shlex.quote(str(folder.path))}` brings in what is done"
        )


def usd_spent(connection: duckdb.DuckDBPyConnection) -> Decimal:
    """What the calls of a run have cost, as far as is known."""
    return sum((each.usd or Decimal(0) for each in spent(connection)), Decimal(0))


def usd_under_way(batches: Sequence[Batch]) -> Decimal:
    """What batches under way cost at most, as far as that is known."""
    return sum((batch.most_usd or Decimal(0) for batch in batches), Decimal(0))
