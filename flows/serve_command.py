"""`scopenote serve`: the dashboard of a run, in a browser."""

from __future__ import annotations

import os
import secrets
import socket
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..store.errors import UserMistake
from .terminal import complain
from .working import published

if TYPE_CHECKING:
    from .dashboard.site import Site

TOKEN_VARIABLE = "SCOPENOTE_TOKEN"


def serve(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    host: Annotated[
        str,
        typer.Option(
            "--host",
            help="The address to listen at. Another than this machine's own is asked for a token: "
            f"one is made up and printed, or {TOKEN_VARIABLE} has it.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="The port; 0 takes any that is free.")
    ] = 8400,
    author: Annotated[
        str | None,
        typer.Option(
            "--author", metavar="NAME", help="Who writes labels and votes, if not the login name."
        ),
    ] = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Let nobody write labels or vote.")
    ] = False,
    with_model: Annotated[
        bool,
        typer.Option(
            "--with-model",
            help="Let features be tried on a text of one's own: the run's model is loaded, whole, "
            "when somebody first does.",
        ),
    ] = False,
) -> None:
    """A dashboard of the run in a browser; a run may be at work."""
    # A run that is not there, or was made by a newer version, is said at once.
    with published(run):
        pass
    from .dashboard.site import LOOPBACK, Site

    listener = _listen(host, port)
    is_own = _is_own(host)
    token = None if is_own else os.environ.get(TOKEN_VARIABLE) or secrets.token_urlsafe(24)
    site = Site(
        run=run,
        hosts=LOOPBACK | {host} if is_own else None,
        author=author,
        is_read_only=read_only,
        with_model=with_model,
        token=token,
    )
    with listener:
        typer.echo(_address(host, listener.getsockname()[1], token))
        complain("Ctrl-C ends it.")
        _serve(site, listener)


def _serve(site: Site, listener: socket.socket) -> None:
    import uvicorn

    from .dashboard.app import create_app

    config = uvicorn.Config(
        create_app(site),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=3,
    )
    # Ctrl-C is how it ends.
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        UserMistake: there is no such address here, or somebody else listens at it.
    """
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.create_server(address[:2], family=family, backlog=128)
    except OSError as error:
        raise UserMistake(
            "The dashboard cannot listen there.",
            where=f"{host}, port {port}",
            found=error.strerror or str(error),
            mend="name another port with `--port` (0 takes any that is free), or an address of "
            "this machine with `--host`",
        ) from error
    # Else each answer after the first on a connection waits 40 ms for the acknowledgement of its
    # own headers: asyncio sees to that only for sockets that it has made itself.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.set_inheritable(False)
    return listener


def _is_own(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _address(host: str, port: int, token: str | None) -> str:
    name = host
    with suppress(ValueError):
        if ip_address(host).is_unspecified:
            name = socket.gethostname()
        elif ip_address(host).version == 6:
            name = f"[{host}]"
    return f"http://{name}:{port}/" + ("" if token is None else f"?token={token}")
