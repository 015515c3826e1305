"""A Prefect worker, as a process that never outlives its parent.

Called as `python -m scopenote.flows.prefect_worker POOL` by `schedule_server.py` only. Standard
input is a pipe whose other end the parent holds, as for `prefect_server.py`.
"""

from __future__ import annotations

import runpy
import sys
import threading

from .prefect_server import end_with_parent

# For the run that it has under way: Prefect looks every three seconds whether that has ended.
_GRACE_SECONDS = 20.0
# One that works, and one that skips or waits: however many are due, no more processes begin.
_AT_ONCE = 2


def main() -> None:
    """Works until it is told to end, or standard input does."""
    threading.Thread(target=end_with_parent, args=(_GRACE_SECONDS,), daemon=True).start()
    sys.argv = ["prefect", "worker", "start", "--pool", sys.argv[1], "--type", "process"]
    sys.argv += ["--limit", str(_AT_ONCE)]
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
