"""The steps of rating, each from the state that the one before left: which labels, and how.

First, on `select`, the labels of features that have several; then, on `score`, of an explainer's
candidates the one that came out highest; then some features under another feature's label, which
says what a label is worth that has nothing to do with its feature; then second opinions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from ..evaluate.detection import detect
from ..evaluate.discrimination import discriminate
from ..evaluate.fuzzing import fuzz
from ..evaluate.looked_at_label import score_within
from ..evaluate.score_label import ScoredLabel, score_shuffled
from ..evaluate.scored_windows import few_windows
from ..evaluate.told_apart import tell_apart
from ..evaluate.window_exams import JudgeSettings
from ..evaluate.window_questions import Asker
from ..store.database import Store
from ..store.near_misses import read_near_misses
from ..store.records import FeatureId
from ..store.rival_labels import Rivals, read_rivals
from ..store.scores import (
    ShuffledLabel,
    chosen_to_score,
    rivals_to_select_from,
    shuffled_labels,
)
from ..store.steered_scores import INTERVENTION, labels_to_tell_apart, read_promoted
from .explain_settings import EMBEDDED_EXPLAINERS
from .rate_job import LabelBatch, RateJob, RateStep, RateTerms, RateWork, Unscored
from .score_settings import SecondOpinion

FindStep = Callable[[Store, RateJob], RateStep]


def purpose_of(job: RateJob) -> str:
    """What ratings are asked for, in a word: by kind, so that each has its own costs."""
    return "simulate" if job.kind == "chat" else f"simulate_{job.kind.removeprefix('chat_')}"


def compare_rivals(store: Store, job: RateJob) -> RateStep:
    """On `select`, the labels of features that have several, or of all."""
    missing = rivals_to_select_from(
        store.connection,
        job.simulator,
        sorted(EMBEDDED_EXPLAINERS),
        at_least=1 if job.compares_all else 2,
        again=job.again,
    )
    return RateStep("select", missing, "labels compared on `select`", purpose_of(job), _simulate)


def score_the_best(store: Store, job: RateJob) -> RateStep:
    """On `score`, of each explainer's candidates the best."""
    missing = chosen_to_score(
        store.connection, job.simulator, sorted(EMBEDDED_EXPLAINERS), again=job.again
    )
    return RateStep("score", missing, "labels", purpose_of(job), _simulate, is_score=True)


def score_shuffled_labels(store: Store, job: RateJob) -> RateStep:
    """On `score`, some features under another feature's label."""
    found = shuffled_labels(store.connection, job.simulator, job.settings.chat.shuffled_labels)
    missing: dict[str, list[tuple[int, str]]] = {}
    for each in found.values():
        missing.setdefault(each.sae_id, []).append((each.feature, each.label_id))
    unit = "features rated under another feature's label"
    return RateStep("score", missing, unit, purpose_of(job), partial(_simulate_shuffled, found))


def _simulate(batch: LabelBatch, work: RateWork) -> Iterator[ScoredLabel]:
    simulator = work.judge.simulator(work.ask, batch.texts)
    allowance = work.judge.allowance(work.ask, batch.texts)
    for label in batch.labels:
        number = label.feature_id.feature
        yield score_within(
            label,
            batch.explain[number],
            batch.score[number],
            simulator,
            work.source.resamples,
            allowance,
            work.job.score_settings,
        )


def _simulate_shuffled(
    shuffled: Mapping[str, ShuffledLabel], batch: LabelBatch, work: RateWork
) -> Iterator[ScoredLabel]:
    simulator = work.judge.simulator(work.ask, batch.texts)
    chat = work.job.settings.chat
    for label in batch.labels:
        number, other = label.feature_id.feature, shuffled[label.label_id]
        yield score_shuffled(
            label,
            FeatureId(batch.sae_id, other.other_feature),
            other.other_text,
            batch.explain[number],
            few_windows(batch.score[number], chat.active_windows, chat.silent_windows),
            simulator,
            work.source.resamples,
            work.job.score_settings,
        )


def ask_second_opinion(opinion: SecondOpinion, store: Store, job: RateJob) -> RateStep:
    """On `score`, what else the model says of the chosen labels; nothing where another asks it."""
    missing: Unscored = {}
    if opinion in job.settings.chat.second_opinions and _asks_the_rest(job):
        missing = chosen_to_score(
            store.connection,
            job.simulator,
            sorted(EMBEDDED_EXPLAINERS),
            opinion,
            job.settings.judge_name("chat"),
            again=job.again,
        )
    return opinion_step(opinion, missing)


def _asks_the_rest(job: RateJob) -> bool:
    return job.settings.asked_judges[:1] == (job.kind,)


def opinion_step(opinion: SecondOpinion, missing: Unscored) -> RateStep:
    """Asking for a second opinion on these labels."""
    rate = _tell_apart if opinion == "discrimination" else partial(_examine, opinion)
    return RateStep("score", missing, f"labels for {opinion}", opinion, rate)


def _examine(opinion: SecondOpinion, batch: LabelBatch, work: RateWork) -> Iterator[ScoredLabel]:
    settings = _judge_settings(work.job)
    with work.source.store.cursor() as connection:
        near_misses = read_near_misses(
            connection, batch.sae_id, batch.features, work.source.backgrounds[1], settings.n_windows
        )
    ask_about = {"detection": detect, "fuzzing": fuzz}[opinion]
    asker = _asker(batch, work)
    for label in batch.labels:
        number = label.feature_id.feature
        scores = ask_about(
            label,
            batch.explain[number],
            batch.score[number],
            near_misses[number],
            asker,
            work.source.resamples,
            settings,
        )
        yield ScoredLabel(scores, [])


def _tell_apart(batch: LabelBatch, work: RateWork) -> Iterator[ScoredLabel]:
    asker, background = _asker(batch, work), work.source.backgrounds[1]
    rivals: dict[str, Mapping[int, Rivals]] = {}
    for label in batch.labels:
        if label.explainer not in rivals:
            with work.source.store.cursor() as connection:
                rivals[label.explainer] = read_rivals(
                    connection, batch.sae_id, batch.features, label.explainer, background
                )
        number = label.feature_id.feature
        scores = discriminate(
            label,
            batch.explain[number],
            batch.score[number],
            rivals[label.explainer].get(number),
            asker,
            work.source.resamples,
            _judge_settings(work.job),
        )
        yield ScoredLabel(scores, [])


def ask_to_tell_apart(store: Store, job: RateJob) -> RateStep:
    """Of features that were turned up, whose outputs the label goes with."""
    missing: Unscored = {}
    if job.settings.intervention.questions and _asks_the_rest(job):
        missing = labels_to_tell_apart(store.connection, job.settings.judge_name("chat"))
    return tell_apart_step(missing)


def tell_apart_step(missing: Unscored) -> RateStep:
    """Asking of these labels whose outputs they go with."""
    unit = "labels told apart by outputs"
    return RateStep("score", missing, unit, INTERVENTION, _tell_outputs_apart)


def _tell_outputs_apart(batch: LabelBatch, work: RateWork) -> Iterator[ScoredLabel]:
    with work.source.store.cursor() as connection:
        steered = read_promoted(connection, [label.label_id for label in batch.labels])
    asker, settings = _asker(batch, work), work.job.settings
    for label in batch.labels:
        promoted = steered[label.label_id]
        n_questions = settings.intervention.questions
        told = tell_apart(label, promoted, asker, n_questions, settings.seed, settings.level)
        yield ScoredLabel([told], [])


def _asker(batch: LabelBatch, work: RateWork) -> Asker:
    return Asker(
        name=work.job.settings.judge_name("chat"),
        model=work.judge.model,
        ask=work.ask,
        run=work.judge.run,
        token_text=batch.texts.token_text,
    )


def _judge_settings(job: RateTerms) -> JudgeSettings:
    return JudgeSettings(
        n_windows=job.settings.chat.opinion_windows,
        seed=job.settings.seed,
        level=job.settings.level,
    )


STEPS: tuple[FindStep, ...] = (
    compare_rivals,
    score_the_best,
    score_shuffled_labels,
    partial(ask_second_opinion, "detection"),
    partial(ask_second_opinion, "fuzzing"),
    partial(ask_second_opinion, "discrimination"),
)
