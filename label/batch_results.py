"""From a batch's files of results to calls in the journal, and to the requests left without one.

A request without an answer may go into a later batch; after `MOST_ROUNDS` of them it is a failure
on record. Reading the same files again, as after a kill, adds nothing: what is known is skipped.
Left out: fetching the files, and the record of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..store.errors import EndpointRefuses, RequestGivenUp
from ..store.journal import Journal
from ..store.records import Call
from ..store.request_files import RequestIndex
from .batch_lines import read_result
from .call_records import CallRecords
from .chat import ChatReply
from .endpoint_client import HOPELESS
from .endpoint_trouble import Trouble, described, refusal_of_all
from .recorded_client import Tally
from .request_body import missing_feature, request_body

if TYPE_CHECKING:
    from ..store.known_calls import KnownCalls

MOST_ROUNDS = 3
"""So many batches is a request in at most."""


@dataclass(slots=True)
class Leftover:
    """The requests of a batch that are still to be asked, and what that showed.

    Attributes:
        unanswered: hashes of those that were tried in vain.
        not_counted: of those that were not even tried, or could not have had another answer.
        lacking: what the endpoint does not offer, and what it said; what was known included.
        refusal: why asking on would be in vain, where it would be.
    """

    unanswered: set[str] = field(default_factory=set)
    not_counted: set[str] = field(default_factory=set)
    lacking: dict[str, str] = field(default_factory=dict)
    refusal: EndpointRefuses | None = None


@dataclass(slots=True)
class BatchResults:
    """Reads the results of one batch.

    Attributes:
        requests: the batch's.
        records: makes calls of results.
        known: the calls made before, those among them that an earlier reading came to.
        journal: where the calls go.
        tally: counts them.
        rounds_before: in how many batches a request was before this one; none: it was in none.
        lacking: what the requests were sent without.
        seconds: how long the batch took.
        where: the batch and its endpoint, for errors.
    """

    requests: RequestIndex
    records: CallRecords
    known: KnownCalls
    journal: Journal
    tally: Tally
    rounds_before: Mapping[str, int]
    lacking: Mapping[str, str]
    seconds: float
    where: str
    _open: set[str] = field(init=False)
    _troubles: dict[str, Trouble] = field(default_factory=dict)
    _n_calls: int = 0

    def __post_init__(self) -> None:
        self._open = set(self.requests.hashes)

    def read(self, file: Path) -> None:
        """Journals the replies of a file, and what else was paid for.

        Raises:
            StoreError: the disk refuses the journal.
        """
        with file.open("rb") as lines:
            for line in lines:
                result = read_result(line)
                # A line that is damaged, or of another batch, leaves its request open.
                if result is not None and result.request_hash in self._open:
                    self._open.discard(result.request_hash)
                    self._take(result.request_hash, result.outcome)

    def settle(self, ending: str, was_tried: bool) -> Leftover:
        """Decides about all requests without a reply, once all files are read.

        Args:
            ending: how the batch ended, in words.
            was_tried: a request without any line was at least in the batch's queue.
        """
        leftover = Leftover(lacking=dict(self.lacking))
        for name in self._open:
            if name not in self.known and was_tried:
                self._troubles[name] = Trouble("unanswered", ending, passes=True)
            elif name not in self.known:
                leftover.not_counted.add(name)
        for name, trouble in list(self._troubles.items()):
            body = request_body(self.requests[name].request, self.lacking)
            if (missing := missing_feature(trouble, body)) is not None:
                leftover.lacking[missing] = trouble.message
                leftover.not_counted.add(name)
                del self._troubles[name]
        in_vain = [trouble for trouble in self._troubles.values() if _is_the_endpoints(trouble)]
        if len(in_vain) >= HOPELESS and not self._n_calls:
            leftover.not_counted |= self._troubles.keys()
            leftover.refusal = EndpointRefuses(
                "a batch came back without a single reply",
                where=self.where,
                found=f"{len(in_vain):,} times such as this: {described(in_vain[0])}",
                mend="mend what it names, or try later: the same command goes on",
            )
            return leftover
        for name, trouble in self._troubles.items():
            self._decide(name, trouble, leftover)
        return leftover

    def _take(self, name: str, outcome: ChatReply | Trouble) -> None:
        if name in self.known:
            self._n_calls += 1
        elif isinstance(outcome, ChatReply):
            reply = replace(outcome, seconds=self.seconds, attempts=self._round(name))
            self._journal(self.records.reply(self.requests[name], reply))
        elif outcome.prompt_tokens is not None:
            self._give_up(name, outcome)  # it was paid for
        else:
            self._troubles[name] = outcome

    def _decide(self, name: str, trouble: Trouble, leftover: Leftover) -> None:
        if trouble.refused is not None:
            refusal = refusal_of_all(trouble.refused, trouble, self.where, has_key=True)
            leftover.refusal = leftover.refusal or refusal
            leftover.not_counted.add(name)
        elif trouble.passes and self._round(name) < MOST_ROUNDS:
            leftover.unanswered.add(name)
        else:
            self._give_up(name, trouble)

    def _round(self, name: str) -> int:
        return self.rounds_before.get(name, 0) + 1

    def _give_up(self, name: str, trouble: Trouble) -> None:
        n_rounds = self._round(name)
        in_batches = "" if n_rounds == 1 else f", in {n_rounds} batches"
        given_up = RequestGivenUp(
            "no batch brought a usable reply",
            found=f"{described(trouble)}{in_batches}",
            reason=trouble.reason,
            attempts=n_rounds,
            seconds=self.seconds,
            prompt_tokens=trouble.prompt_tokens,
            cached_tokens=trouble.cached_tokens,
            completion_tokens=trouble.completion_tokens,
        )
        self._journal(self.records.failure(self.requests[name], given_up))

    def _journal(self, call: Call) -> None:
        self.known.add(call, self.journal.append(call))
        self.tally.add(call)
        self._n_calls += 1


def _is_the_endpoints(trouble: Trouble) -> bool:
    """Whether it says something about the endpoint, or about all requests alike."""
    return trouble.reason not in ("unanswered", "context_too_long") and trouble.refused is None
