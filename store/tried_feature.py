"""What is needed of a feature to try it on a model: where its SAE lies, and how strong it gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import UserMistake
from .records import FeatureId

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True, slots=True)
class TriedFeature:
    """A feature of an SAE that was collected.

    Attributes:
        source: the SAE as the configuration named it.
        content_hash: of the SAE's weights when it was collected.
        peak: the feature's largest activation; None where it was never active.
        label: the text in force, if there is one.
    """

    feature_id: FeatureId
    source: str | None
    content_hash: str
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
        SELECT s.source, s.content_hash, c.max_activation, c.text
        FROM saes s
        LEFT JOIN current_features c ON c.sae_id = s.sae_id AND c.feature = $2
        WHERE s.sae_id = $1
        """,
        [feature_id.sae_id, feature_id.feature],
    ).fetchone()
    if row is None:
        raise UserMistake("Nothing has been collected for this feature.", found=str(feature_id))
    source, content_hash, peak, label = row
    return TriedFeature(feature_id, source, content_hash or "", peak or None, label)
