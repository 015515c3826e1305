"""Labels by the explainers that ask no model: the work of one task, in whatever process it is.

Each range of features becomes a part. Nothing here knows Prefect or the flow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from ..label.explainers import EMBEDDED, Explainer
from ..store.contexts import BackgroundWindows, load_background, read_features
from ..store.database import Store, now, open_store
from ..store.labels import label_tables
from ..store.parts import write_part
from ..store.records import Label, content_hash
from ..store.run_folder import RunFolder
from ..store.wanted_labels import Proposer, Why, newest_shown, text_state
from .worker_state import Place, opened

UNCHANGED = "unchanged"
"""Counted of labels that newer text might have changed, and has not."""


@dataclass(frozen=True, slots=True)
class ExplainWork:
    """What all tasks of one explainer do.

    Attributes:
        explainer: its name.
        folder: the run's, absolute.
        revision: of the published database that they read.
        run_id: the run that the labels are of.
    """

    explainer: str
    folder: Path
    revision: str
    run_id: str
    place: ClassVar[Place] = "database"

    @contextmanager
    def open(self) -> Iterator[ExplainSource]:
        """The published database, and what all features have in common."""
        with open_store(self.folder) as store:
            background = load_background(store.connection, "explain")
            yield ExplainSource(
                store, background, store.token_texts(), text_state(store.connection)
            )


@dataclass(frozen=True, slots=True)
class ExplainSource:
    """What labels are written from; threads may share it."""

    store: Store
    background: BackgroundWindows
    texts: Mapping[int, str]
    text_state: str | None


def proposer_of(explainer: Explainer) -> Proposer:
    """Who labels by an embedded explainer are by."""
    return Proposer(explainer.name, explainer.version)


def label_range(work: ExplainWork, sae_id: str, features: range) -> Counter[str]:
    """Labels consecutive features of one SAE into a part; counts labels and failures.

    Labels that are there and would come out of the same contexts are left.
    """
    explainer = EMBEDDED[work.explainer]
    with opened(work) as source, source.store.cursor() as connection:
        before = newest_shown(connection, proposer_of(explainer), sae_id, features)
        contexts = read_features(connection, sae_id, features, source.background)
        labels = [explainer.explain(each, source.texts.__getitem__) for each in contexts]
        state = source.text_state
    new: list[Label] = []
    checked: list[str] = []
    for label in labels:
        shown = before.get(label.feature_id.feature)
        if shown is None:
            new.append(replace(label, why=Why.NO_LABEL))
        elif shown.window_ids == frozenset(label.window_ids):
            checked += shown.label_ids
        else:
            new.append(replace(label, why=Why.CHANGED, generation=shown.generation + 1))
    names = [each.label_id for each in new]
    content = content_hash([explainer.name, explainer.version, names, state, checked])
    tables = label_tables(new, work.run_id, now(), state, checked)
    write_part(RunFolder(work.folder).parts, f"explain-{content}", "explain", tables, {})
    return Counter([label.reason or "" for label in new] + [UNCHANGED] * (len(labels) - len(new)))
