"""The labels of a feature side by side: each with its headlines, its other scores, its votes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from ...store.feature_history import LabelRecord, LabelVotes
from ...store.feature_labels import FeatureLabels, ShownLabel
from ...store.label_scores import LabelScore
from ...store.null_ladder import SHUFFLED

_QUARTER = "correlation_quarter"


@dataclass(frozen=True, slots=True)
class Headline:
    """What a simulator says of a label.

    Attributes:
        score: on `score`, what is reported.
        select: on `select`, by which the best of several labels is chosen.
        shuffled: of the same windows under another feature's label.
    """

    simulator: str
    score: LabelScore | None
    select: LabelScore | None
    shuffled: LabelScore | None

    @property
    def words(self) -> str:
        """For those who do not see the bar."""
        return f"score by {self.simulator}"


@dataclass(frozen=True, slots=True)
class QuarterScores:
    """The correlation by strength of the active windows, the weakest quarter first."""

    simulator: str
    split: str
    scores: tuple[LabelScore, ...]

    @property
    def reason(self) -> str | None:
        """Why none of them is defined; None where one is."""
        if any(score.value is not None for score in self.scores):
            return None
        return self.scores[0].reason or "no reason given"


@dataclass(frozen=True, slots=True)
class LabelBlock:
    """A label as the page shows it.

    Attributes:
        others: scores beside the headlines, by simulator.
        own_vote: of who looks: 1, -1, or 0 for none.
        is_own: who looks wrote it.
    """

    label: ShownLabel
    record: LabelRecord | None
    headlines: tuple[Headline, ...]
    others: tuple[tuple[str, tuple[LabelScore, ...]], ...]
    quarters: tuple[QuarterScores, ...]
    own_vote: int
    is_own: bool

    @property
    def n_others(self) -> int:
        """How many scores there are beside the headlines."""
        return sum(len(scores) for _, scores in self.others) + len(self.quarters)


@dataclass(frozen=True, slots=True)
class LabelBlocks:
    """All labels of a feature, but for those that were taken back."""

    in_force: LabelBlock | None
    others: tuple[LabelBlock, ...]
    failed: tuple[ShownLabel, ...]


def make_blocks(
    labels: FeatureLabels,
    records: Sequence[LabelRecord],
    scores: Mapping[str, Sequence[LabelScore]],
    votes: Mapping[str, LabelVotes],
    author: str | None,
) -> LabelBlocks:
    """Puts together what was read of a feature's labels.

    Args:
        labels: of the feature.
        records: of the same labels.
        scores: by label.
        votes: by label.
        author: who looks; None where that is not known.
    """
    by_id = {record.label_id: record for record in records}

    def block(label: ShownLabel) -> LabelBlock:
        own = scores.get(label.label_id, ())
        return LabelBlock(
            label=label,
            record=by_id.get(label.label_id),
            headlines=tuple(_headlines(own)),
            others=tuple(_others(own)),
            quarters=tuple(_quarters(own)),
            own_vote=votes[label.label_id].own if label.label_id in votes else 0,
            is_own=label.source == "human" and author is not None and label.author == author,
        )

    return LabelBlocks(
        in_force=None if labels.in_force is None else block(labels.in_force),
        others=tuple(map(block, labels.others)),
        failed=labels.failed,
    )


def _headlines(scores: Sequence[LabelScore]) -> Iterator[Headline]:
    found = {
        (score.simulator, score.scorer, score.split): score
        for score in scores
        if score.metric == "correlation" and score.scorer in ("simulation", SHUFFLED)
    }
    for simulator in dict.fromkeys(simulator for simulator, _, _ in found):
        yield Headline(
            simulator=simulator,
            score=found.get((simulator, "simulation", "score")),
            select=found.get((simulator, "simulation", "select")),
            shuffled=found.get((simulator, SHUFFLED, "score")),
        )


def _others(scores: Sequence[LabelScore]) -> Iterator[tuple[str, tuple[LabelScore, ...]]]:
    rest = [
        score
        for score in scores
        if not score.is_headline
        and score.scorer != SHUFFLED
        and not score.metric.startswith(_QUARTER)
    ]
    order = list(dict.fromkeys(score.simulator for score in rest))
    rest.sort(key=lambda score: order.index(score.simulator))
    for simulator, same in groupby(rest, lambda score: score.simulator):
        yield simulator, tuple(same)


def _quarters(scores: Sequence[LabelScore]) -> Iterator[QuarterScores]:
    quarters = sorted(
        (score for score in scores if score.metric.startswith(_QUARTER)),
        key=lambda each: (each.simulator, each.split, each.metric),
    )
    for (simulator, split), same in groupby(quarters, lambda each: (each.simulator, each.split)):
        yield QuarterScores(simulator, split, tuple(same))
