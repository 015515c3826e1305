"""The calls that a run has made already, found by request: what is known is not asked again."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from threading import Lock

from .calls import find_calls
from .database import Store
from .journalled_calls import JournalledCalls
from .records import Call


class KnownCalls:
    """The calls in a run's published database, and those that this process journals.

    In memory are the hashes only, eight bytes of each, and the places in the journal of those made
    here once one of them is asked for again. Threads may share it.
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
        self._added: set[int] = set()
        self._reading = Lock()
        self._journalled: JournalledCalls | None = None

    def add(self, call: Call) -> None:
        """Notes a call that was journalled."""
        self._added.add(int(call.request_hash, 16))

    def __contains__(self, request_hash: str) -> bool:
        number = int(request_hash, 16)
        return number in self._stored or number in self._added

    def find(self, request_hash: str) -> Call:
        """What came of a request that is known.

        Raises:
            KeyError: it is not.
        """
        number = int(request_hash, 16)
        if number in self._added:
            # Two features with the very same prompt, two candidates that say the same.
            with self._reading:
                if self._journalled is None:
                    self._journalled = JournalledCalls(self._journal)
                found = self._journalled.find(request_hash)
                if found is None:
                    self._journalled.read_on()
                    found = self._journalled.find(request_hash)
            if found is not None:
                return found
        if number in self._stored:
            with self._store.cursor() as connection:
                return find_calls(connection, [request_hash])[request_hash]
        raise KeyError(request_hash)
