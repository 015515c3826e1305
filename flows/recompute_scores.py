"""The flow that computes all scores again from stored predictions: nothing is asked or paid for.

For metrics that an older version had not, and after a mistake in one was mended. The windows of a
label are those that were simulated for it, so that the same code gives the same rows. Second
opinions are computed from the record of calls (`recompute_opinions`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

from prefect import flow
from prefect.futures import as_completed

from ..evaluate.free_screen import NAME as FREE
from ..evaluate.free_screen import FreeScreen
from ..evaluate.intervals import Resamples, draw_resamples
from ..evaluate.label_figures import ScoreSettings
from ..evaluate.score_label import ScoredLabel, score_label, score_shuffled
from ..evaluate.scored_again import SortAgain, StoredScreen, labelled_feature, score_again
from ..evaluate.simulators import TokenLookupSimulator
from ..label.token_lookup import EXPLAINER, fit_token_lookup
from ..store.absorb import absorb_results
from ..store.contexts import BackgroundWindows, load_background, read_features
from ..store.database import Store, open_store, open_work, publish_if_behind
from ..store.errors import StoreError
from ..store.labels import read_labels_by_id
from ..store.leaks import require_no_leak
from ..store.parts import remove_unfinished, write_part
from ..store.records import FeatureContexts, FeatureId, Label, Simulation, content_hash
from ..store.run_folder import RunFolder, clear_disk_errors
from ..store.scored_before import ScoredBefore, scored_before
from ..store.scores import score_tables
from ..store.simulations import read_simulations
from ..store.splits import Split
from .batches import as_is, require_collected, side_by_side
from .config import Config
from .progress import Progress
from .rate_job import RateTerms
from .recompute_opinions import recompute_opinions
from .recorded_runs import recorded_run
from .reports import StageReport
from .task_policy import noting_retries, retried_task, retry_notes

NOT_KEPT = "scored by a version that kept no predictions on silent windows: left as they are"


@dataclass(frozen=True, slots=True)
class RecomputeWork:
    """What all batches need."""

    store: Store
    backgrounds: Mapping[Split, BackgroundWindows]
    token_texts: Mapping[int, str]
    resamples: Resamples
    settings: ScoreSettings
    folder: RunFolder
    run_id: str


@flow(name="recompute-scores", validate_parameters=False, task_runner=side_by_side())
def recompute_scores(config: Config, folder: RunFolder, progress: Progress) -> StageReport:
    """Computes the scores of a run again, and publishes them.

    Args:
        config: of the run.
        folder: of the run.
        progress: where it is shown.

    Raises:
        StoreError: there are no scores, or text of one split is also in another.
    """
    started = time.monotonic()
    with (
        recorded_run("score --recompute", config, folder) as run,
        clear_disk_errors(folder.path),
        noting_retries() as retried,
    ):
        remove_unfinished(folder.parts)
        _absorb(folder)
        require_collected(folder)
        counted: Counter[str] = Counter()
        with open_store(folder.path) as store:
            require_no_leak(store.connection)
            missing = scored_before(store.connection)
            if not missing:
                raise StoreError(
                    "This run has no scores yet that could be computed again.",
                    where=str(folder.path),
                    expected="scores",
                    mend=f"scopenote score {folder.path}",
                )
            work = RecomputeWork(
                store=store,
                backgrounds={
                    split: load_background(store.connection, split)
                    for split in ("explain", *{each.split for each in missing})
                },
                token_texts=store.token_texts(),
                resamples=draw_resamples(config.score.seed, config.score.resamples),
                settings=ScoreSettings(config.score.level, config.score.seed),
                folder=folder,
                run_id=run.run_id,
            )
            with progress.stage("score", total=len(missing), unit="scores") as stage:
                futures = [
                    recompute_batch.submit(as_is(block), as_is(work))
                    for block in _blocks(missing, config.score.features_per_task)
                ]
                for future in as_completed(futures):
                    batch: Counter[str] = future.result()
                    stage.advance(batch.total())
                    counted += batch
            if config.score.chat.model is not None:
                terms = RateTerms("chat", config.score, folder, run.run_id)
                counted += recompute_opinions(terms, progress, store)
        _absorb(folder)
        run.stages.append(
            StageReport(
                stage="score",
                unit="labels computed again",
                done=counted[""],
                seconds=time.monotonic() - started,
                notes=(
                    *(f"{n:,} {why}" for why, n in sorted(counted.items()) if why),
                    *retry_notes(retried),
                ),
            )
        )
        return run.stages[-1]


@retried_task("recompute-scores")
def recompute_batch(block: Sequence[ScoredBefore], work: RecomputeWork) -> Counter[str]:
    """Computes the scores of neighbouring features into a part; all by one simulator on one split.

    Returns:
        Labels by why they were left; "" for those that were computed.
    """
    first = block[0]
    features = range(first.feature, block[-1].feature + 1)
    with work.store.cursor() as connection:
        labels = {
            label.label_id: label
            for label in read_labels_by_id(connection, [each.label_id for each in block])
        }
        explain, score = (
            {
                each.feature_id.feature: each
                for each in read_features(
                    connection, first.sae_id, features, work.backgrounds[split]
                )
            }
            for split in ("explain", first.split)
        )
        stored = {
            scorer: read_simulations(connection, list(labels), first.simulator, scorer)
            for scorer in {each.scorer for each in block}
        }
    scored: list[ScoredLabel] = []
    counted: Counter[str] = Counter()
    for each in block:
        known = stored[each.scorer].get(each.label_id, [])
        contexts = (explain[each.feature], score[each.feature])
        found = _again(each, labels[each.label_id], *contexts, known, work)
        counted[NOT_KEPT if found is None else ""] += 1
        if found is not None:
            scored.append(found)
    scores = [each for one in scored for each in one.scores]
    if scores:
        keys = [[each.label_id, each.scorer, each.simulator, each.split] for each in scores]
        name = f"rescore-{content_hash([work.run_id, keys])}"
        tables = score_tables(scores, [], work.run_id)
        write_part(work.folder.parts, name, "rescore", {"scores": tables["scores"]}, {})
    return counted


def _again(
    before: ScoredBefore,
    label: Label,
    explain: FeatureContexts,
    score: FeatureContexts,
    known: Sequence[Simulation],
    work: RecomputeWork,
) -> ScoredLabel | None:
    """The rows of one label; None where the predictions for them were not kept."""
    resamples, settings = work.resamples, work.settings
    if before.simulator != EXPLAINER:
        again = _screen(before, label, explain, work)
        return score_again(before, label, explain, score, known, resamples, settings, again)
    if before.scorer == "simulation":
        return score_label(label, explain, score, "token_lookup", resamples, settings)
    other = labelled_feature(before)
    lookup = TokenLookupSimulator(fit_token_lookup(_contexts_of(other, work)))
    return score_shuffled(label, other, None, explain, score, lookup, resamples, settings)


def _screen(
    before: ScoredBefore, label: Label, explain: FeatureContexts, work: RecomputeWork
) -> SortAgain | None:
    """How silent windows had been sorted, where they had."""
    screen = before.design.get("screen")
    if screen is None:
        return None
    if screen == FREE:
        return partial(FreeScreen(work.token_texts.__getitem__).sort, label, explain)
    with work.store.cursor() as connection:
        rated = read_simulations(connection, [label.label_id], screen, "screen")
    return StoredScreen(rated[label.label_id])


def _contexts_of(feature: FeatureId, work: RecomputeWork) -> FeatureContexts:
    features = range(feature.feature, feature.feature + 1)
    with work.store.cursor() as connection:
        background = work.backgrounds["explain"]
        return next(iter(read_features(connection, feature.sae_id, features, background)))


def _blocks(missing: Sequence[ScoredBefore], size: int) -> Iterator[Sequence[ScoredBefore]]:
    for _, block in groupby(
        missing, key=lambda each: (each.simulator, each.split, each.sae_id, each.feature // size)
    ):
        yield tuple(block)


def _absorb(folder: RunFolder) -> None:
    with open_work(folder.path) as work:
        absorb_results(work, folder.parts, "rescore")
        publish_if_behind(work, folder.path)
