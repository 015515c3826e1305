"""What having labels rated would cost: calls and tokens, counted on windows that would be sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import ceil
from statistics import mean

import duckdb

from ..evaluate.chat_simulator import most_reply_tokens
from ..evaluate.classic import N_WINDOWS
from ..evaluate.detection import PROMPT as DETECTION
from ..evaluate.discrimination import PROMPT as DISCRIMINATION
from ..evaluate.fuzzing import PROMPT as FUZZING
from ..evaluate.gold_items import gold_items
from ..evaluate.sparse_ratings import (
    estimated_prompt_tokens,
    most_sparse_reply_tokens,
    show_window,
    sparse_messages,
)
from ..evaluate.sparse_simulator import WINDOWS_PER_CALL
from ..evaluate.token_ratings import rating_messages
from ..evaluate.told_apart import usual_question
from ..evaluate.window_exams import JudgeSettings
from ..evaluate.window_questions import compose, show_label
from ..label.chat import Message
from ..label.pricing import Price
from ..label.prompts import estimate_tokens
from ..store.database import Store
from ..store.scores import chosen_to_score, rivals_to_select_from
from ..store.splits import Split
from ..store.steered_scores import INTERVENTION, count_to_tell_apart
from .explain_settings import EMBEDDED_EXPLAINERS
from .score_settings import JudgeKind, ScoreSection, SecondOpinion

_SAMPLE = 50
# Labels are yet to come: as many words as one may have.
_SOME_LABEL = " ".join(["something"] * 15)
_PROMPTS: Mapping[SecondOpinion, str] = {
    "detection": DETECTION,
    "fuzzing": FUZZING,
    "discrimination": DISCRIMINATION,
}
# Number, tab, digit and line break, where no reply came yet; and of many windows a call, in a
# few of which tokens are named.
_ASSUMED_TOKENS_A_LINE, _ASSUMED_TOKENS_A_SPARSE_LINE = 4, 6


@dataclass(frozen=True, slots=True)
class RatingEstimate:
    """What one way of asking a judge would take.

    Attributes:
        what: the way, in a word or two.
        model: the judge.
        n_labels: labels to be asked about, a label on two splits or two features twice.
        n_calls: about how many, answers that leave something out not foreseen.
        prompt_tokens, completion_tokens: about how many.
        usd: at the model's price without any cache; None where that is not known.
        usd_at_most: were every reply as long as it may be.
    """

    what: str
    model: str
    n_labels: int
    n_calls: int
    prompt_tokens: int
    completion_tokens: int
    usd: Decimal | None
    usd_at_most: Decimal | None


@dataclass(frozen=True, slots=True)
class _Windows:
    """Windows of a split, as samples of all.

    Attributes:
        dense, sparse: the tokens of a prompt that shows one, or many.
        n_tokens: how many each has rated.
        text: how many tokens its text alone takes.
        longest_sparse: what a reply about as many as share a call may take.
    """

    dense: Sequence[int]
    sparse: Sequence[int]
    n_tokens: Sequence[int]
    text: Sequence[int]
    longest_sparse: int


def estimate_ratings(
    store: Store, settings: ScoreSection, to_come: Sequence[int], candidates: int
) -> tuple[RatingEstimate, ...]:
    """What rating the labels that are there and those to come would take.

    Models that only read are left out: they make no calls. So are looks after which scoring stops.

    Args:
        store: the published database.
        settings: how labels are scored.
        to_come: how many labels each explainer has still to write.
        candidates: how many of them are of one feature.

    Returns:
        A row for each way of asking.
    """
    asked = settings.asked_judges
    if not asked:
        return ()
    sample = _sample(store, "score")
    rows = [
        row
        for kind in asked
        for row in _ratings(store, settings, kind, sample, to_come, candidates)
    ]
    n_chosen = sum(to_come) // candidates
    for opinion in settings.chat.second_opinions:
        missing = chosen_to_score(
            store.connection,
            settings.judge_name(asked[0]),
            sorted(EMBEDDED_EXPLAINERS),
            opinion,
            settings.judge_name("chat"),
        )
        n_labels = n_chosen + sum(map(len, missing.values()))
        rows.append(_opinion(opinion, n_labels, settings, sample))
    rows.append(_told_apart(store, settings, n_chosen))
    if settings.chat.gold and any(row.n_calls for row in rows):
        rows += [_gold(kind, settings) for kind in asked]
    return tuple(row for row in rows if row.n_calls)


def _ratings(
    store: Store,
    settings: ScoreSection,
    kind: JudgeKind,
    sample: _Windows,
    to_come: Sequence[int],
    candidates: int,
) -> Iterator[RatingEstimate]:
    simulator, embedded = settings.judge_name(kind), sorted(EMBEDDED_EXPLAINERS)
    rivals = rivals_to_select_from(store.connection, simulator, embedded)
    chosen = chosen_to_score(store.connection, simulator, embedded)
    has_rivals = candidates * len(to_come) > 1
    n_select = sum(map(len, rivals.values())) + sum(to_come) * has_rivals
    n_score = sum(map(len, chosen.values())) + sum(to_come) // candidates
    n_shuffled = min(settings.chat.shuffled_labels, n_score)
    written = _reply_tokens(store.connection, settings.chat.model)
    n_labels: dict[Split, int] = {"select": n_select, "score": n_score + n_shuffled}
    n_windows = sum(
        n * _windows_per_label(store.connection, split, settings) for split, n in n_labels.items()
    )
    if n_windows and sample.dense:
        yield _row(
            f"scores by {kind}",
            sum(n_labels.values()),
            settings,
            *(
                _many_a_call(n_windows, sample)
                if kind == "chat_sparse"
                else _one_a_call(n_windows, sample, written, reads_only=kind == "vllm")
            ),
        )
    if settings.chat.screen == "chat_sparse" and sample.sparse:
        n_screened = (n_select + n_score) * settings.chat.screened_windows
        taken = _many_a_call(n_screened, sample)
        yield _row("screening", n_select + n_score, settings, *taken)


Taken = tuple[int, float, float, float]
"""Calls, tokens read, tokens written, and tokens written at most."""


def _one_a_call(
    n_windows: float, sample: _Windows, written: float | None, reads_only: bool
) -> Taken:
    lines = mean(sample.n_tokens)
    if reads_only:
        # The answer is read as well, and one token is written for form's sake.
        read = mean(sample.dense) + lines * _ASSUMED_TOKENS_A_LINE
        return round(n_windows), n_windows * read, n_windows, n_windows
    reply = lines * _ASSUMED_TOKENS_A_LINE if written is None else written
    longest = mean(map(most_reply_tokens, sample.n_tokens))
    return round(n_windows), n_windows * mean(sample.dense), n_windows * reply, n_windows * longest


def _many_a_call(n_windows: float, sample: _Windows) -> Taken:
    n_calls = ceil(n_windows / WINDOWS_PER_CALL)
    read = n_calls * estimated_prompt_tokens(_SOME_LABEL) + n_windows * mean(sample.sparse)
    written = n_windows * _ASSUMED_TOKENS_A_SPARSE_LINE
    return n_calls, read, written, n_calls * sample.longest_sparse


def _opinion(
    opinion: SecondOpinion, n_labels: int, settings: ScoreSection, sample: _Windows
) -> RatingEstimate:
    n, usual = settings.chat.opinion_windows, JudgeSettings()
    static = _tokens_of(compose(_PROMPTS[opinion], show_label(_SOME_LABEL), (), (0, 1)).messages)
    text = mean(sample.text) if sample.text else 0
    if opinion == "discrimination":
        n_calls = n_labels * n
        read = n_calls * (static + 4 * estimate_tokens(_SOME_LABEL) + text)
        return _row(opinion, n_labels, settings, n_calls, read, n_calls * 3, n_calls * 66)
    # Positives and negatives of two kinds.
    n_calls = n_labels * ceil(3 * n / usual.windows_a_call)
    read = n_calls * static + n_labels * 3 * n * text
    written = n_labels * 3 * n * _ASSUMED_TOKENS_A_LINE
    return _row(opinion, n_labels, settings, n_calls, read, written, 1.5 * written + 60 * n_calls)


def tokens_per_question() -> float:
    """What a question about outputs takes, label and outputs as long as they usually are."""
    return _tokens_of(usual_question(_SOME_LABEL).messages)


def _told_apart(store: Store, settings: ScoreSection, n_to_come: int) -> RatingEstimate:
    intervention = settings.intervention
    n_drawn, n_missing = count_to_tell_apart(
        store.connection, intervention.features, settings.judge_name("chat")
    )
    n_labels = n_missing + min(intervention.features - n_drawn, n_to_come)
    n_calls = n_labels * intervention.questions
    read = n_calls * tokens_per_question()
    return _row(INTERVENTION, n_labels, settings, n_calls, read, n_calls * 3, n_calls * 66)


def _gold(kind: JudgeKind, settings: ScoreSection) -> RatingEstimate:
    taken: list[Taken] = []
    for item in gold_items():
        # Under its own label and another's.
        if kind == "chat_sparse":
            shown = [show_window([], tokens) for tokens in item.windows]
            read = _tokens_of(sparse_messages(item.label, shown))
            line = len(shown) * _ASSUMED_TOKENS_A_SPARSE_LINE
            taken.append((2, 2 * read, 2 * line, 2 * most_sparse_reply_tokens(shown)))
            continue
        for tokens in item.windows:
            read = _tokens_of(rating_messages(item.label, [], tokens))
            lines = 1 if kind == "vllm" else len(tokens) * _ASSUMED_TOKENS_A_LINE
            taken.append((2, 2 * read, 2 * lines, 2 * most_reply_tokens(len(tokens))))
    n_calls, *tokens_of = (sum(each) for each in zip(*taken, strict=True))
    return _row(f"gold items by {kind}", 0, settings, round(n_calls), *tokens_of)


def _row(
    what: str,
    n_labels: int,
    settings: ScoreSection,
    n_calls: int,
    read: float,
    written: float,
    longest: float,
) -> RatingEstimate:
    model = settings.chat.model
    assert model is not None, "the configuration was validated"
    price: Price | None = settings.chat.known_prices().get(model)
    prompt_tokens, completion_tokens = round(read), round(written)
    return RatingEstimate(
        what=what,
        model=model,
        n_labels=n_labels,
        n_calls=n_calls,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        usd=None if price is None else price.cost(prompt_tokens, 0, completion_tokens),
        usd_at_most=None if price is None else price.cost(prompt_tokens, 0, round(longest)),
    )


def _windows_per_label(
    connection: duckdb.DuckDBPyConnection, split: Split, settings: ScoreSection
) -> float:
    """Mean over features that are active at all, top windows among the sample counted twice."""
    rows = connection.execute(
        """
        SELECT avg(least($active, n_sample) + least($top, n_top)) + least($silent, (
            SELECT count(*) FROM windows WHERE is_background AND split = $split
        )) FROM (
            SELECT count(*) FILTER (kind = 'sample') AS n_sample,
                count(*) FILTER (kind = 'top') AS n_top
            FROM contexts WHERE split = $split GROUP BY sae_id, feature
        )
        """,
        {
            "split": split,
            "active": settings.chat.active_windows,
            "silent": settings.chat.silent_windows,
            "top": N_WINDOWS,
        },
    ).fetchall()
    return float(rows[0][0] or 0.0)


def _sample(store: Store, split: Split) -> _Windows:
    """Some windows of a split, as they would be shown."""
    rows = store.connection.execute(
        """
        SELECT token_ids, coalesce(prefix_token_ids, []) FROM windows
        WHERE split = $split ORDER BY window_id LIMIT $n
        """,
        {"split": split, "n": _SAMPLE},
    ).fetchall()
    spelled = store.token_texts().__getitem__
    texts = [([*map(spelled, before)], [*map(spelled, ids)]) for ids, before in rows]
    shown = [show_window(before, tokens) for before, tokens in texts]
    return _Windows(
        dense=[_tokens_of(rating_messages(_SOME_LABEL, *each)) for each in texts],
        sparse=[each.estimated_tokens for each in shown],
        n_tokens=[len(tokens) for _, tokens in texts],
        text=[estimate_tokens("".join(tokens)) for _, tokens in texts],
        longest_sparse=most_sparse_reply_tokens(shown[:WINDOWS_PER_CALL]),
    )


def _tokens_of(messages: Sequence[Message]) -> int:
    return sum(estimate_tokens(message.content) for message in messages)


def _reply_tokens(connection: duckdb.DuckDBPyConnection, model: str | None) -> float | None:
    rows = connection.execute(
        """
        SELECT avg(completion_tokens) FROM calls
        WHERE purpose = 'simulate' AND model = $model AND reply IS NOT NULL
        """,
        {"model": model},
    ).fetchall()
    return None if rows[0][0] is None else float(rows[0][0])
