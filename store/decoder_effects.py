"""What follows from an SAE's weights alone: output tokens and cosine neighbours, as parts.

A worker works out some features of one SAE and leaves them as a part; the coordinator absorbs
each part once. They stay when the tables of the corpus are built anew.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import duckdb

from .database import now
from .facts import REVISION, set_meta, transaction
from .parts import Part, list_parts
from .records import content_hash
from .unit_names import is_neuron_basis

EffectKind = Literal["logits", "cosine"]
# Features in one part: a few minutes of work on a GPU for the widest SAEs.
_FEATURES_PER_PART = 16_384
# To be raised when the same weights give other rows.
_VERSION = 1


@dataclass(frozen=True, slots=True)
class MissingEffects:
    """A part that is still to be worked out.

    Attributes:
        weights: the content hash of the SAE that the run was collected with.
    """

    kind: EffectKind
    sae_id: str
    weights: str
    features: range

    @property
    def part_id(self) -> str:
        """Its name, which follows from all that decides its content."""
        first, end = self.features.start, self.features.stop
        content = content_hash([self.kind, _VERSION, self.sae_id, self.weights, first, end])
        return f"{self.kind}-{content}"


def missing_effects(
    connection: duckdb.DuckDBPyConnection, kind: EffectKind
) -> list[MissingEffects]:
    """The parts that were never absorbed, by SAE and features."""
    absorbed = _absorbed_ids(connection)
    saes = connection.execute(
        "SELECT sae_id, content_hash, width FROM saes ORDER BY sae_id"
    ).fetchall()
    every = [
        MissingEffects(kind, sae_id, weights, range(at, min(at + _FEATURES_PER_PART, width)))
        for sae_id, weights, width in saes
        # Coordinates are at right angles to each other: none is near another.
        if not (kind == "cosine" and is_neuron_basis(sae_id))
        for at in range(0, width, _FEATURES_PER_PART)
    ]
    return [each for each in every if each.part_id not in absorbed]


def absorb_effects(connection: duckdb.DuckDBPyConnection, parts: Path) -> int:
    """Absorbs the finished parts, all in one transaction.

    Returns:
        How many were absorbed; they are then removed.
    """
    found = [part for part in list_parts(parts) if part.stage in _INSERTS]
    absorbed = _absorbed_ids(connection)
    new = [part for part in found if part.part_id not in absorbed]
    if new:
        with transaction(connection):
            for part in new:
                _absorb(connection, part)
    for part in found:
        shutil.rmtree(part.folder)
    return len(new)


def _absorbed_ids(connection: duckdb.DuckDBPyConnection) -> set[str]:
    return {row[0] for row in connection.execute("SELECT part_id FROM parts").fetchall()}


def _absorb(connection: duckdb.DuckDBPyConnection, part: Part) -> None:
    connection.execute(
        _INSERTS[part.stage].format(file=part.file(part.stage)), {"sae": part.manifest["sae_id"]}
    )
    set_meta(connection, REVISION, part.part_id)
    connection.execute("INSERT INTO parts VALUES (?, ?, ?)", [part.part_id, part.stage, now()])


# By stage, which is also the name of the part's table.
_INSERTS: dict[str, str] = {
    "cosine": """
        INSERT INTO neighbours
        SELECT $sae, feature, 'cosine', rank, neighbour, value, NULL FROM read_parquet('{file}')
        ORDER BY feature, rank
        """,
    # A row of the embedding that the tokenizer does not use has no text.
    "logits": """
        UPDATE features SET
            top_tokens_positive = e.texts_positive, top_logits_positive = e.logits_positive,
            top_tokens_negative = e.texts_negative, top_logits_negative = e.logits_negative
        FROM (
            WITH tokens AS (
                SELECT feature, true AS is_positive, unnest(token_ids_positive) AS token_id,
                       generate_subscripts(token_ids_positive, 1) AS rank
                FROM read_parquet('{file}')
                UNION ALL
                SELECT feature, false, unnest(token_ids_negative),
                       generate_subscripts(token_ids_negative, 1)
                FROM read_parquet('{file}')
            ),
            texts AS (
                SELECT feature, is_positive,
                       list(coalesce(text, '<' || token_id || '>') ORDER BY rank) AS texts
                FROM tokens LEFT JOIN pieces USING (token_id)
                GROUP BY feature, is_positive
            )
            SELECT p.*, raised.texts AS texts_positive, lowered.texts AS texts_negative
            FROM read_parquet('{file}') p
            JOIN texts raised ON raised.feature = p.feature AND raised.is_positive
            JOIN texts lowered ON lowered.feature = p.feature AND NOT lowered.is_positive
        ) e
        WHERE features.sae_id = $sae AND features.feature = e.feature
        """,
}
