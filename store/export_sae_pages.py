"""The features of an SAE as a page that can be mailed shows them, a block of them at a time.

Of each feature: its chosen labels with their scores, its statistics, its nearest features, and its
first contexts. How many there are of all that is bounded, so that a page is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .export_page_contexts import PageContexts, PieceTexts, read_page_contexts
from .feature_page import ShownToken
from .output_effects import shown_tokens

if TYPE_CHECKING:
    import duckdb

BLOCK_FEATURES = 2048
"""Features that are read at once."""

NEAR = 5
"""Features that are listed as near by either measure."""

FEATURES_QUERY = """
    SELECT f.feature, f.n_active, f.density, f.max_activation, f.mean_activation, c.failure,
        f.top_tokens, f.top_token_means, f.top_tokens_positive, f.top_logits_positive,
        f.top_tokens_negative, f.top_logits_negative
    FROM (
        FROM features SEMI JOIN chosen_features USING (sae_id, feature)
        WHERE sae_id = $sae AND feature BETWEEN $first AND $last
    ) f LEFT JOIN current_features c USING (sae_id, feature)
    ORDER BY f.feature
"""

# Of one SAE, in its order: all the scores of a million labels would else be read for each block.
_MAKE_SCORES = """
    CREATE OR REPLACE TEMP TABLE page_scores AS
    SELECT c.feature, s.label_id, s.scorer, s.metric, s.simulator, s.value, s.reason, s.n_windows,
        s.lift_reason, s.stale_since IS NOT NULL AS is_stale,
        s.scorer = 'simulation' AND s.metric = 'correlation' AND s.simulator = c.simulator
            AS is_headline
    FROM scores s JOIN (FROM chosen_labels WHERE sae_id = $sae) c USING (label_id)
    WHERE s.split = 'score' AND (
        s.metric IN ('correlation', 'ev_correlation_top_and_random', 'accuracy')
        OR starts_with(s.metric, 'auroc_')
    )
    ORDER BY c.feature
"""

_LABELS = """
    SELECT c.feature, c.label_id, l.text, l.explanation, l.source, l.explainer, l.model, l.author,
        l.status, l.reason, coalesce(l.saw_score, false), c.in_force, c.simulator, c.score,
        c.score_reason, c.ci_low, c.ci_high, c.null_value, c.lift, c.lift_ci_low, c.lift_ci_high,
        c.n_up, c.n_down, s.n_windows, s.lift_reason, coalesce(s.is_stale, false)
    FROM (FROM chosen_labels WHERE sae_id = $sae AND feature BETWEEN $first AND $last) c
    JOIN (FROM labels WHERE sae_id = $sae AND feature BETWEEN $first AND $last) l USING (label_id)
    LEFT JOIN (FROM page_scores WHERE is_headline AND feature BETWEEN $first AND $last) s
        USING (label_id)
    ORDER BY c.feature, c.in_force DESC, l.status, c.label_id
"""

_OTHER_SCORES = """
    SELECT label_id, scorer, metric, simulator, value, reason FROM page_scores
    WHERE feature BETWEEN $first AND $last AND NOT is_headline
    ORDER BY label_id, scorer <> 'simulation', scorer, metric, simulator
"""

_NEIGHBOURS = """
    SELECT feature, kind, neighbour, value FROM neighbours
    SEMI JOIN chosen_features USING (sae_id, feature)
    WHERE sae_id = $sae AND feature BETWEEN $first AND $last AND rank <= $near
    ORDER BY feature, kind, rank
"""


@dataclass(frozen=True, slots=True)
class PageScore:
    """A number beside the headline, on split `score`, or the reason why there is none."""

    scorer: str
    metric: str
    simulator: str
    value: float | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class PageLabel:
    """A chosen label with its headline on `score`, by the rule of `current_labels`.

    Attributes:
        saw_score: the person who wrote it had looked at contexts of `score`.
        simulator: of the headline; None: it was not scored.
        lift_reason: why there is no lift.
        is_stale: newer text has overtaken the headline.
        others: further scores.
    """

    text: str | None
    explanation: str | None
    source: str
    explainer: str
    model: str | None
    author: str | None
    status: str
    reason: str | None
    saw_score: bool
    is_in_force: bool
    simulator: str | None
    score: float | None
    score_reason: str | None
    ci_low: float | None
    ci_high: float | None
    null_value: float | None
    lift: float | None
    lift_ci_low: float | None
    lift_ci_high: float | None
    n_up: int
    n_down: int
    n_windows: int | None
    lift_reason: str | None
    is_stale: bool
    others: tuple[PageScore, ...]


@dataclass(frozen=True, slots=True)
class NearFeature:
    """A near feature and how near it is."""

    feature: int
    value: float


@dataclass(frozen=True, slots=True)
class PageFeature:
    """A feature with all that its place on the page shows.

    Attributes:
        failure: why it has no label in force, where one was tried.
        labels: those chosen, the one in force first.
        top_tokens: where it is strong, by falling mean activation.
        raised, lowered: output tokens, the strongest first.
    """

    feature: int
    n_active: int
    density: float
    max_activation: float | None
    mean_activation: float | None
    failure: str | None
    labels: tuple[PageLabel, ...]
    top_tokens: tuple[ShownToken, ...]
    raised: tuple[ShownToken, ...]
    lowered: tuple[ShownToken, ...]
    by_direction: tuple[NearFeature, ...]
    by_cofiring: tuple[NearFeature, ...]
    contexts: PageContexts


def feature_blocks(
    connection: duckdb.DuckDBPyConnection, sae_id: str, n_contexts: int
) -> Iterator[tuple[PageFeature, ...]]:
    """The chosen features of an SAE, by number.

    Args:
        connection: to the database, with the tables that `choose` fills.
        sae_id: of the SAE.
        n_contexts: contexts of either kind of a feature.

    Yields:
        Up to `BLOCK_FEATURES`, never none.
    """
    connection.execute(_MAKE_SCORES, {"sae": sae_id})
    blocks = connection.execute(
        """
        SELECT min(feature), max(feature) FROM (
            SELECT feature, (row_number() OVER (ORDER BY feature) - 1) // $n AS block
            FROM chosen_features WHERE sae_id = $sae
        ) GROUP BY block ORDER BY block
        """,
        {"sae": sae_id, "n": BLOCK_FEATURES},
    ).fetchall()
    pieces = PieceTexts(connection)
    for first, last in blocks:
        yield _read_block(connection, sae_id, range(first, last + 1), n_contexts, pieces)


def _read_block(
    connection: duckdb.DuckDBPyConnection,
    sae_id: str,
    features: range,
    n_contexts: int,
    pieces: PieceTexts,
) -> tuple[PageFeature, ...]:
    wanted = {"sae": sae_id, "first": features.start, "last": features.stop - 1}
    labels = _read_labels(connection, wanted)
    near = _read_neighbours(connection, wanted)
    contexts = read_page_contexts(connection, sae_id, features, n_contexts, pieces)
    return tuple(
        PageFeature(
            feature, n_active or 0, density or 0.0, peak, mean, failure,
            labels=tuple(labels.get(feature, ())),
            top_tokens=shown_tokens(*tokens[0:2]),
            raised=shown_tokens(*tokens[2:4]),
            lowered=shown_tokens(*tokens[4:6]),
            by_direction=tuple(near.get((feature, "cosine"), ())),
            by_cofiring=tuple(near.get((feature, "cofiring"), ())),
            contexts=contexts.get(feature) or PageContexts(),
        )
        for feature, n_active, density, peak, mean, failure, *tokens in connection.execute(
            FEATURES_QUERY, wanted
        ).fetchall()
    )  # fmt: skip


def _read_labels(
    connection: duckdb.DuckDBPyConnection, wanted: dict[str, Any]
) -> dict[int, list[PageLabel]]:
    of_block = {name: wanted[name] for name in ("first", "last")}
    others: dict[str, list[PageScore]] = defaultdict(list)
    for label_id, *score in connection.execute(_OTHER_SCORES, of_block).fetchall():
        others[label_id].append(PageScore(*score))
    found: dict[int, list[PageLabel]] = defaultdict(list)
    for feature, label_id, *values in connection.execute(_LABELS, wanted).fetchall():
        values.append(tuple(others.get(label_id, ())))
        found[feature].append(PageLabel(*values))
    return found


def _read_neighbours(
    connection: duckdb.DuckDBPyConnection, wanted: dict[str, Any]
) -> dict[tuple[int, str], list[NearFeature]]:
    found: dict[tuple[int, str], list[NearFeature]] = defaultdict(list)
    rows = connection.execute(_NEIGHBOURS, {**wanted, "near": NEAR}).fetchall()
    for feature, kind, neighbour, value in rows:
        found[feature, kind].append(NearFeature(neighbour, value))
    return found
