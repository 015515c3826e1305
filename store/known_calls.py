"""The calls that a run has made already, found by request: what is known is not asked again."""

from __future__ import annotations

from collections import OrderedDict
from datetime import datetime
from pathlib import Path
from threading import Lock

from .calls import find_calls
from .database import Store
from .journal import has_ended, list_journals
from .journalled_calls import JournalledCalls, JournalReading
from .records import Call

# Journals that are looked into again are near in time: a task that goes on where one was killed.
_MOST_OPEN = 8


class KnownCalls:
    """The calls in a run's published database, and those journalled since it was opened.

    In memory are the hashes, and of each call journalled since the journal that it stands in.
    While this is used no journal may be absorbed. Threads may share it.
    """

    def __init__(
        self,
        store: Store,
        journal: Path,
        replies_only: bool = False,
        failures_since: datetime | None = None,
    ) -> None:
        """Reads which requests were made.

        Args:
            store: the published database, with all journals absorbed that others left.
            journal: the run's `journal/`.
            replies_only: requests to which no reply came count as never made,
            failures_since: but for those that failed since then.
        """
        self._store = store
        self._journal = journal
        self._replies_only = replies_only
        rows = store.connection.execute(
            "SELECT request_hash FROM calls "
            "WHERE NOT $replies_only OR reply IS NOT NULL OR created_at >= $since",
            {"replies_only": replies_only, "since": failures_since},
        ).fetchall()
        self._stored = {int(request_hash, 16) for (request_hash,) in rows}
        self._journalled: dict[int, Path] = {}
        self._seen: set[Path] = set()
        self._open: OrderedDict[Path, JournalledCalls] = OrderedDict()
        self._reading = Lock()

    def add(self, call: Call, journal: Path) -> None:
        """Notes a call that this process has journalled, and where."""
        self._journalled[int(call.request_hash, 16)] = journal
        self._seen.add(journal)

    def learn(self) -> None:
        """Notes the calls in journals of others who have closed them, or died, since."""
        with self._reading:
            for path in list_journals(self._journal):
                if path in self._seen:
                    continue
                with path.open("rb") as file:
                    if has_ended(file):
                        self._note(path, JournalReading(file))

    def learn_of(self, share: str) -> list[Call]:
        """The calls that were made on this share before, by whoever had it; from now on known."""
        found: list[Call] = []
        with self._reading:
            for path in list_journals(self._journal, share):
                with path.open("rb") as file:
                    found += self._note(path, JournalReading(file))
        return found

    def _note(self, path: Path, reading: JournalReading) -> list[Call]:
        calls = [placed.call for placed in reading.calls()]
        for call in calls:
            # A failure gives way to a reply.
            number = int(call.request_hash, 16)
            if call.reply is not None or number not in self._journalled:
                self._journalled[number] = path
        self._seen.add(path)
        return calls

    def __contains__(self, request_hash: str) -> bool:
        number = int(request_hash, 16)
        return number in self._stored or number in self._journalled

    def find(self, request_hash: str) -> Call:
        """What came of a request that is known.

        Raises:
            KeyError: it is not.
        """
        number = int(request_hash, 16)
        # Two features with the very same prompt, two candidates that say the same; or a task that
        # goes on where another was killed.
        if (path := self._journalled.get(number)) is not None:
            with self._reading:
                found = self._look_into(path, request_hash)
            if found is not None:
                return found
        if number in self._stored:
            with self._store.cursor() as connection:
                return find_calls(connection, [request_hash])[request_hash]
        raise KeyError(request_hash)

    def _look_into(self, path: Path, request_hash: str) -> Call | None:
        calls = self._open.pop(path, None)
        if calls is None:
            calls = JournalledCalls(self._journal, only=path)
        self._open[path] = calls
        if len(self._open) > _MOST_OPEN:
            self._open.popitem(last=False)[1].close()
        found = calls.find(request_hash)
        if found is None:
            calls.read_on()
            found = calls.find(request_hash)
        return found

    def close(self) -> None:
        """Lets the journals go."""
        with self._reading:
            while self._open:
                self._open.popitem()[1].close()
