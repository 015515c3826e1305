"""What labels are rated with, and what came of it: the values that the steps of rating share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..evaluate.intervals import Resamples
from ..evaluate.label_figures import ScoreSettings
from ..evaluate.score_label import ScoredLabel
from ..label.labelling import Ask
from ..store.contexts import BackgroundWindows
from ..store.database import Store
from ..store.errors import ScopenoteError
from ..store.records import FeatureContexts, Label
from ..store.run_folder import RunFolder
from ..store.splits import Split
from .judges import Judge, Texts
from .progress import Progress
from .score_settings import JudgeKind, ScoreSection
from .spending import Spending

Unscored = Mapping[str, Sequence[tuple[int, str]]]
"""By SAE, features and label ids."""


@dataclass(frozen=True, slots=True)
class RateJob:
    """What is to be rated by one judge, and where what comes of it goes.

    Attributes:
        kind: of judge.
        settings: how labels are scored.
        folder: the run.
        progress: where it is shown.
        run_id: the run that the scores are of.
        spending: what may be spent.
        retry_failed: send again what got no reply before.
        absorb: brings finished parts and journals into the database and publishes it.
        compares_all: labels are compared on `select` also where a feature has only one.
        again: labels are rated again of which newer text has overtaken the scores.
    """

    kind: JudgeKind
    settings: ScoreSection
    folder: RunFolder
    progress: Progress
    run_id: str
    spending: Spending
    retry_failed: bool
    absorb: Callable[[], None]
    compares_all: bool = False
    again: bool = False

    @property
    def simulator(self) -> str:
        """What the scores are stored under."""
        return self.settings.judge_name(self.kind)

    @property
    def score_settings(self) -> ScoreSettings:
        """The intervals' level, and the seed."""
        return ScoreSettings(level=self.settings.level, seed=self.settings.seed)


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
class RateWork:
    """What all batches of one step need.

    Attributes:
        step: what is done with them.
        ask: gives the call of a request, on the record.
        advance: tells of so many labels done.
        stopped: why no more is to be asked; any batch adds to it.
    """

    job: RateJob
    step: RateStep
    judge: Judge
    store: Store
    backgrounds: tuple[BackgroundWindows, BackgroundWindows]
    pool_prefixes: Mapping[int, Sequence[int]]
    token_texts: Mapping[int, str]
    resamples: Resamples
    ask: Ask
    advance: Callable[[int], None]
    stopped: list[ScopenoteError]


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
