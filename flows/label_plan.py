"""Which features a model is to be asked about, why, and in which order.

The tables say what is missing; whether the contexts of a labelled feature have changed is found
by choosing again what would be shown, wherever the text has grown since.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..label.labelling import Asking
from ..label.prompted import PROMPTED, PromptedExplainer
from ..label.prompts import RenderedPrompt
from ..store.database import Store
from ..store.labels import drawn_features
from ..store.wanted_labels import (
    LowScores,
    Proposer,
    Shown,
    Standing,
    Why,
    newest_shown,
    standings,
)
from .batches import task_blocks
from .explain_settings import ExplainSection
from .feature_prompts import PromptSource

_WORDS = {
    Why.NO_LABEL: "have no label",
    Why.CHANGED: "have other contexts since they were labelled",
    Why.LOW: "score too low on `select`",
    Why.OLDER: "were labelled by an older version of the explainer only",
}


@dataclass(frozen=True, slots=True)
class WantedLabel:
    """A feature of which an explainer owes a label.

    Attributes:
        changed: the share of the contexts shown that would be new; 0 where that is not why.
    """

    why: Why
    explainer: str
    sae_id: str
    feature: int
    changed: float = 0.0


@dataclass(frozen=True, slots=True)
class LabelPlan:
    """What a model is to be asked about, what comes first first.

    Attributes:
        checked: ids of labels that newer text has not overtaken, though it might have.
    """

    wanted: Sequence[WantedLabel] = ()
    checked: Sequence[str] = ()

    def split(self, n: int | None) -> tuple[LabelPlan, LabelPlan]:
        """The plan for the first n features, or for all, and that for those after them."""
        n = len(self.wanted) if n is None else n
        return LabelPlan(self.wanted[:n], self.checked), LabelPlan(self.wanted[n:])

    def groups(self) -> Iterator[tuple[Why, str, Mapping[str, list[int]]]]:
        """Reason and explainer, and the features by SAE, in the order in which they are done."""
        groups: dict[tuple[Why, str], dict[str, list[int]]] = {}
        for each in self.wanted:
            by_sae = groups.setdefault((each.why, each.explainer), {})
            by_sae.setdefault(each.sae_id, []).append(each.feature)
        for (why, explainer), by_sae in groups.items():
            yield why, explainer, {sae: sorted(by_sae[sae]) for sae in sorted(by_sae)}

    def count(self, why: Why) -> int:
        """How many features there are for a reason."""
        return sum(each.why == why for each in self.wanted)

    def __str__(self) -> str:
        counts = [(self.count(why), words) for why, words in _WORDS.items()]
        listed = [f"{n:,} {words}" for n, words in counts if n]
        return "features to ask a model about: " + (", ".join(listed) if listed else "none")


def plan_labels(
    store: Store, settings: ExplainSection, source: Callable[[], PromptSource]
) -> LabelPlan:
    """What the explainers that ask a model owe, by the published database.

    Args:
        store: the published database.
        settings: how labels are written, and what is asked again.
        source: gives what prompts are rendered from; asked for only where text has grown.
    """
    wanted: list[WantedLabel] = []
    checked: list[str] = []
    drawn = None
    if settings.features is not None:
        drawn = drawn_features(store.connection, settings.features)
    for name in settings.prompted:
        explainer, proposer = PROMPTED[name], proposer_of(PROMPTED[name], settings)
        owed = [
            each
            for each in standings(store.connection, proposer, settings.candidates, _low(settings))
            if drawn is None or (each.sae_id, each.feature) in drawn
        ]
        suspects = [each for each in owed if each.may_have_changed]
        changed: dict[tuple[str, int], float] = {}
        if suspects and settings.again.changed < 1:
            shares, same = _look_again(source(), explainer, proposer, suspects, settings.asking())
            changed = {
                key: share for key, share in shares.items() if share > settings.again.changed
            }
            checked += same
        for each in owed:
            share = changed.get((each.sae_id, each.feature), 0.0)
            why = Why.CHANGED if share else each.why
            if why is not None:
                wanted.append(WantedLabel(why, name, each.sae_id, each.feature, share))
    order = list(Why)
    wanted.sort(key=lambda each: (order.index(each.why), -each.changed))  # stable
    return LabelPlan(wanted, checked)


def proposer_of(explainer: PromptedExplainer, settings: ExplainSection) -> Proposer:
    """Who labels by this explainer are by."""
    return Proposer(explainer.name, explainer.version, settings.asking().model)


def _low(settings: ExplainSection) -> LowScores | None:
    below = settings.again.below
    return None if below is None else LowScores(below, settings.again.candidates)


def _look_again(
    source: PromptSource,
    explainer: PromptedExplainer,
    proposer: Proposer,
    suspects: Iterable[Standing],
    asking: Asking,
) -> tuple[dict[tuple[str, int], float], list[str]]:
    """Of features whose contexts have changed the share that is new, and the others' labels."""
    by_sae: dict[str, list[int]] = {}
    for each in suspects:
        by_sae.setdefault(each.sae_id, []).append(each.feature)
    shares: dict[tuple[str, int], float] = {}
    same: list[str] = []
    with source.store.cursor() as connection:
        for sae_id, features in task_blocks(by_sae, 256):
            before = newest_shown(connection, proposer, sae_id, features)
            for feature_id, rendered in source.render(connection, explainer, sae_id, features):
                prompt, shown = asking.fitted(rendered), before[feature_id.feature]
                now = prompt.window_ids if isinstance(prompt, RenderedPrompt) else ()
                share = share_changed(shown, now)
                if share:
                    shares[sae_id, feature_id.feature] = share
                else:
                    same += shown.label_ids
    return shares, same


def share_changed(shown: Shown, now: Sequence[int]) -> float:
    """Of the contexts that would be shown now, how many the labels were not shown.

    Where contexts were left out because the endpoint takes no longer prompt, those that follow
    the ones shown do not count: they would be left out again.
    """
    if shown.has_dropped:
        now = now[: len(shown.window_ids)]
    if not now:
        return 1.0 if shown.window_ids else 0.0
    return sum(window not in shown.window_ids for window in now) / len(now)
