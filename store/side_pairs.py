"""Two sides set beside each other, feature by feature, and why some features are no pairs.

Two figures are on the same windows where `contexts_hash` says so. Where it does not, `design` says
why (`count_other_windows`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import duckdb

from .database import draw_no_bar

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from .paired_scores import Figure


@dataclass(frozen=True, slots=True)
class Missing:
    """Features of which one side has a figure and the other has none, for one reason.

    Attributes:
        reason: why the other has none.
        mean: of the side that has one, over these features.
    """

    reason: str
    n: int
    mean: float


@dataclass(frozen=True, slots=True)
class SidePairs:
    """Features with figures by two sides.

    Attributes:
        table: a row each, in the order of features: `sae_id`, `feature`; of either side, ending in
            `_base` and `_other`, `label_id`, `value`, `ci_low`, `ci_high`, `n_candidates`; then
            `is_same`, whether they are on the same windows, and of two runs `says_same`, whether
            the labels do.
        missing_base: features that only the other has a figure for, by reason, most first.
        missing_other: the reverse.
        n_neither: features that one of them at least was tried on, and neither has a figure for.
    """

    table: pa.Table
    missing_base: tuple[Missing, ...]
    missing_other: tuple[Missing, ...]
    n_neither: int


_PAIRED = ("label_id", "value", "ci_low", "ci_high", "n_candidates")


def pair_sides(base: pa.Table, other: pa.Table) -> SidePairs:
    """Sets two sides beside each other.

    Args:
        base: as `read_side` or `read_side_in_force` gave it.
        other: likewise.
    """
    columns = ", ".join(f"b.{it} AS {it}_base, o.{it} AS {it}_other" for it in _PAIRED)
    if "text_key" in base.column_names:
        columns += ", b.text_key = o.text_key AS says_same"
    with _beside(base=base, other=other) as connection:
        table = connection.sql(
            f"""
            SELECT sae_id, feature, {columns},
                coalesce(b.contexts_hash = o.contexts_hash, false) AS is_same
            FROM base b JOIN other o USING (sae_id, feature)
            WHERE b.state = 'scored' AND o.state = 'scored' ORDER BY sae_id, feature
            """
        ).to_arrow_table()
        ((n_neither,),) = connection.execute(
            """
            SELECT count_if(coalesce(b.state, '') <> 'scored' AND coalesce(o.state, '') <> 'scored')
            FROM base b FULL JOIN other o USING (sae_id, feature)
            """
        ).fetchall()
        return SidePairs(
            table,
            missing_base=_missing(connection, "base", "other"),
            missing_other=_missing(connection, "other", "base"),
            n_neither=n_neither,
        )


def _missing(connection: duckdb.DuckDBPyConnection, lacks: str, has: str) -> tuple[Missing, ...]:
    rows = connection.execute(
        f"""
        SELECT CASE
                WHEN l.state IS NULL THEN 'no label was asked for'
                WHEN l.state = 'unscored' THEN 'not scored'
                WHEN l.state = 'failed' THEN 'no label: ' || coalesce(l.reason, 'no reason given')
                ELSE 'undefined: ' || coalesce(l.reason, 'no reason given')
            END AS why, count(*), avg(h.value)
        FROM {has} h LEFT JOIN {lacks} l USING (sae_id, feature)
        WHERE h.state = 'scored' AND l.state IS DISTINCT FROM 'scored'
        GROUP BY why ORDER BY count(*) DESC, why
        """
    ).fetchall()
    return tuple(Missing(*row) for row in rows)


def read_window_facts(
    connection: duckdb.DuckDBPyConnection, figure: Figure, label_ids: pa.Array
) -> pa.Table:
    """How the windows of these labels' figures came to be those.

    Args:
        connection: a cursor of the store, which is left with a view `wanted_labels`.
        figure: whose windows.
        label_ids: of which labels.
    """
    import pyarrow as pa

    connection.register("wanted_labels", pa.table({"label_id": label_ids}))
    return connection.sql(
        """
        SELECT label_id, stale_since IS NOT NULL AS is_stale,
            CAST(design ->> '$.population_active_windows' AS DOUBLE) AS n_active,
            CAST(design ->> '$.population_silent_windows' AS DOUBLE) AS n_silent,
            design ->> '$.screen' AS screen, CAST(design ->> '$.look' AS INTEGER) AS look,
            coalesce(CAST(design ->> '$.n_failed_windows' AS INTEGER), 0) AS n_failed
        FROM scores SEMI JOIN wanted_labels USING (label_id)
        WHERE scorer = $scorer AND metric = $metric AND simulator = $simulator AND split = $split
        """,
        params=figure.as_dict(),
    ).to_arrow_table()


def count_other_windows(pairs: SidePairs, base: pa.Table, other: pa.Table) -> dict[str, int]:
    """Why figures of a feature are on different windows: how many pairs, by reason, most first.

    Args:
        pairs: of two sides.
        base: the facts about its figures (`read_window_facts`).
        other: likewise.
    """
    with _beside(pairs=pairs.table, base=base, other=other) as connection:
        rows = connection.execute(
            """
            SELECT CASE
                    WHEN b.is_stale OR o.is_stale
                        THEN 'newer text has overtaken one of the scores'
                    WHEN b.n_active <> o.n_active OR b.n_silent <> o.n_silent
                        THEN 'drawn from other text'
                    WHEN b.n_failed > 0 OR o.n_failed > 0
                        THEN 'the simulation of some windows failed'
                    WHEN b.look IS DISTINCT FROM o.look
                        THEN 'one was known well enough after fewer windows'
                    WHEN b.screen IS NOT NULL OR o.screen IS NOT NULL
                        THEN 'a screen chose silent windows by the label'
                    WHEN p.n_candidates_base > 1 OR p.n_candidates_other > 1
                        THEN 'candidates were rated on different windows'
                    ELSE 'other settings, or other text'
                END AS why, count(*)
            FROM pairs p
            LEFT JOIN base b ON b.label_id = p.label_id_base
            LEFT JOIN other o ON o.label_id = p.label_id_other
            WHERE NOT p.is_same GROUP BY why ORDER BY count(*) DESC, why
            """
        ).fetchall()
    return dict(rows)


def read_texts(
    connection: duckdb.DuckDBPyConnection, label_ids: Sequence[str]
) -> dict[str, str | None]:
    """What these labels say, by id."""
    rows = connection.execute(
        "SELECT label_id, text FROM labels WHERE label_id IN (SELECT unnest(?))", [list(label_ids)]
    ).fetchall()
    return dict(rows)


@dataclass(frozen=True, slots=True)
class TextChanges:
    """What became of the labels in force.

    Attributes:
        n_same, n_other: features of which they say the same, case and white space apart, and not.
        n_new, n_gone: features that only the other has a label for, and only the base.
    """

    n_same: int
    n_other: int
    n_new: int
    n_gone: int


def count_texts(base: pa.Table, other: pa.Table) -> TextChanges:
    """What became of the labels in force of one run in another.

    Args:
        base: as `read_side_in_force` gave it.
        other: likewise.
    """
    with _beside(base=base, other=other) as connection:
        rows = connection.execute(
            """
            SELECT count_if(b.text_key = o.text_key), count_if(b.text_key <> o.text_key),
                count_if(b.text_key IS NULL AND o.text_key IS NOT NULL),
                count_if(b.text_key IS NOT NULL AND o.text_key IS NULL)
            FROM base b FULL JOIN other o USING (sae_id, feature)
            """
        ).fetchall()
    return TextChanges(*rows[0])


@contextmanager
def _beside(**tables: pa.Table) -> Iterator[duckdb.DuckDBPyConnection]:
    """Arrow tables as tables of a database in memory."""
    with duckdb.connect() as connection:
        draw_no_bar(connection)
        for name, table in tables.items():
            connection.register(name, table)
        yield connection
