"""Features that were found, grouped where they are nearly the same: meanings instead of rows.

Two belong together if their decoder rows in one SAE point the same way, or if their labels say
the same, in any SAE; and whatever belongs to one of them does too. Only what was found together is
grouped, so a chain of neighbours cannot lead away from what was asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

# Cosine of decoder rows from which latents count as one direction: the threshold of Leask et al.
# (Sparse Autoencoders Do Not Find Canonical Units of Analysis, ICLR 2025, section 4), who found
# that from there on latents of two SAEs do each other's work. Of the 10 nearest neighbours of the
# toy's features 0.15% are as near.
SAME_DIRECTION = 0.7


def group_into_families(
    connection: duckdb.DuckDBPyConnection, places: Sequence[int]
) -> list[tuple[int, ...]]:
    """Families of features, in the order of their first; members in the order given.

    Args:
        connection: to a published database.
        places: of the features in `current_features`.
    """
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE found AS SELECT place, sae_id, feature, text_key "
        "FROM current_features WHERE place IN (SELECT unnest($places))",
        {"places": list(places)},
    )
    pairs = connection.execute(
        """
        SELECT a.place, b.place FROM (
            SELECT sae_id, feature, neighbour FROM neighbours
            WHERE kind = 'cosine' AND value >= $least
        ) n
        JOIN found a ON a.sae_id = n.sae_id AND a.feature = n.feature
        JOIN found b ON b.sae_id = n.sae_id AND b.feature = n.neighbour
        UNION ALL
        SELECT min(place) OVER (PARTITION BY text_key), place FROM found
        """,
        {"least": SAME_DIRECTION},
    ).fetchall()
    return connected(places, pairs)


def connected(places: Sequence[int], pairs: Sequence[tuple[int, int]]) -> list[tuple[int, ...]]:
    """The connected components of a graph, each in the order given, by their first members."""
    parent = {place: place for place in places}

    def root(place: int) -> int:
        while parent[place] != place:
            # Halving the way keeps it short.
            parent[place] = place = parent[parent[place]]
        return place

    for one, other in pairs:
        parent[root(one)] = root(other)
    families: dict[int, list[int]] = {}
    for place in places:
        families.setdefault(root(place), []).append(place)
    return [tuple(members) for members in families.values()]
