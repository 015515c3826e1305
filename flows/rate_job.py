"""What labels are rated with, and what came of it: the values that the steps of rating share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..evaluate.intervals import Resamples, draw_resamples
from ..evaluate.label_figures import ScoreSettings
from ..evaluate.score_label import ScoredLabel
from ..label.labelling import Ask
from ..store.contexts import BackgroundWindows, load_background, read_background_prefixes
from ..store.database import Store
from ..store.records import FeatureContexts, Label
from ..store.run_folder import RunFolder
from ..store.splits import Split
from .judges import Judge, Texts
from .progress import Progress
from .score_settings import JudgeKind, ScoreSection
from .spending import Spending

if TYPE_CHECKING:
    from .runners import Runner

Unscored = Mapping[str, Sequence[tuple[int, str]]]
"""By SAE, features and label ids."""


@dataclass(frozen=True, slots=True)
class RateTerms:
    """How labels are rated by one judge, and of which run: small enough to be sent to workers.

    Attributes:
        kind: of judge.
        settings: how labels are scored.
        folder: the run.
        run_id: the run that the scores are of.
    """

    kind: JudgeKind
    settings: ScoreSection
    folder: RunFolder
    run_id: str

    @property
    def simulator(self) -> str:
        """What the scores are stored under."""
        return self.settings.judge_name(self.kind)

    @property
    def score_settings(self) -> ScoreSettings:
        """The intervals' level, and the seed."""
        return ScoreSettings(level=self.settings.level, seed=self.settings.seed)


@dataclass(frozen=True, slots=True)
class RateJob(RateTerms):
    """What is to be rated by one judge, and what is done with what comes of it.

    Attributes:
        progress: where it is shown.
        spending: what may be spent.
        retry_failed: send again what got no reply before.
        absorb: brings finished parts and journals into the database and publishes it.
        runner: where tasks work.
        compares_all: labels are compared on `select` also where a feature has only one.
        again: labels are rated again of which newer text has overtaken the scores.
    """

    progress: Progress
    spending: Spending
    retry_failed: bool
    absorb: Callable[[], None]
    runner: Runner
    compares_all: bool = False
    again: bool = False

    @property
    def terms(self) -> RateTerms:
        """What of it is sent to workers."""
        folder = RunFolder(self.folder.path.absolute())
        return RateTerms(self.kind, self.settings, folder, self.run_id)


@dataclass(frozen=True, slots=True)
class LabelBatch:
    """Labels of neighbouring features, and what is kept of the features.

    Attributes:
        labels: at least one.
        explain, score: what they were written from, and what they are to be scored on, by number.
        texts: of all these windows.
    """

    sae_id: str
    labels: Sequence[Label]
    explain: Mapping[int, FeatureContexts]
    score: Mapping[int, FeatureContexts]
    texts: Texts

    @property
    def features(self) -> range:
        """From the first to the last, those between them too."""
        numbers = [label.feature_id.feature for label in self.labels]
        return range(min(numbers), max(numbers) + 1)


@dataclass(frozen=True, slots=True)
class RateSource:
    """What labels are rated on, of `explain` and one other split; threads may share it."""

    store: Store
    backgrounds: tuple[BackgroundWindows, BackgroundWindows]
    pool_prefixes: Mapping[int, Sequence[int]]
    token_texts: Mapping[int, str]
    resamples: Resamples

    @classmethod
    def of(cls, store: Store, split: Split, settings: ScoreSection) -> RateSource:
        """What a step on this split needs, read once."""
        return cls(
            store=store,
            backgrounds=(
                load_background(store.connection, "explain"),
                load_background(store.connection, split),
            ),
            pool_prefixes=read_background_prefixes(store.connection, split),
            token_texts=store.token_texts(),
            resamples=draw_resamples(settings.seed, settings.resamples),
        )


@dataclass(frozen=True, slots=True)
class RateWork:
    """What a task of one step needs.

    Attributes:
        step: what is done with them.
        judge: that rates.
        source: what labels are rated on.
        ask: gives the call of a request, on the record.
        advance: tells of so many labels done.
    """

    job: RateTerms
    step: RateStep
    judge: Judge
    source: RateSource
    ask: Ask
    advance: Callable[[int], None]


@dataclass(frozen=True, slots=True)
class RateStep:
    """Labels to be rated on one split.

    Attributes:
        split: the text.
        missing: the labels.
        unit: what is counted meanwhile.
        purpose: what its calls are for, in a word.
        rate: what is done, one label after the other.
        is_score: its labels count as scored.
    """

    split: Split
    missing: Unscored
    unit: str
    purpose: str
    rate: Callable[[LabelBatch, RateWork], Iterator[ScoredLabel]]
    is_score: bool = False


@dataclass(slots=True)
class RatedBatch:
    """What came of some labels.

    Attributes:
        labels: by the reason why their headline is undefined; "" where it is defined.
        failed_windows: by the reason.
        n_windows, n_windows_at_most: simulated, and what the last look would have taken.
    """

    labels: Counter[str] = field(default_factory=Counter)
    failed_windows: Counter[str] = field(default_factory=Counter)
    n_windows: int = 0
    n_windows_at_most: int = 0

    def add(self, other: RatedBatch) -> None:
        """Counts another batch's."""
        self.labels += other.labels
        self.failed_windows += other.failed_windows
        self.n_windows += other.n_windows
        self.n_windows_at_most += other.n_windows_at_most
