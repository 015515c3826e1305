"""Prefect's server, for one run or for a schedule, as a process that never outlives its parent.

Called as `python -m scopenote.flows.prefect_server SOCKET TOKEN [lasting]` by `prefect_home.py`
only. The socket is inherited and already listens. Standard input is a pipe whose other end the
parent holds: at its end the parent is gone, were it by `kill -9`, and the server goes too.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time

_GRACE_SECONDS = 3.0


def main() -> None:
    """Serves until standard input ends."""
    threading.Thread(target=end_with_parent, args=(_GRACE_SECONDS,), daemon=True).start()
    os.environ["PREFECT__SERVER_FINAL"] = "1"
    if "lasting" not in sys.argv[3:]:
        os.environ["PREFECT_UI_ENABLED"] = "0"
        # Prefect's own mark for the server it starts beside a flow: fewer services, no web pages.
        os.environ["PREFECT__SERVER_EPHEMERAL"] = "1"

    import uvicorn
    from prefect.server.api.server import create_app

    server = uvicorn.Server(
        uvicorn.Config(create_app, factory=True, log_level="error", lifespan="on")
    )
    server.run(sockets=[socket.socket(fileno=int(sys.argv[1]))])


def end_with_parent(grace_seconds: float) -> None:
    """Waits until standard input ends, and ends this process: kindly, and if need be not so."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_seconds)
    os._exit(1)


if __name__ == "__main__":
    main()
