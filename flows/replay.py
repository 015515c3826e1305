"""Deriving a label again from the record, offline: is it what the stored reply says?

The prompt is rendered anew from the store, its reply is looked up by the request's hash, and the
label is derived from it as it was the first time. Nothing is sent.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import duckdb

from ..label.chat import ChatRequest
from ..label.explainers import EMBEDDED, Explainer
from ..label.labelling import Asking, write_label
from ..label.prompted import PROMPTED
from ..label.prompts import RenderedPrompt
from ..store.calls import find_calls
from ..store.contexts import load_background, read_features
from ..store.database import Store
from ..store.errors import ScopenoteError, UserMistake
from ..store.labels import find_label
from ..store.records import Call, Label
from .event_loop import EventLoopThread
from .feature_prompts import PromptSource


@dataclass(frozen=True, slots=True)
class Replay:
    """What came of deriving a label again.

    Attributes:
        stored: the label as it is in the database.
        derived: the label as it comes out now.
        call: the call that it comes from; None where no model was asked.
    """

    stored: Label
    derived: Label
    call: Call | None

    @property
    def differing(self) -> tuple[str, ...]:
        """The fields in which the two differ."""
        stored, derived = (
            # The database keeps which windows were shown, and not in which order.
            replace(each, window_ids=tuple(sorted(each.window_ids)))
            for each in (self.stored, self.derived)
        )
        return tuple(
            field.name
            for field in fields(Label)
            # When and why it was made is the run's to know, not the reply's.
            if field.name not in ("generation", "why")
            and getattr(stored, field.name) != getattr(derived, field.name)
        )


class NotOnRecord(ScopenoteError):
    """The request that would be sent now is not among the calls of the run."""


def replay_label(store: Store, label_id: str) -> Replay:
    """Derives a label again.

    Args:
        store: the run's published database.
        label_id: of the label, or how it begins.

    Raises:
        UserMistake: there is no such label, or a person wrote it.
        NotOnRecord: the contexts or the prompts are others now, or the call is missing.
    """
    stored = find_label(store.connection, label_id)
    if stored.source != "auto":
        raise UserMistake(
            "A label that was not derived from a reply cannot be derived again.",
            where=stored.label_id,
            found=f"source {stored.source}, author {stored.author}",
            expected="a label of an explainer",
        )
    if (embedded := EMBEDDED.get(stored.explainer)) is not None:
        return Replay(stored, _explain_again(store, stored, embedded), None)
    calls = find_calls(store.connection, [stored.request_hash] if stored.request_hash else [])
    call = calls.get(stored.request_hash or "")
    return Replay(stored, _ask_again(store, stored, call), call)


def _explain_again(store: Store, stored: Label, explainer: Explainer) -> Label:
    _require_version(stored, explainer.version)
    feature = stored.feature_id.feature
    background = load_background(store.connection, "explain")
    features = range(feature, feature + 1)
    with store.cursor() as connection:
        (contexts,) = read_features(connection, stored.feature_id.sae_id, features, background)
    return explainer.explain(contexts, store.token_texts().__getitem__)


def _ask_again(store: Store, stored: Label, call: Call | None) -> Label:
    explainer = PROMPTED[stored.explainer]
    _require_version(stored, explainer.version)
    feature = stored.feature_id
    with store.cursor() as connection:
        ((_, prompt),) = PromptSource.of(store).render(
            connection, explainer, feature.sae_id, [feature.feature]
        )
        if isinstance(prompt, RenderedPrompt) and (n := stored.n_dropped_contexts):
            prompt = replace(prompt, blocks=prompt.blocks[:-n], n_dropped=n)
        record = _Record(connection, stored)
        asked = write_label(
            feature,
            explainer.name,
            prompt,
            explainer.version,
            _asking(stored, call),
            stored.draw,
            record.find,
        )
        with EventLoopThread() as loop:
            return loop.submit(asked).result()


@dataclass(frozen=True, slots=True)
class _Record:
    connection: duckdb.DuckDBPyConnection
    stored: Label

    async def find(self, request: ChatRequest, n_static: int) -> Call:
        """The call of a request, which is not sent."""
        name = request.request_hash
        call = find_calls(self.connection, [name]).get(name)
        if call is None:
            raise NotOnRecord(
                "The prompt as it is rendered now was never sent: since the label was written "
                "the feature's contexts have changed, or the call was not recorded.",
                where=f"label {self.stored.label_id}",
                found=f"request {name}",
                expected=f"request {self.stored.request_hash}, whose call stands in `calls`",
            )
        return call


def _asking(stored: Label, call: Call | None) -> Asking:
    """As the request says that the model was asked; a label without a request asks nothing."""
    request = {} if call is None else call.request
    return Asking(
        model=stored.model or "",
        temperature=request.get("temperature", 0.0),
        max_reply_tokens=request.get("max_tokens", 1),
    )


def _require_version(stored: Label, version: str) -> None:
    if stored.prompt_version != version:
        raise NotOnRecord(
            "The label was written by another version of its explainer, whose prompts this "
            "version of Scopenote does not have.",
            where=f"label {stored.label_id}",
            found=f"{stored.explainer} {stored.prompt_version}",
            expected=f"{stored.explainer} {version}",
            mend="replay it with the version of Scopenote that stands in `runs`",
        )
