"""The flow that scores labels on text that none was written from."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from ..evaluate.intervals import Resamples, draw_resamples
from ..evaluate.label_figures import ScoreSettings
from ..evaluate.score_label import score_label, score_shuffled
from ..evaluate.simulators import TokenLookupSimulator
from ..label.labelling import NO_REPLY
from ..label.token_lookup import fit_token_lookup
from ..store.absorb import absorb_results
from ..store.calls import absorb_journals
from ..store.contexts import BackgroundWindows, load_background, read_features
from ..store.database import Store, open_store, open_work, publish, publish_if_behind
from ..store.errors import AllowanceSpent, StoreError
from ..store.labels import read_labels
from ..store.leaks import require_no_leak
from ..store.parts import remove_unfinished, write_part
from ..store.records import FeatureContexts, FeatureId, Label, Score, content_hash
from ..store.run_folder import RunFolder, clear_disk_errors
from ..store.scores import (
    count_scored_labels,
    forget_unrated,
    labels_to_shuffle,
    score_tables,
    unscored_features,
)
from ..store.splits import Split
from .ask_job import notes_on
from .batches import require_collected, run_over_features, side_by_side
from .config import Config
from .explain_settings import EMBEDDED_EXPLAINERS
from .progress import Progress
from .rate_job import RateJob
from .rate_labels import rate_labels
from .recorded_runs import recorded_run
from .reports import StageReport

_SPLIT: Split = "score"
# Nothing to pay for: as many as a median needs.
_N_SHUFFLED = 100


@dataclass(frozen=True, slots=True)
class ScoreWork:
    """What all batches of one explainer's labels need."""

    explainer: str
    store: Store
    backgrounds: tuple[BackgroundWindows, BackgroundWindows]
    resamples: Resamples
    settings: ScoreSettings
    shuffled: frozenset[str]
    folder: RunFolder
    run_id: str


@flow(name="score-labels", validate_parameters=False, task_runner=side_by_side())
def score_labels(
    config: Config,
    folder: RunFolder,
    progress: Progress,
    budget_usd: Decimal | None = None,
    retry_failed: bool = False,
    again: bool = True,
) -> StageReport:
    """Scores the labels that a simulator has not scored, and publishes the scores.

    Args:
        config: of the run.
        folder: of the run.
        progress: where it is shown.
        budget_usd: what the calls of the run may cost, with those made before.
        retry_failed: have labels rated again of which windows got no reply.
        again: have labels rated again of which newer text has overtaken the scores.

    Raises:
        EndpointRefuses: the model's endpoint answers no request; what was scored is kept.
        BudgetSpent: the next call might cost more than is left of `budget_usd`; likewise.
        StoreError: text that labels are scored on is also text that they may come from.
    """
    started = time.monotonic()
    with recorded_run("score", config, folder, budget_usd) as run, clear_disk_errors(folder.path):
        remove_unfinished(folder.parts)
        _absorb(folder)  # what a run that died had finished
        require_collected(folder)
        _require_labels(folder)
        with open_work(folder.path) as work:
            require_no_leak(work)
        rated = run.rated
        rated.begin_round()
        if "token_lookup" in config.score.simulators:
            with open_store(folder.path) as store:
                for explainer in sorted(
                    EMBEDDED_EXPLAINERS.intersection(config.explain.explainers)
                ):
                    for batch in _score_with(
                        explainer, config, folder, progress, store, run.run_id
                    ):
                        rated.labels += batch
            _absorb(folder)
        if retry_failed:
            names = {config.score.judge_name(kind) for kind in ("chat", *config.score.judges)}
            with open_work(folder.path) as work:
                forget_unrated(work, sorted(names), NO_REPLY)
                publish_if_behind(work, folder.path)
        for kind in config.score.judges:
            job = RateJob(
                kind=kind,
                settings=config.score,
                folder=folder,
                progress=progress,
                run_id=run.run_id,
                spending=run.spending,
                retry_failed=retry_failed,
                absorb=partial(_absorb_and_publish, folder),
                compares_all=config.explain.again.below is not None,
            )
            rate_labels(job, rated, again)
            if rated.stopped is not None:
                break
        undefined = rated.labels
        n_scored = undefined.total()
        with open_work(folder.path) as work:
            n_labels = count_scored_labels(work, config.score.simulator_names, _SPLIT)
        report = run.add(
            StageReport(
                stage="score",
                unit="labels",
                done=n_scored,
                already_done=n_labels - n_scored,
                failures={
                    f"windows to be rated: {reason}": n
                    for reason, n in sorted(rated.failed_windows.items())
                },
                seconds=time.monotonic() - started,
                notes=(
                    *_notes(undefined, n_scored),
                    *_unread(config),
                    *notes_on(rated, folder),
                ),
                is_spent=isinstance(rated.stopped, AllowanceSpent),
            )
        )
        if rated.stopped is not None and not isinstance(rated.stopped, AllowanceSpent):
            raise rated.stopped
        return report


@task(name="score-labels", cache_policy=NO_CACHE, persist_result=False)
def score_batch(sae_id: str, features: range, work: ScoreWork) -> Counter[str]:
    """Scores the labels of consecutive features into a part.

    Returns:
        Labels by the reason why their headline is undefined; "" where it is defined.
    """
    with work.store.cursor() as connection:
        labels = read_labels(connection, sae_id, features, work.explainer)
        explain, score = (
            {each.feature_id: each for each in read_features(connection, sae_id, features, pool)}
            for pool in work.backgrounds
        )
    scored = [
        score_label(
            label,
            explain[label.feature_id],
            score[label.feature_id],
            "token_lookup",
            work.resamples,
            work.settings,
        )
        for label in labels
    ]
    scores = [each for one in scored for each in one.scores]
    scores += _under_another_label(labels, explain, score, work)
    simulations = [each for one in scored for each in one.simulations]
    name = content_hash([[each.label_id, each.simulator, each.contexts_hash] for each in scores])
    tables = score_tables(scores, simulations, work.run_id)
    write_part(work.folder.parts, f"score-{name}", "score", tables, {})
    return Counter(each.reason or "" for one in scored for each in one.scores[:1])


def _under_another_label(
    labels: Sequence[Label],
    explain: Mapping[FeatureId, FeatureContexts],
    score: Mapping[FeatureId, FeatureContexts],
    work: ScoreWork,
) -> Iterator[Score]:
    """Of the labels drawn for it, the headline under the label of the next feature here."""
    done = [label.feature_id for label in labels if label.status == "done"]
    following = dict(zip(done, done[1:] + done[:1], strict=True))
    for label in labels:
        own = label.feature_id
        if label.label_id in work.shuffled and (other := following[own]) != own:
            simulator = TokenLookupSimulator(fit_token_lookup(explain[other]))
            yield from score_shuffled(
                label,
                other,
                None,
                explain[own],
                score[own],
                simulator,
                work.resamples,
                work.settings,
            ).scores


def _score_with(
    explainer: str,
    config: Config,
    folder: RunFolder,
    progress: Progress,
    store: Store,
    run_id: str,
) -> Iterator[Counter[str]]:
    missing = unscored_features(store.connection, explainer, "token_lookup", _SPLIT)
    if not missing:
        return
    work = ScoreWork(
        explainer=explainer,
        store=store,
        backgrounds=(
            load_background(store.connection, "explain"),
            load_background(store.connection, _SPLIT),
        ),
        resamples=draw_resamples(config.score.seed, config.score.resamples),
        settings=ScoreSettings(level=config.score.level, seed=config.score.seed),
        shuffled=labels_to_shuffle(store.connection, explainer, _N_SHUFFLED),
        folder=folder,
        run_id=run_id,
    )
    stage = partial(progress.stage, "score", unit="labels")
    yield from run_over_features(score_batch, work, missing, config.score.features_per_task, stage)


def _require_labels(folder: RunFolder) -> None:
    with open_work(folder.path) as work:
        if not work.execute("SELECT 1 FROM labels LIMIT 1").fetchall():
            raise StoreError(
                "This run has no labels to score yet.",
                where=str(folder.path),
                expected="labels",
                mend=f"scopenote explain {folder.path}",
            )


def _notes(undefined: Counter[str], n_scored: int) -> tuple[str, ...]:
    n_undefined = n_scored - undefined[""]
    if not n_undefined:
        return ()
    reasons = "; ".join(f"{n:,} {reason}" for reason, n in undefined.most_common() if reason)
    return (f"{n_undefined:,} of {n_scored:,} headline scores are undefined (NULL): {reasons}",)


def _unread(config: Config) -> tuple[str, ...]:
    if not config.explain.prompted or config.score.judges:
        return ()
    named = " and ".join(config.explain.prompted)
    return (
        f"labels by {named} are not scored: only a simulator such as `chat` reads what a label "
        "says (`score.simulators`)",
    )


def _absorb(folder: RunFolder) -> None:
    with open_work(folder.path) as work:
        calls = absorb_journals(work, folder.journal)
        absorb_results(work, folder.parts, "score")
        if calls.n_journals:
            publish(work, folder.path)


def _absorb_and_publish(folder: RunFolder) -> None:
    _absorb(folder)
    with open_work(folder.path) as work:
        publish_if_behind(work, folder.path)
