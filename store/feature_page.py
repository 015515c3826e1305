"""What is known of one feature, as its page shows it: label, scores, statistics, contexts.

Reads only, from a connection that someone else opened. Which label is in force is the
`current_labels` view's to say; nothing here chooses.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from .errors import UserMistake
from .feature_contexts import ShownContext, read_contexts
from .feature_labels import ShownLabel, read_feature_labels
from .near_features import ShownNeighbour, read_neighbours, read_rows
from .records import ContextKind, FeatureId
from .splits import Split
from .unit_names import is_neuron_basis, unit_name, unit_number

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True, slots=True)
class ShownScore:
    """One number for the label in force, or the reason why there is none."""

    scorer: str
    simulator: str
    metric: str
    split: str
    value: float | None
    reason: str | None
    ci_low: float | None
    ci_high: float | None
    null_value: float | None
    lift: float | None
    lift_ci_low: float | None
    lift_ci_high: float | None
    lift_reason: str | None
    n_windows: int
    n_tokens: int


@dataclass(frozen=True, slots=True)
class ShownToken:
    """An output token that the feature raises or lowers.

    Attributes:
        logit: per unit of activation, as `extract/logit_effects.py` defines it; None in a run
            of an older version.
    """

    text: str
    logit: float | None


@dataclass(frozen=True, slots=True)
class ShownTopToken:
    """A token at which the feature is strong, in split `explain`.

    Attributes:
        mean: its mean activation, pulled towards the mean of all tokens where it is rare.
        count: how often it stands in the windows that were looked at.
    """

    text: str
    mean: float
    count: int


@dataclass(frozen=True, slots=True)
class FeatureStatistics:
    """What was collected of a feature, whatever it is labelled.

    Attributes:
        width: features of its SAE; None where that is not known.
        n_tokens: that its SAE has seen.
        density: active tokens per token over all splits.
        mean_activation: over active tokens.
        histogram: active tokens by activation; `histogram_edges` has each bin's lower edge.
        top_tokens: by falling mean activation.
        top_tokens_positive, top_tokens_negative: output tokens, the strongest first.
    """

    width: int | None
    n_active: int
    n_tokens: int | None
    density: float
    max_activation: float | None
    mean_activation: float | None
    histogram: tuple[int, ...]
    histogram_edges: tuple[float, ...] | None
    top_tokens: tuple[ShownTopToken, ...]
    top_tokens_positive: tuple[ShownToken, ...]
    top_tokens_negative: tuple[ShownToken, ...]


@dataclass(frozen=True, slots=True)
class FeaturePage:
    """One feature with all that its page shows.

    Attributes:
        label: the label in force; None if there is none.
        other_labels: proposals that are not in force.
        failed_labels: proposals that came to nothing, with their reasons.
        density: active tokens per token over all splits.
        mean_activation: over active tokens.
        histogram: active tokens by activation; `histogram_edges` has each bin's lower edge.
        top_tokens: by falling mean activation.
        top_tokens_positive, top_tokens_negative: output tokens, the strongest first.
        neighbours: by kind and rank.
        n_contexts: how many contexts of this split and kind are kept; `contexts` may be fewer.
    """

    feature_id: FeatureId
    label: ShownLabel | None
    other_labels: tuple[ShownLabel, ...]
    failed_labels: tuple[ShownLabel, ...]
    scores: tuple[ShownScore, ...]
    n_active: int
    n_tokens: int | None
    density: float
    max_activation: float | None
    mean_activation: float | None
    histogram: tuple[int, ...]
    histogram_edges: tuple[float, ...] | None
    top_tokens: tuple[ShownTopToken, ...]
    top_tokens_positive: tuple[ShownToken, ...]
    top_tokens_negative: tuple[ShownToken, ...]
    neighbours: tuple[ShownNeighbour, ...]
    split: str
    kind: str
    n_contexts: int
    contexts: tuple[ShownContext, ...]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`: the id as people write it, times as ISO 8601."""
        content = asdict(self)
        content["feature_id"] = str(self.feature_id)
        return content


def read_widths(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """How many features each SAE of the run has, by its id.

    Raises:
        UserMistake: nothing has been collected.
    """
    rows = connection.execute(
        """
        SELECT sae_id, coalesce(max(s.width), max(f.feature) + 1)
        FROM features f LEFT JOIN saes s USING (sae_id)
        GROUP BY sae_id ORDER BY sae_id
        """
    ).fetchall()
    if not rows:
        raise UserMistake("No features have been collected yet.", found="an empty database")
    return dict(rows)


def find_feature(connection: duckdb.DuckDBPyConnection, written: str) -> FeatureId:
    """The feature that a person means by `model/source/index`, `source/index` or `index`.

    The index of a neuron is written with its sign, `1393+`.

    Raises:
        UserMistake: if it is none, or one of several; with the ids there are.
    """
    widths = read_widths(connection)
    allowed = f"model/source/index: {', '.join(map(_range, widths, widths.values()))}"
    source, _, index = written.strip().strip("/").rpartition("/")
    of_source = [sae_id for sae_id in widths if not source or f"/{sae_id}".endswith(f"/{source}")]
    if not of_source:
        near = (get_close_matches(source, widths, n=1, cutoff=0) or list(widths))[0]
        last = widths[near] - 1
        raise UserMistake(
            "There is no such SAE in this run.",
            found=source,
            expected=allowed,
            mend=f"the nearest is `{FeatureId(near, min(unit_number(near, index) or 0, last))}`",
        )
    numbers = {sae_id: unit_number(sae_id, index) for sae_id in of_source}
    matches = [FeatureId(sae_id, n) for sae_id, n in numbers.items() if n is not None]
    if not matches:
        raise _no_feature_id(written, index, of_source, allowed)
    if len(matches) > 1:
        raise UserMistake(
            "Several SAEs have such a feature.",
            found=written,
            expected=allowed,
            mend="write " + " or ".join(f"`{match}`" for match in matches),
        )
    (found,) = matches
    last = widths[found.sae_id] - 1
    if found.feature > last:
        raise UserMistake(
            "The SAE has no feature of this number.",
            found=written,
            expected=_range(found.sae_id, last + 1),
            mend=f"the nearest is `{FeatureId(found.sae_id, last)}`",
        )
    return found


def _range(sae_id: str, width: int) -> str:
    return f"{FeatureId(sae_id, 0)} to {unit_name(sae_id, width - 1)}"


def _no_feature_id(written: str, index: str, of_source: list[str], allowed: str) -> UserMistake:
    bases = list(filter(is_neuron_basis, of_source))
    if bases and index.isascii() and index.isdigit():
        return UserMistake(
            "A neuron is two units, one where it is positive and one where it is negative.",
            found=written,
            expected=allowed,
            mend=f"write `{bases[0]}/{index}+` or `{bases[0]}/{index}-`",
        )
    return UserMistake(
        "This is not a feature's id.",
        found=written,
        expected=allowed,
        mend=f"for example `{FeatureId(of_source[0], 0)}`",
    )


def read_feature_page(
    connection: duckdb.DuckDBPyConnection,
    feature_id: FeatureId,
    split: Split = "explain",
    kind: ContextKind = "top",
    n_contexts: int = 10,
) -> FeaturePage:
    """All that the page of this feature shows, with its first contexts of a split and kind."""
    statistics = read_statistics(connection, feature_id)
    labels = read_feature_labels(connection, feature_id)
    label = labels.in_force
    kept = read_contexts(connection, feature_id, split, kind, n_contexts)
    return FeaturePage(
        feature_id=feature_id,
        label=label,
        other_labels=labels.others,
        failed_labels=labels.failed,
        scores=_scores(connection, label.label_id) if label else (),
        **{
            field.name: getattr(statistics, field.name)
            for field in fields(statistics)
            if field.name != "width"
        },
        neighbours=read_neighbours(connection, feature_id),
        split=split,
        kind=kind,
        n_contexts=kept.counts.get((split, kind), 0),
        contexts=kept.contexts,
    )


def read_statistics(
    connection: duckdb.DuckDBPyConnection, feature_id: FeatureId
) -> FeatureStatistics:
    """What was collected of this feature.

    Raises:
        UserMistake: nothing was.
    """
    # All columns, by name: a run of an older version lacks some.
    found = read_rows(
        connection,
        "SELECT f.*, s.n_tokens, s.width FROM features f LEFT JOIN saes s USING (sae_id) "
        "WHERE sae_id = $1 AND feature = $2",
        [feature_id.sae_id, feature_id.feature],
    )
    if not found:
        raise UserMistake("Nothing has been collected for this feature.", found=str(feature_id))
    (row,) = found
    return FeatureStatistics(
        width=row["width"],
        n_active=row["n_active"] or 0,
        n_tokens=row["n_tokens"],
        density=row["density"] or 0.0,
        max_activation=row["max_activation"],
        mean_activation=row["mean_activation"],
        histogram=tuple(row["histogram"] or ()),
        histogram_edges=_histogram_edges(connection),
        top_tokens=_top_tokens(row),
        top_tokens_positive=_tokens(row, "positive"),
        top_tokens_negative=_tokens(row, "negative"),
    )


def _top_tokens(statistics: dict[str, Any]) -> tuple[ShownTopToken, ...]:
    names = ("top_tokens", "top_token_means", "top_token_counts")
    columns = [statistics.get(name) or [] for name in names]
    return tuple(ShownTopToken(*each) for each in zip(*columns, strict=True))


def _tokens(statistics: dict[str, Any], sign: str) -> tuple[ShownToken, ...]:
    texts = statistics[f"top_tokens_{sign}"] or []
    logits = statistics.get(f"top_logits_{sign}") or [None] * len(texts)
    return tuple(ShownToken(*each) for each in zip(texts, logits, strict=True))


def _scores(connection: duckdb.DuckDBPyConnection, label_id: str) -> tuple[ShownScore, ...]:
    rows = connection.execute(
        """
        SELECT scorer, simulator, metric, split, value, reason, ci_low, ci_high, null_value,
            lift, lift_ci_low, lift_ci_high, lift_reason, n_windows, n_tokens
        FROM scores WHERE label_id = $1
        ORDER BY split = 'score' DESC, metric = 'correlation' DESC, scorer, metric, simulator
        """,
        [label_id],
    ).fetchall()
    return tuple(ShownScore(*row) for row in rows)


def _histogram_edges(connection: duckdb.DuckDBPyConnection) -> tuple[float, ...] | None:
    row = connection.execute("SELECT value FROM meta WHERE key = 'histogram_edges'").fetchone()
    if row is None:
        return None
    return tuple(float(edge) for edge in json.loads(row[0]))
