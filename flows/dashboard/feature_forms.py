"""What people write on a feature's page: labels, votes, and labels taken back."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import RedirectResponse, Response
from starlette.exceptions import HTTPException

from ...store.errors import UserMistake
from ...store.feature_history import read_label_records
from ...store.feature_list import FeatureRow
from ...store.run_folder import RunFolder
from ..by_hand import author_name, cast_vote, withdraw_labels, write_label
from .feature_view import Mistake, ViewQuery, find_row, show_feature
from .page_templates import feature_path, with_query
from .pages import Connection, site_of
from .who_writes import default_author, has_seen_score, remember_author

router = APIRouter()
_MOST_FIELDS = 20
_VOTES = {"1": 1, "-1": -1, "0": 0}


async def _read_form(request: Request) -> Mapping[str, str]:
    """The fields of a form of this dashboard.

    Raises:
        HTTPException: it is no form, or another site's.
    """
    body = await request.body()
    try:
        pairs = parse_qsl(
            body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=_MOST_FIELDS
        )
    except ValueError as error:
        raise HTTPException(400, "This is not a form of this dashboard.") from error
    form = dict(pairs)
    secret = site_of(request).form_secret
    if not hmac.compare_digest(form.get("secret", "").encode(), secret.encode()):
        raise HTTPException(
            403, "This form is from before the dashboard was started: open its page again."
        )
    return form


Form = Annotated[Mapping[str, str], Depends(_read_form)]
View = Annotated[ViewQuery, Query()]


@router.post("/{model}/{source}/{index}/label")
def write(
    request: Request,
    connection: Connection,
    model: str,
    source: str,
    index: str,
    asked: View,
    form: Form,
) -> Response:
    """Writes a label, which is then the one in force."""
    row = find_row(connection, model, source, index)
    # Browsers that keep no cookies say by the form itself what its page showed.
    saw_score = has_seen_score(request) or form.get("saw_score") == "1"
    try:
        author = _author(request, form)
        write_label(
            RunFolder(site_of(request).run),
            str(row.feature_id),
            form.get("text", ""),
            form.get("explanation", "").strip() or None,
            author,
            saw_score=saw_score,
        )
    except UserMistake as error:
        return show_feature(request, connection, row, asked, Mistake(error, form))
    return _back(row, asked, "label", author)


@router.post("/{model}/{source}/{index}/withdraw")
def withdraw(
    request: Request,
    connection: Connection,
    model: str,
    source: str,
    index: str,
    asked: View,
    form: Form,
) -> Response:
    """Takes back what who asks has written for the feature."""
    row = find_row(connection, model, source, index)
    try:
        author = _author(request, form)
        withdraw_labels(RunFolder(site_of(request).run), str(row.feature_id), author)
    except UserMistake as error:
        return show_feature(request, connection, row, asked, Mistake(error, form))
    return _back(row, asked, "label", author)


@router.post("/{model}/{source}/{index}/vote")
def vote(
    request: Request,
    connection: Connection,
    model: str,
    source: str,
    index: str,
    asked: View,
    form: Form,
) -> Response:
    """Votes on a label of the feature, or takes the vote back."""
    row = find_row(connection, model, source, index)
    try:
        author = _author(request, form)
        label_id, cast = form.get("label_id", ""), _VOTES.get(form.get("vote", ""))
        known = {each.label_id for each in read_label_records(connection, row.feature_id)}
        if label_id not in known or cast is None:
            raise UserMistake(
                "This is not a vote on a label of this feature.",
                found=f"vote {form.get('vote', '')[:20]!r} on {label_id[:100]!r}",
                expected="1, -1 or 0, and the id of a label",
            )
        cast_vote(RunFolder(site_of(request).run), label_id, cast, author)
    except UserMistake as error:
        return show_feature(request, connection, row, asked, Mistake(error, form))
    return _back(row, asked, "labels" if label_id != row.label_id else "label", author)


def _author(request: Request, form: Mapping[str, str]) -> str:
    """The name that the form gives, else by which they wrote last.

    Raises:
        UserMistake: neither, or it is no name.
    """
    if given := form.get("author", "").strip():
        return author_name(given)
    known = default_author(request)
    if known is None:
        raise UserMistake("Say who you are.", found="no name", expected="your name, in the form")
    return known


def _back(row: FeatureRow, asked: ViewQuery, part: str, author: str) -> Response:
    path = with_query(feature_path(row.feature_id), asked.changed())
    response = RedirectResponse(f"{path}#{part}", status_code=303)
    remember_author(response, author)
    return response
