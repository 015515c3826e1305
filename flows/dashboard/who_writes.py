"""Who looks at a page, by its cookies: by which name they write, and what they have seen."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from ...store.errors import UserMistake
from ..by_hand import author_name
from .pages import site_of

if TYPE_CHECKING:
    from fastapi import Request, Response

AUTHOR = "author"
SAW_SCORE = "saw_score"
_YEAR_SECONDS = 365 * 24 * 3600


def default_author(request: Request) -> str | None:
    """By which name who looks has written last, else the one that the dashboard was given.

    Where only this machine can ask, that is the login name; elsewhere nobody is taken for it.
    """
    remembered = unquote(request.cookies.get(AUTHOR, ""))
    site = site_of(request)
    try:
        if remembered:
            return author_name(remembered)
        if site.author is None and site.token is not None:
            return None
        return author_name(site.author)
    except UserMistake:
        return None


def remember_author(response: Response, author: str) -> None:
    """Has the browser say next time who this is."""
    response.set_cookie(
        AUTHOR, quote(author, safe=""), max_age=_YEAR_SECONDS, httponly=True, samesite="lax"
    )


def has_seen_score(request: Request) -> bool:
    """Whether contexts of `score` of the feature that is asked for were opened before."""
    return SAW_SCORE in request.cookies


def remember_score_was_seen(response: Response, path: str) -> None:
    """Has the browser say so whenever it asks for the feature of this address, and for no other."""
    response.set_cookie(
        SAW_SCORE, "1", max_age=_YEAR_SECONDS, path=path, httponly=True, samesite="strict"
    )
