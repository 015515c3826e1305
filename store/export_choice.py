"""Which features and labels an export is of: chosen once, into tables that its queries join."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import UserMistake
from .records import LabelSource

if TYPE_CHECKING:
    import duckdb

_LISTED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportChoice:
    """What an export is of.

    Attributes:
        saes: ids of SAEs; none of them means all.
        source: labels of this source only.
        min_score: labels whose headline on `score` is at least this.
        all_labels: not only the label in force of each feature, but every one proposed, failed
            and withdrawn ones among them.

    A source or a least score leaves out the features without such a label.
    """

    saes: tuple[str, ...] = ()
    source: LabelSource | None = None
    min_score: float | None = None
    all_labels: bool = False

    @property
    def is_of_labelled(self) -> bool:
        """Whether features without such a label are left out."""
        return self.source is not None or self.min_score is not None

    def as_dict(self) -> dict[str, Any]:
        """For a manifest."""
        return {
            "saes": list(self.saes),
            "source": self.source,
            "min_score": self.min_score,
            "labels": "all" if self.all_labels else "in force",
        }


@dataclass(frozen=True, slots=True)
class Chosen:
    """How many rows of each table an export has."""

    features: int
    labels: int
    contexts: int
    scores: int

    def as_dict(self) -> dict[str, int]:
        """By the names of the tables."""
        return {name: getattr(self, name) for name in TABLES}


TABLES = ("labels", "features", "contexts", "scores")
"""The tables of an export."""


def choose(connection: duckdb.DuckDBPyConnection, choice: ExportChoice) -> Chosen:
    """Fills the temporary tables `chosen_labels` and `chosen_features`, by SAE and feature.

    `chosen_labels` has the headline of each label on `score`, by the rule of `current_labels`.

    Args:
        connection: a reader's, to a published database.
        choice: what is asked for.

    Raises:
        UserMistake: there is no such SAE in the run, or no such label.
    """
    saes = _known_saes(connection, choice.saes)
    wanted = {"saes": saes, "source": choice.source, "min_score": choice.min_score}
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE chosen_labels AS "
        f"{_EVERY_LABEL if choice.all_labels else _IN_FORCE} "
        "AND ($source IS NULL OR source = $source) "
        "AND ($min_score IS NULL OR score >= $min_score) "
        "ORDER BY sae_id, feature, label_id",
        wanted,
    )
    among = "SEMI JOIN chosen_labels USING (sae_id, feature)" if choice.is_of_labelled else ""
    connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE chosen_features AS
        SELECT sae_id, feature FROM (FROM features WHERE list_contains($saes, sae_id)) {among}
        ORDER BY sae_id, feature
        """,
        {"saes": saes},
    )
    chosen = _count(connection)
    if choice.is_of_labelled and not chosen.labels:
        raise _no_such_label(connection, choice)
    return chosen


@dataclass(frozen=True, slots=True)
class ChosenSae:
    """How much of an SAE was chosen."""

    sae_id: str
    n_features: int
    n_labels: int


def read_chosen_saes(connection: duckdb.DuckDBPyConnection) -> tuple[ChosenSae, ...]:
    """Those of which `choose` chose features."""
    rows = connection.execute(
        """
        SELECT sae_id, count(DISTINCT feature), count(label_id)
        FROM chosen_features LEFT JOIN chosen_labels USING (sae_id, feature)
        GROUP BY sae_id ORDER BY sae_id
        """
    ).fetchall()
    return tuple(ChosenSae(*row) for row in rows)


# `current_features` is made for this: the view takes a second at a million features.
_IN_FORCE = """
    SELECT label_id, sae_id, feature, source, true AS in_force, simulator, score, score_reason,
        ci_low, ci_high, null_value, lift, lift_ci_low, lift_ci_high, n_up, n_down
    FROM current_features WHERE list_contains($saes, sae_id) AND label_id IS NOT NULL
"""

_EVERY_LABEL = """
    SELECT * FROM (
        SELECT l.label_id, l.sae_id, l.feature, l.source, c.label_id IS NOT NULL AS in_force,
            h.simulator, h.value AS score, h.reason AS score_reason, h.ci_low, h.ci_high,
            h.null_value, h.lift, h.lift_ci_low, h.lift_ci_high,
            coalesce(v.n_up, 0) AS n_up, coalesce(v.n_down, 0) AS n_down
        FROM (FROM labels WHERE list_contains($saes, sae_id)) l
        LEFT JOIN (SELECT label_id FROM current_features) c USING (label_id)
        LEFT JOIN (
            FROM scores
            WHERE scorer = 'simulation' AND metric = 'correlation' AND split = 'score'
            QUALIFY row_number() OVER (PARTITION BY label_id ORDER BY simulator) = 1
        ) h USING (label_id)
        LEFT JOIN (
            SELECT label_id, count_if(vote > 0) AS n_up, count_if(vote < 0) AS n_down
            FROM votes GROUP BY label_id
        ) v USING (label_id)
    ) WHERE true
"""


def _known_saes(connection: duckdb.DuckDBPyConnection, saes: Sequence[str]) -> list[str]:
    rows = connection.execute("SELECT sae_id FROM saes ORDER BY sae_id").fetchall()
    known = [sae_id for (sae_id,) in rows]
    for sae_id in saes:
        if sae_id not in known:
            more = ", …" if len(known) > _LISTED else ""
            raise UserMistake(
                "The run has no such SAE.",
                where="--sae",
                found=sae_id,
                expected=(", ".join(known[:_LISTED]) + more) or "an SAE; the run has none yet",
            )
    return sorted(set(saes)) or known


def _count(connection: duckdb.DuckDBPyConnection) -> Chosen:
    (row,) = connection.execute(
        """
        SELECT (SELECT count(*) FROM chosen_features), (SELECT count(*) FROM chosen_labels),
            (SELECT count(*) FROM contexts SEMI JOIN chosen_features USING (sae_id, feature)),
            (SELECT count(*) FROM scores SEMI JOIN chosen_labels USING (label_id))
        """
    ).fetchall()
    return Chosen(*row)


def _no_such_label(connection: duckdb.DuckDBPyConnection, choice: ExportChoice) -> UserMistake:
    asked = [f"--source {choice.source}"] if choice.source else []
    if choice.min_score is not None:
        asked.append(f"--min-score {choice.min_score:g}")
    (row,) = connection.execute(
        "SELECT count(label_id), count(score), max(score) FROM current_features"
    ).fetchall()
    n, n_scored, highest = row
    found = f"{n:,} labels in force, {n_scored:,} of them with a score"
    if highest is not None:
        found += f", the highest {highest:.3f}"
    return UserMistake(
        "There is no such label to export.",
        where=" ".join(asked),
        found=found,
        expected="at least one",
        mend="ask for less, or leave the filter out",
    )
