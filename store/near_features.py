"""Which features are near one, as its page shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .records import FeatureId
from .unit_names import unit_name

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True, slots=True)
class ShownNeighbour:
    """A feature of the same SAE that is near this one.

    Attributes:
        kind: `cosine` of the decoder rows, or `cofiring` by the phi coefficient.
        name: what people call it.
        n_together: tokens of the background in which both fire; None for cosine.
        label: the text of its label in force, if there is one.
    """

    kind: str
    rank: int
    feature: int
    name: str
    value: float
    n_together: int | None
    label: str | None


def read_neighbours(
    connection: duckdb.DuckDBPyConnection, feature_id: FeatureId
) -> tuple[ShownNeighbour, ...]:
    """The features near this one, cosine before co-firing, each by rank."""
    of_feature = [feature_id.sae_id, feature_id.feature]
    rows = read_rows(
        connection,
        "SELECT * FROM neighbours WHERE sae_id = $1 AND feature = $2 ORDER BY kind DESC, rank",
        of_feature,
    )
    labels = dict(
        connection.execute(
            "SELECT feature, text FROM current_features WHERE sae_id = $1 "
            "AND feature IN (SELECT unnest($2::INTEGER[]))",
            [feature_id.sae_id, [row["neighbour"] for row in rows]],
        ).fetchall()
    )
    return tuple(
        ShownNeighbour(
            kind=row["kind"],
            rank=row["rank"],
            feature=row["neighbour"],
            name=unit_name(feature_id.sae_id, row["neighbour"]),
            value=row["value"],
            n_together=row.get("n_together"),
            label=labels.get(row["neighbour"]),
        )
        for row in rows
    )


def read_rows(
    connection: duckdb.DuckDBPyConnection, query: str, parameters: list[Any]
) -> list[dict[str, Any]]:
    """Rows by the names of their columns, for tables that lack some in older databases."""
    answer = connection.execute(query, parameters)
    names = [column[0] for column in answer.description or ()]
    return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]
