"""What is needed to try features on a model: where their SAEs lie, and how strong they get."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import UserMistake
from .records import FeatureId

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True, slots=True)
class CollectedSae:
    """An SAE, or neuron basis, whose features were collected.

    Attributes:
        source: as the configuration named it.
        content_hash: of its weights when it was collected.
    """

    sae_id: str
    site: str
    layer: int
    source: str | None
    content_hash: str


@dataclass(frozen=True, slots=True)
class TriedFeature:
    """A feature of an SAE that was collected.

    Attributes:
        peak: the feature's largest activation; None where it was never active.
        label: the text in force, if there is one.
    """

    feature_id: FeatureId
    sae: CollectedSae
    peak: float | None
    label: str | None


def read_tried_feature(
    connection: duckdb.DuckDBPyConnection, feature_id: FeatureId
) -> TriedFeature:
    """The feature, of a run that collected its SAE.

    Raises:
        UserMistake: it did not.
    """
    row = connection.execute(
        """
        SELECT s.site, s.layer, s.source, s.content_hash, c.max_activation, c.text
        FROM saes s
        LEFT JOIN current_features c ON c.sae_id = s.sae_id AND c.feature = $2
        WHERE s.sae_id = $1
        """,
        [feature_id.sae_id, feature_id.feature],
    ).fetchone()
    if row is None:
        raise UserMistake("Nothing has been collected for this feature.", found=str(feature_id))
    site, layer, source, content_hash, peak, label = row
    sae = CollectedSae(feature_id.sae_id, site, layer, source, content_hash or "")
    return TriedFeature(feature_id, sae, peak or None, label)


def read_collected_saes(connection: duckdb.DuckDBPyConnection) -> tuple[CollectedSae, ...]:
    """Those of a run, by layer."""
    rows = connection.execute(
        "SELECT sae_id, site, layer, source, coalesce(content_hash, '') FROM saes "
        "ORDER BY layer, site, sae_id"
    ).fetchall()
    return tuple(CollectedSae(*row) for row in rows)
