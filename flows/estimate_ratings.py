"""What having labels rated would cost: a call a window, counted on windows that would be sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from statistics import mean

import duckdb

from ..evaluate.chat_simulator import most_reply_tokens
from ..evaluate.classic import N_WINDOWS
from ..evaluate.token_ratings import rating_messages
from ..label.prompts import estimate_tokens
from ..store.database import Store
from ..store.scores import chosen_to_score, rivals_to_select_from
from ..store.splits import Split
from .explain_settings import EMBEDDED_EXPLAINERS
from .score_settings import ScoreSection

_SAMPLE = 50
# Labels are yet to come: as many words as one may have.
_SOME_LABEL = " ".join(["something"] * 15)
# Number, tab, digit and line break, where no reply came yet.
_ASSUMED_TOKENS_A_LINE = 4


@dataclass(frozen=True, slots=True)
class RatingEstimate:
    """What the judge's ratings would take.

    Attributes:
        model: the judge.
        n_labels: labels to be rated, a label on two splits or two features twice.
        n_calls: about how many, answers that leave tokens out not foreseen.
        prompt_tokens, completion_tokens: about how many.
        usd: at the model's price without any cache; None where that is not known.
        usd_at_most: were every reply as long as it may be.
    """

    model: str
    n_labels: int
    n_calls: int
    prompt_tokens: int
    completion_tokens: int
    usd: Decimal | None
    usd_at_most: Decimal | None


def estimate_ratings(
    store: Store, settings: ScoreSection, to_come: Sequence[int], candidates: int
) -> RatingEstimate | None:
    """What rating the labels that are there and those to come would take.

    Args:
        store: the published database.
        settings: how labels are scored.
        to_come: how many labels each explainer has still to write.
        candidates: how many of them are of one feature.

    Returns:
        None where no model is to rate any.
    """
    if "chat" not in settings.simulators:
        return None
    chat = settings.chat
    assert chat.model is not None, "the configuration was validated"
    price = chat.known_prices().get(chat.model)
    (simulator,) = (name for name in settings.simulator_names if name.startswith("chat/"))
    embedded = sorted(EMBEDDED_EXPLAINERS)
    has_rivals = candidates * len(to_come) > 1
    n_labels: dict[Split, int] = {
        "select": sum(
            map(len, rivals_to_select_from(store.connection, simulator, embedded).values())
        )
        + sum(to_come) * has_rivals,
        "score": sum(map(len, chosen_to_score(store.connection, simulator, embedded).values()))
        + sum(to_come) // candidates,
    }
    n_labels["score"] += min(chat.shuffled_labels, n_labels["score"])
    n_calls = prompt_tokens = completion_tokens = longest = 0
    for split, n in n_labels.items():
        if not n:
            continue
        n_windows = _windows_per_label(store.connection, split, settings)
        prompts, lines = _sample(store, split)
        if not prompts:
            continue
        calls = round(n * n_windows)
        n_calls += calls
        prompt_tokens += round(calls * mean(prompts))
        written = _reply_tokens(store.connection, chat.model)
        completion_tokens += round(
            calls * (mean(lines) * _ASSUMED_TOKENS_A_LINE if written is None else written)
        )
        longest += round(calls * mean(map(most_reply_tokens, lines)))
    return RatingEstimate(
        model=chat.model,
        n_labels=sum(n_labels.values()),
        n_calls=n_calls,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        usd=None if price is None else price.cost(prompt_tokens, 0, completion_tokens),
        usd_at_most=None if price is None else price.cost(prompt_tokens, 0, longest),
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


def _sample(store: Store, split: Split) -> tuple[list[int], list[int]]:
    """The tokens of the prompts of some windows, and how many tokens each has rated."""
    rows = store.connection.execute(
        """
        SELECT token_ids, coalesce(prefix_token_ids, []) FROM windows
        WHERE split = $split ORDER BY window_id LIMIT $n
        """,
        {"split": split, "n": _SAMPLE},
    ).fetchall()
    texts = store.token_texts()
    prompts = [
        rating_messages(
            _SOME_LABEL, [*map(texts.__getitem__, before)], [*map(texts.__getitem__, ids)]
        )
        for ids, before in rows
    ]
    sizes = [sum(estimate_tokens(message.content) for message in each) for each in prompts]
    return sizes, [len(ids) for ids, _ in rows]


def _reply_tokens(connection: duckdb.DuckDBPyConnection, model: str) -> float | None:
    rows = connection.execute(
        """
        SELECT avg(completion_tokens) FROM calls
        WHERE purpose = 'simulate' AND model = $model AND reply IS NOT NULL
        """,
        {"model": model},
    ).fetchall()
    return None if rows[0][0] is None else float(rows[0][0])
