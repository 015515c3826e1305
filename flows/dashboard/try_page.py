"""A feature tried on one's own text: where it is active, and what the model writes steered by it.

Nothing is stored; a dashboard that may not write may still be asked. The route is there only where
the dashboard was started with the model at hand.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, BeforeValidator, Field, ValidationError
from starlette.exceptions import HTTPException

from ...store.errors import ScopenoteError, UserMistake
from ...store.feature_page import find_feature
from ...store.tried_feature import TriedFeature, read_tried_feature
from .pages import Connection, render, site_of
from .tried_model import TriedModel
from .tried_results import shade_text, show_steering

MOST_CHARACTERS = 2000
MOST_TOKENS = 64
MOST_STRENGTH = 1e6
_MOST_FIELDS = 20

router = APIRouter()


def _plain_number(value: object) -> object:
    """As people and browsers write it: a minus sign of its own, spaces around."""
    return value.strip().replace("−", "-") if isinstance(value, str) else value


def _none_if_empty(value: object) -> object:
    return None if value == "" else value


_PLAIN = BeforeValidator(_plain_number)


class _Tried(BaseModel):
    """A text to be read."""

    text: Annotated[str, Field(min_length=1, max_length=MOST_CHARACTERS)]


class _Steered(_Tried):
    """A text to be gone on from."""

    strength: Annotated[
        float, Field(ge=-MOST_STRENGTH, le=MOST_STRENGTH, allow_inf_nan=False), _PLAIN
    ]
    n_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS), _PLAIN]
    seed: Annotated[
        int | None,
        Field(default=None, ge=0, lt=2**63),
        BeforeValidator(_none_if_empty),
        _PLAIN,
    ]


_EXPECTED = {
    "text": f"Write 1 to {MOST_CHARACTERS:,} characters.",
    "strength": f"A number from −{MOST_STRENGTH:,.0f} to {MOST_STRENGTH:,.0f}.",
    "n_tokens": f"A whole number from 1 to {MOST_TOKENS}.",
    "seed": "A whole number, or nothing.",
}


def _require_model(request: Request) -> TriedModel:
    if not site_of(request).with_model:
        raise UserMistake(
            "This dashboard has no model at hand, so that nothing can be tried on it.",
            expected="`scopenote serve RUN --with-model`",
            mend="start it so, on a machine that has room for the model",
        )
    found: TriedModel = request.app.state.tried_model
    return found


async def _read_form(request: Request) -> dict[str, str]:
    """The fields of a form of this dashboard, lines ended by one character.

    Raises:
        HTTPException: it is none, or from another site.
    """
    try:
        fields = dict(
            parse_qsl(
                (await request.body()).decode("utf-8", "replace"),
                keep_blank_values=True,
                max_num_fields=_MOST_FIELDS,
            )
        )
    except ValueError as error:
        raise HTTPException(400, "This is not a form of this dashboard.") from error
    secret = site_of(request).form_secret
    if not hmac.compare_digest(fields.get("secret", "").encode(), secret.encode()):
        raise HTTPException(
            403, "This form is from before the dashboard was started: open its page again."
        )
    # Browsers end the lines of a form by two.
    return fields | {"text": fields.get("text", "").replace("\r\n", "\n")}


Model = Annotated[TriedModel, Depends(_require_model)]
Form = Annotated[dict[str, str], Depends(_read_form)]


@router.get("/{model}/{source}/{index}/try")
def try_feature(
    request: Request, connection: Connection, own: Model, model: str, source: str, index: str
) -> HTMLResponse:
    """The form alone."""
    tried = read_tried_feature(connection, find_feature(connection, f"{model}/{source}/{index}"))
    return _show(request, tried, {})


@router.post("/{model}/{source}/{index}/try")
def show_tried(
    request: Request,
    connection: Connection,
    own: Model,
    form: Form,
    model: str,
    source: str,
    index: str,
) -> HTMLResponse:
    """The form as it was filled in, and what came of it."""
    tried = read_tried_feature(connection, find_feature(connection, f"{model}/{source}/{index}"))
    what: Literal["activations", "steer"] = (
        "steer" if form.get("what") == "steer" else "activations"
    )
    try:
        if what == "steer":
            asked = _Steered.model_validate(form)
            found = own.steer(tried, asked.text, asked.strength, asked.n_tokens, asked.seed)
            return _show(request, tried, form, steering=show_steering(found), asked=asked)
        text = _Tried.model_validate(form).text
        return _show(request, tried, form, text=shade_text(own.read_text(tried, text), tried.peak))
    except ValidationError as error:
        names = [str(each["loc"][0]) for each in error.errors()]
        return _show(
            request, tried, form, status=422, wrong={name: _EXPECTED[name] for name in names}
        )
    except ScopenoteError as error:
        status = 422 if isinstance(error, UserMistake) else 503
        return _show(request, tried, form, status=status, error=error)


def _show(
    request: Request,
    tried: TriedFeature,
    form: Mapping[str, str],
    status: int = 200,
    **result: Any,
) -> HTMLResponse:
    nothing = dict.fromkeys(("text", "steering", "asked", "error"))
    return render(
        request,
        "try.html",
        status=status,
        title=f"Try {tried.feature_id}",
        tried=tried,
        form=form,
        **{**nothing, "wrong": {}, **result},
    )
