"""What labels are asked of a language model for, and what came of asking."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from ..label.pricing import in_dollars
from ..label.prompted import PromptedExplainer
from ..label.recorded_client import Tally
from ..store.batch_record import Batch
from ..store.errors import ScopenoteError
from ..store.run_folder import RunFolder
from .explain_settings import ExplainSection
from .progress import Progress
from .spending import Spending
from .terminal import program

if TYPE_CHECKING:
    from .label_plan import LabelPlan
    from .runners import Runner
    from .shares import Spent

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
        spending: what may be spent.
        retry_failed: send again what got no reply before.
        began_at: when this command did.
        absorb: brings finished parts and journals into the database and publishes it.
        absorb_parts: the same but for journals, which tasks under way look into.
        runner: where tasks work.
        at_most: features that are asked about now; None for all.
    """

    explainers: Sequence[PromptedExplainer]
    settings: ExplainSection
    folder: RunFolder
    progress: Progress
    run_id: str
    spending: Spending
    retry_failed: bool
    began_at: datetime
    absorb: Callable[[], None]
    absorb_parts: Callable[[], None]
    runner: Runner
    at_most: int | None = None


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
        steps: of rating, how many labels went through each but the last, by what they are.
        n_windows, n_windows_at_most: simulated, and what would have been without looking early.
        reasons: labels that were written, by why.
        left: features that are left for another time.
        plan: the features that a model has not been asked about yet, in rounds; None before the
            first. An invocation plans once, so that a label made in it is not made again.
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
    steps: Counter[str] = field(default_factory=Counter)
    n_windows: int = 0
    n_windows_at_most: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    left: int = 0
    plan: LabelPlan | None = None

    def add_spent(self, spent: Spent) -> None:
        """Adds what a task has spent."""
        self.tally.add_all(spent.tally)
        self.lacking = {**self.lacking, **spent.lacking}

    def begin_round(self) -> None:
        """What came of it so far stays; why it stopped does not."""
        self.stopped = None


def notes_on(asked: Asked, folder: RunFolder) -> tuple[str, ...]:
    """What a person should know about it, a sentence each."""
    return (
        *_calls(asked.tally),
        *(f"the endpoint has no {name}: {words}" for name, words in asked.lacking.items()),
        *asked.notes,
        *(f"{n:,} {unit}" for unit, n in asked.steps.items()),
        *_saved(asked),
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


def _saved(asked: Asked) -> Iterator[str]:
    if asked.n_windows_at_most:
        share = 1 - asked.n_windows / asked.n_windows_at_most
        yield (
            f"{asked.n_windows:,} windows simulated instead of {asked.n_windows_at_most:,}: "
            f"looking early saved {100 * share:.0f}%"
        )


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
