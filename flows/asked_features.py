"""Labels that a model writes: the work of one task, in whatever process it is.

What a task labels is settled before it begins, so that it comes to the same wherever and however
often it is begun. Nothing here knows Prefect or the flow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from ..label.call_records import CallRecords
from ..label.chat import ChatClient
from ..label.labelling import Ask, write_label
from ..label.prompted import PROMPTED
from ..store.batch_record import requests_under_way
from ..store.database import now, open_store
from ..store.errors import BudgetSpent, EndpointRefuses, NotYetAnswered, ScopenoteError
from ..store.known_calls import KnownCalls
from ..store.labels import label_tables
from ..store.parts import write_part
from ..store.records import Label, content_hash
from ..store.run_folder import RunFolder
from ..store.wanted_labels import Why, text_state
from .ask_job import PURPOSE
from .event_loop import EventLoopThread
from .explain_settings import ExplainSection
from .feature_prompts import PromptSource
from .model_line import CallRecord, calls_on
from .shares import Share, Spent
from .worker_state import Place, opened, tell


@dataclass(frozen=True, slots=True)
class WantedDraws:
    """A feature's labels that are wanted: their generation, and which draws of it."""

    feature: int
    generation: int
    draws: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AskPiece:
    """Labels that one task writes, of features of one SAE that lie close together.

    Attributes:
        explainer: whose prompts.
        why: they are wanted.
        wanted: rising by feature.
    """

    explainer: str
    why: Why
    sae_id: str
    wanted: tuple[WantedDraws, ...]


@dataclass(frozen=True, slots=True)
class AskedPiece:
    """What came of it.

    Attributes:
        labels: that were written, by the reason of failure.
        n_waiting: how many come later.
        spent: what it cost, and why it ended early.
        rest: what is left of it then.
    """

    why: Why
    labels: Counter[str] = field(default_factory=Counter)
    n_waiting: int = 0
    spent: Spent = field(default_factory=Spent)
    rest: AskPiece | None = None

    @property
    def n_done(self) -> int:
        """Labels written, or left to a batch."""
        return self.labels.total() + self.n_waiting


@dataclass(frozen=True, slots=True)
class AskTerms:
    """How labels are asked for, and where they go.

    Attributes:
        settings: how the model is asked.
        folder: the run's, absolute.
        run_id: the run that the labels are of.
        listener: who in the flow's process hears of each label.
    """

    settings: ExplainSection
    folder: Path
    run_id: str
    listener: str


@dataclass(frozen=True, slots=True)
class LabelWriter:
    """The model that writes labels, one of so many that are open at once."""

    settings: ExplainSection
    n_clients: int
    place: ClassVar[Place] = "model"

    @contextmanager
    def open(self) -> Iterator[OpenWriter]:
        """A client and the loop in which it is used."""
        with (
            EventLoopThread() as loop,
            loop.entered(self.settings.chat.client(self.n_clients)) as client,
        ):
            yield OpenWriter(client, loop)


@dataclass(frozen=True, slots=True)
class OpenWriter:
    """A client and the loop in which it is used."""

    client: ChatClient
    loop: EventLoopThread


@dataclass(frozen=True, slots=True)
class LabelDatabase:
    """The published database as labels are asked for from it.

    Attributes:
        folder: the run's, absolute.
        revision: of the database.
        retry_failed: send again what got no reply before.
    """

    folder: Path
    revision: str
    retry_failed: bool
    place: ClassVar[Place] = "database"

    @contextmanager
    def open(self) -> Iterator[LabelSource]:
        """What prompts are rendered from, and the calls that were made before."""
        journal = RunFolder(self.folder).journal
        with open_store(self.folder) as store:
            known = KnownCalls(store, journal, self.retry_failed)
            try:
                yield LabelSource(
                    PromptSource.of(store),
                    text_state(store.connection),
                    CallRecord(known, journal, requests_under_way(store.connection)),
                )
            finally:
                known.close()


@dataclass(frozen=True, slots=True)
class LabelSource:
    """What labels are asked for from; threads may share it."""

    prompts: PromptSource
    text_state: str | None
    record: CallRecord


def ask_for_labels(
    terms: AskTerms, writer: LabelWriter, database: LabelDatabase, piece: AskPiece, share: Share
) -> AskedPiece:
    """Has a model write labels into a part, on a share of what may be spent."""
    records = CallRecords(terms.settings.chat.known_prices(), PURPOSE)
    model = terms.settings.asking().model
    with opened(writer) as line, opened(database) as source:
        with calls_on(share, line.client, model, records, source.record) as calls:
            asked, stopped = write_labels(
                terms, source.prompts, source.text_state, calls.client.ask, line.loop, piece
            )
        return replace(asked, spent=calls.spent(stopped))


def write_labels(
    terms: AskTerms,
    prompts: PromptSource,
    state: str | None,
    ask: Ask,
    loop: EventLoopThread,
    piece: AskPiece,
) -> tuple[AskedPiece, ScopenoteError | None]:
    """Writes labels into a part, wherever the answers come from, and says why it ended early.

    Args:
        terms: where labels go.
        prompts: renders what is asked.
        state: a name of the text.
        ask: gives the answers, in the loop.
        loop: where it runs.
        piece: which labels.
    """
    labels: list[Label] = []
    left: dict[WantedDraws, list[int]] = {}
    n_waiting = 0
    stopped: ScopenoteError | None = None
    for wanted, draw, future in _begin(terms, prompts, ask, loop, piece):
        try:
            label = future.result()
            labels.append(replace(label, generation=wanted.generation, why=piece.why))
        except NotYetAnswered:
            n_waiting += 1
        except (EndpointRefuses, BudgetSpent) as error:
            # What the others came to is kept. The frames that it came through hold connections.
            if stopped is None or isinstance(error, EndpointRefuses):
                stopped = error.with_traceback(None)
            left.setdefault(wanted, []).append(draw)
    explainer = PROMPTED[piece.explainer]
    if labels:
        # The run too: what failed and is asked for again has the same label ids.
        names = [each.label_id for each in labels]
        content = content_hash([explainer.name, explainer.version, terms.run_id, names])
        tables = label_tables(labels, terms.run_id, now(), state)
        write_part(RunFolder(terms.folder).parts, f"explain-{content}", "explain", tables, {})
    rest = tuple(replace(wanted, draws=tuple(draws)) for wanted, draws in left.items())
    reasons = Counter(label.reason or "" for label in labels)
    asked = AskedPiece(
        piece.why, reasons, n_waiting, rest=replace(piece, wanted=rest) if rest else None
    )
    return asked, stopped


def _begin(
    terms: AskTerms, prompts: PromptSource, ask: Ask, loop: EventLoopThread, piece: AskPiece
) -> list[tuple[WantedDraws, int, Future[Label]]]:
    """Begins all labels at once; how many calls are made at once is the client's affair."""
    explainer, asking = PROMPTED[piece.explainer], terms.settings.asking()
    by_feature = {each.feature: each for each in piece.wanted}
    begun = []

    def hear(done: Future[Label]) -> None:
        if not done.cancelled() and not isinstance(done.exception(), BudgetSpent):
            tell(terms.listener)

    with prompts.store.cursor() as connection:
        rendered = prompts.render(connection, explainer, piece.sae_id, list(by_feature))
        for feature_id, prompt in rendered:
            wanted = by_feature[feature_id.feature]
            for draw in wanted.draws:
                label = write_label(
                    feature_id, explainer.name, prompt, explainer.version, asking, draw, ask
                )
                future = loop.submit(label)
                future.add_done_callback(hear)
                begun.append((wanted, draw, future))
    return begun
