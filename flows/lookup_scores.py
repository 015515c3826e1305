"""Scores of the token lookup: the work of one task, in whatever process it is.

The labels of each range of features become a part. Nothing here knows Prefect or the flow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..evaluate.intervals import Resamples, draw_resamples
from ..evaluate.label_figures import ScoreSettings
from ..evaluate.score_label import score_label, score_shuffled
from ..evaluate.simulators import TokenLookupSimulator
from ..label.token_lookup import fit_token_lookup
from ..store.contexts import BackgroundWindows, load_background, read_features
from ..store.database import Store, open_store
from ..store.labels import read_labels
from ..store.parts import write_part
from ..store.records import FeatureContexts, FeatureId, Label, Score, content_hash
from ..store.run_folder import RunFolder
from ..store.scores import labels_to_shuffle, score_tables
from ..store.splits import Split
from .worker_state import Place, opened

SPLIT: Split = "score"
# Nothing to pay for: as many as a median needs.
_N_SHUFFLED = 100


@dataclass(frozen=True, slots=True)
class ScoreWork:
    """What all tasks over one explainer's labels do.

    Attributes:
        explainer: its name.
        settings: the intervals' level, and the seed.
        resamples: how many.
        folder: the run's, absolute.
        revision: of the published database that they read.
        run_id: the run that the scores are of.
    """

    explainer: str
    settings: ScoreSettings
    resamples: int
    folder: Path
    revision: str
    run_id: str
    place: ClassVar[Place] = "database"

    @contextmanager
    def open(self) -> Iterator[ScoreSource]:
        """The published database, and what all features have in common."""
        with open_store(self.folder) as store:
            yield ScoreSource(
                store=store,
                backgrounds=(
                    load_background(store.connection, "explain"),
                    load_background(store.connection, SPLIT),
                ),
                resamples=draw_resamples(self.settings.seed, self.resamples),
                shuffled=labels_to_shuffle(store.connection, self.explainer, _N_SHUFFLED),
            )


@dataclass(frozen=True, slots=True)
class ScoreSource:
    """What labels are scored on; threads may share it."""

    store: Store
    backgrounds: tuple[BackgroundWindows, BackgroundWindows]
    resamples: Resamples
    shuffled: frozenset[str]


def score_range(work: ScoreWork, sae_id: str, features: range) -> Counter[str]:
    """Scores the labels of consecutive features into a part.

    Returns:
        Labels by the reason why their headline is undefined; "" where it is defined.
    """
    with opened(work) as source:
        return _score(work, source, sae_id, features)


def _score(work: ScoreWork, source: ScoreSource, sae_id: str, features: range) -> Counter[str]:
    with source.store.cursor() as connection:
        labels = read_labels(connection, sae_id, features, work.explainer)
        explain, score = (
            {each.feature_id: each for each in read_features(connection, sae_id, features, pool)}
            for pool in source.backgrounds
        )
    scored = [
        score_label(
            label,
            explain[label.feature_id],
            score[label.feature_id],
            "token_lookup",
            source.resamples,
            work.settings,
        )
        for label in labels
    ]
    scores = [each for one in scored for each in one.scores]
    scores += _under_another_label(labels, explain, score, work, source)
    simulations = [each for one in scored for each in one.simulations]
    name = content_hash([[each.label_id, each.simulator, each.contexts_hash] for each in scores])
    tables = score_tables(scores, simulations, work.run_id)
    write_part(RunFolder(work.folder).parts, f"score-{name}", "score", tables, {})
    return Counter(each.reason or "" for one in scored for each in one.scores[:1])


def _under_another_label(
    labels: Sequence[Label],
    explain: Mapping[FeatureId, FeatureContexts],
    score: Mapping[FeatureId, FeatureContexts],
    work: ScoreWork,
    source: ScoreSource,
) -> Iterator[Score]:
    """Of the labels drawn for it, the headline under the label of the next feature here."""
    done = [label.feature_id for label in labels if label.status == "done"]
    following = dict(zip(done, done[1:] + done[:1], strict=True))
    for label in labels:
        own = label.feature_id
        if label.label_id in source.shuffled and (other := following[own]) != own:
            simulator = TokenLookupSimulator(fit_token_lookup(explain[other]))
            yield from score_shuffled(
                label,
                other,
                None,
                explain[own],
                score[own],
                simulator,
                source.resamples,
                work.settings,
            ).scores
