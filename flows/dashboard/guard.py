"""Who may ask, and what an answer may do in the browser.

Texts of the corpus, labels and replies of models are hostile: nothing of them can run, since no
page may hold a script or style of its own, and nothing is loaded from elsewhere. Pages of other
sites can neither read (they are asked for under another name) nor write (their forms lack the
secret, and the browser says where a form came from).
"""

from __future__ import annotations

import hmac
import logging
import re
from contextlib import suppress
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse

from .site import Site

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "scopenote_token"
MAX_BODY_BYTES = 64 * 1024
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_READING = ("GET", "HEAD")
_LOG = logging.getLogger("uvicorn.error")
_DEFECT = PlainTextResponse(
    "This is a defect of Scopenote, not of yours. Please report it with the lines that "
    "`scopenote serve` has printed.\n",
    status_code=500,
)
# What is tried on the model is written nowhere.
_TRYING = re.compile(r"/[^/]+/[^/]+/[^/]+/try")


class Guard:
    """Lets requests through to the pages, or refuses them."""

    def __init__(self, app: ASGIApp, site: Site) -> None:
        """Before this application, for this site."""
        self.app = app
        self.site = site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        has_begun = False

        async def send_guarded(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                if "cache-control" not in headers:
                    headers["Cache-Control"] = "private, no-cache"
            await send(message)

        answer: ASGIApp = self._refusal(scope) or self.app
        try:
            await answer(scope, receive, send_guarded)
        except Exception:
            # Here, since what is outside of this would answer without these headers.
            _LOG.exception("%s %s", scope["method"], scope["path"])
            if not has_begun:
                await _DEFECT(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.site.hosts is not None and _name_of(host) not in self.site.hosts:
            return PlainTextResponse(
                "This dashboard is not served under this name. Start it with `--host` and the "
                "name or address that you open.\n",
                status_code=421,
            )
        if self.site.token is not None and not self._knows_token(scope, headers):
            return self._welcome(scope) or PlainTextResponse(
                "Open the address that `scopenote serve` printed: it holds the token that is "
                "asked for. Programs send it as `Authorization: Bearer TOKEN`.\n",
                status_code=401,
                headers={"WWW-Authenticate": "Bearer"},
            )
        if scope["method"] in _READING:
            return None
        is_trying = _TRYING.fullmatch(scope["path"]) is not None
        return self._refuse_sending(headers, host, self.site.is_read_only and not is_trying)

    def _refuse_sending(self, headers: Headers, host: str, is_refused: bool) -> Response | None:
        if is_refused:
            return PlainTextResponse("This dashboard is read-only.\n", status_code=403)
        origin = headers.get("origin")
        from_elsewhere = origin is not None and urlsplit(origin).netloc != host
        if from_elsewhere or headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return PlainTextResponse("This form came from another site.\n", status_code=403)
        length = headers.get("content-length", "")
        if not length.isascii() or not length.isdigit():
            return PlainTextResponse("The length of the form is missing.\n", status_code=411)
        if int(length) > MAX_BODY_BYTES:
            return PlainTextResponse("That is too long for a form.\n", status_code=413)
        return None

    def _knows_token(self, scope: Scope, headers: Headers) -> bool:
        cookie = SimpleCookie()
        # Of a cookie that is none, what could be read counts.
        with suppress(CookieError):
            cookie.load(headers.get("cookie", ""))
        shown = cookie[COOKIE].value if COOKIE in cookie else ""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        return self._is_token(shown) or (scheme.lower() == "bearer" and self._is_token(given))

    def _welcome(self, scope: Scope) -> Response | None:
        """Remembers the token that an address holds, and leads to the address without it."""
        if scope["method"] not in _READING:
            return None
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if not any(name == "token" and self._is_token(value) for name, value in query):
            return None
        rest = urlencode([pair for pair in query if pair[0] != "token"])
        # One slash in front: with two it would be the name of another machine.
        path = "/" + scope["raw_path"].decode("latin-1").lstrip("/\\")
        response = RedirectResponse(path + (f"?{rest}" if rest else ""), status_code=303)
        response.set_cookie(COOKIE, self.site.token or "", httponly=True, samesite="strict")
        return response

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), (self.site.token or "").encode())


def _name_of(host: str) -> str:
    """The name in a `Host` header, without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
