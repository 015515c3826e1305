"""The last part of scoring, where it is asked for: steering with labelled features.

The model is loaded whole, which collecting never does, in the process of the flow, and the SAEs
one after the other. Some features at a time become a part; what is scored stays scored. A judge
is asked afterwards (`rate_steps.ask_to_tell_apart`), on what these scores have kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

from ..evaluate.intervention import (
    N_PROMOTED,
    PROMPT_TOKENS,
    WRITTEN_TOKENS,
    SteeringTerms,
    Vocabulary,
    score_promoted,
)
from ..store.database import Store, open_store
from ..store.errors import StoreError
from ..store.labels import read_labels_by_id
from ..store.parts import write_part
from ..store.records import FeatureId, Score, content_hash
from ..store.run_folder import RunFolder
from ..store.scores import score_tables
from ..store.steered_scores import (
    PromptWindow,
    labels_to_steer,
    near_by_direction,
    prompt_windows,
    random_features,
)
from ..store.tried_feature import CollectedSae, read_collected_saes
from ..store.unit_names import is_neuron_basis
from .batches import as_is
from .collected_saes import load_collected_sae, load_whole_model
from .config import Config
from .progress import Progress, Stage
from .show_feature import figure
from .task_policy import retried_task

if TYPE_CHECKING:
    from ..extract.models import SubjectModel
    from ..extract.steered_outputs import SteeredOutputs, SteeringBench

# Seconds of work, on a GPU or with the toy.
_FEATURES_PER_TASK = 16
# Drawn beyond those that a feature is compared with: for itself, those near it, and those that
# cannot be steered.
_SPARE = 32


def intervene(
    config: Config, folder: RunFolder, progress: Progress, run_id: str, absorb: Callable[[], None]
) -> tuple[str, ...]:
    """Turns up the features that are missing, and scores their labels by what comes out.

    Args:
        config: of the run; `score.intervention` says how many features are wanted.
        folder: of the run, with its labels published.
        progress: where it is shown.
        run_id: the run that the scores are of.
        absorb: brings finished parts into the database and publishes it.

    Returns:
        What a person should know, a sentence each.

    Raises:
        ModelError: the model cannot be loaded whole, or the device has no room.
        SaeError: an SAE's file is no longer the one that the run was collected with.
        StoreError: no text of `score` is kept that the model could go on from.
    """
    from ..extract.workers import few_threads

    settings = config.score.intervention
    if not settings.features:
        return ()
    found: list[Score] = []
    with open_store(folder.path) as store:
        missing = labels_to_steer(store.connection, settings.features)
        if not missing:
            return ()
        prompts = _prompts(store, config)
        saes = {each.sae_id: each for each in read_collected_saes(store.connection)}
        model = load_whole_model(config)
        total = sum(map(len, missing.values()))
        with (
            few_threads(model.device),
            progress.stage("score", total=total, unit="features turned up") as stage,
        ):
            for sae_id, labels in missing.items():
                work = _work(config, folder, store, run_id, model, saes[sae_id], prompts, stage)
                for at in range(0, len(labels), _FEATURES_PER_TASK):
                    batch = [label_id for _, label_id in labels[at : at + _FEATURES_PER_TASK]]
                    found += steer_batch(as_is(batch), as_is(work))
    absorb()
    return _notes(found)


@dataclass(frozen=True)
class SteerWork:
    """What all batches of an SAE need.

    Attributes:
        bench: the model with the SAE and the prompts.
        drawn: other features of the SAE, in the order in which they are taken.
        n_others: how many each feature is compared with.
        outputs: what came out of those that were turned up already.
    """

    bench: SteeringBench
    vocabulary: Vocabulary
    terms: SteeringTerms
    drawn: Sequence[int]
    n_others: int
    store: Store
    folder: RunFolder
    run_id: str
    stage: Stage
    outputs: dict[int, SteeredOutputs | str] = field(default_factory=dict)

    def turn_up(self, feature: int) -> SteeredOutputs | str:
        """What comes out, worked out once of those that were drawn: features share them."""
        from ..extract.steered_outputs import steered_outputs

        if feature in self.outputs:
            return self.outputs[feature]
        found = steered_outputs(self.bench, feature)
        if feature in self.drawn:
            self.outputs[feature] = found
        return found

    def others(self, unlike: frozenset[int]) -> Iterator[SteeredOutputs]:
        """What comes out of so many others as each is compared with, without some features."""
        n_left = self.n_others
        for feature in self.drawn:
            if not n_left:
                return
            if feature not in unlike and not isinstance(found := self.turn_up(feature), str):
                n_left -= 1
                yield found


@retried_task("steer-features")
def steer_batch(label_ids: Sequence[str], work: SteerWork) -> list[Score]:
    """Scores labels of one SAE by steering, into a part."""
    with work.store.cursor() as connection:
        labels = read_labels_by_id(connection, label_ids)
        sae_id, numbers = labels[0].feature_id.sae_id, [each.feature_id.feature for each in labels]
        near = near_by_direction(connection, sae_id, numbers)
    scores = []
    for label, number in zip(labels, numbers, strict=True):
        own = work.turn_up(number)
        others = list(work.others(not_compared_with(label.feature_id, near[number])))
        scores.append(score_promoted(label, own, others, work.vocabulary, work.terms))
        work.stage.advance(1)
    name = content_hash([work.run_id, [[each.label_id, each.scorer] for each in scores]])
    tables = score_tables(scores, [], work.run_id)
    write_part(work.folder.parts, f"score-{name}", "score", tables, {})
    return scores


def not_compared_with(feature_id: FeatureId, near: frozenset[int]) -> frozenset[int]:
    """Features that are no others to this one: itself and those near it.

    And of a neuron the same coordinate in the other direction.
    """
    own = {feature_id.feature}
    if is_neuron_basis(feature_id.sae_id):
        own.add(feature_id.feature ^ 1)
    return near | own


def _prompts(store: Store, config: Config) -> list[PromptWindow]:
    found = prompt_windows(store.connection, config.score.intervention.prompts, PROMPT_TOKENS)
    if not found:
        raise StoreError(
            "There is no text that the model could go on from while it is steered.",
            expected="a window of the background of split `score`",
            mend="collect more text, or set [score.intervention] features = 0",
        )
    return found


def _work(
    config: Config,
    folder: RunFolder,
    store: Store,
    run_id: str,
    model: SubjectModel,
    collected: CollectedSae,
    prompts: Sequence[PromptWindow],
    stage: Stage,
) -> SteerWork:
    from ..extract.steered_outputs import SteeringBench, single_token

    score, settings = config.score, config.score.intervention
    sae = load_collected_sae(collected, config, folder, model)
    texts = [prompt.token_ids for prompt in prompts]
    bench = SteeringBench.of(
        model, sae, texts, settings.strength, score.seed, N_PROMOTED, WRITTEN_TOKENS
    )
    n_drawn = settings.random_features + _SPARE
    return SteerWork(
        bench=bench,
        vocabulary=Vocabulary(
            partial(single_token, model.tokenizer), store.token_texts().__getitem__
        ),
        terms=SteeringTerms(
            simulator=f"model/{model.name}",
            prompts=[prompt.window_id for prompt in prompts],
            n_prompt_tokens=len(texts[0]),
            strength=settings.strength,
            norm=bench.norm,
            seed=score.seed,
            level=score.level,
        ),
        drawn=random_features(store.connection, collected.sae_id, score.seed, n_drawn),
        n_others=settings.random_features,
        store=store,
        folder=folder,
        run_id=run_id,
        stage=stage,
    )


def _notes(found: Sequence[Score]) -> tuple[str, ...]:
    values = [each.value for each in found if each.value is not None]
    reasons = Counter(each.reason or "no reason given" for each in found if each.value is None)
    note = f"{len(found):,} labelled features turned up"
    if values:
        note += f": promoted tokens {figure(median(values))} in the median, 0 by chance"
    listed = "; ".join(f"{n:,} undefined: {reason}" for reason, n in reasons.most_common())
    return (f"{note}; {listed}" if listed else note,)
