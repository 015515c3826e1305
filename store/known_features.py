"""What is known of some features of an SAE: label, score, how often and how strongly they fire."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import UserMistake
from .tried_feature import CollectedSae, read_collected_saes
from .unit_names import is_neuron_basis

if TYPE_CHECKING:
    import duckdb
    import numpy as np
    from jaxtyping import Float64

_LISTED = 4


@dataclass(frozen=True, slots=True)
class KnownFeature:
    """A feature that was collected.

    Attributes:
        label: the text in force; None if there is none.
        score: that label's headline on `score`; None where it has none, `score_reason` why.
        peak: the largest activation; 0 where it was never active.
    """

    label: str | None
    score: float | None
    score_reason: str | None
    ci_low: float | None
    ci_high: float | None
    density: float
    peak: float


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """What was measured of an SAE's reconstruction over the run's text.

    Attributes:
        fvu: the fraction of variance unexplained.
        mean: of what it reconstructs; None where only an older version collected.
    """

    fvu: float | None
    mean: Float64[np.ndarray, " D"] | None


def read_known_features(
    connection: duckdb.DuckDBPyConnection, sae_id: str, features: Sequence[int]
) -> dict[int, KnownFeature]:
    """These features of an SAE by number."""
    rows = connection.execute(
        """
        SELECT feature, text, score, score_reason, ci_low, ci_high, density,
            coalesce(max_activation, 0)
        FROM current_features WHERE sae_id = $1 AND feature IN (SELECT unnest($2::INTEGER[]))
        """,
        [sae_id, list(features)],
    ).fetchall()
    return {feature: KnownFeature(*row) for feature, *row in rows}


def count_labels(connection: duckdb.DuckDBPyConnection) -> int:
    """How many features of the run have a label in force."""
    ((n,),) = connection.execute("SELECT count(label_id) FROM current_features").fetchall()
    return int(n)


def read_reconstructions(connection: duckdb.DuckDBPyConnection) -> dict[str, Reconstruction]:
    """How well each SAE of the run does, by its id; of neurons, which reconstruct nothing, none."""
    import numpy as np

    rows = connection.execute("SELECT sae_id, fvu, mean_vector FROM saes").fetchall()
    return {
        sae_id: Reconstruction(fvu, None if mean is None else np.array(mean, np.float64))
        for sae_id, fvu, mean in rows
        if not is_neuron_basis(sae_id)
    }


def find_saes(
    connection: duckdb.DuckDBPyConnection, written: Sequence[str]
) -> tuple[CollectedSae, ...]:
    """The SAEs that a person means by `model/source` or `source`; all where none is written.

    Raises:
        UserMistake: the run has no such SAE, or none at all.
    """
    known = read_collected_saes(connection)
    if not known:
        raise UserMistake("No features have been collected yet.", found="an empty database")
    for name in written:
        if not any(_is_meant(each, name) for each in known):
            more = ", …" if len(known) > _LISTED else ""
            raise UserMistake(
                "The run has no such SAE.",
                where="--sae",
                found=name,
                expected=", ".join(each.sae_id for each in known[:_LISTED]) + more,
            )
    return tuple(
        each for each in known if not written or any(_is_meant(each, name) for name in written)
    )


def _is_meant(sae: CollectedSae, written: str) -> bool:
    return bool(written) and f"/{sae.sae_id}".endswith(f"/{written.strip('/')}")
