"""The prompts for features, rendered from what a run has kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import duckdb

from ..label.prompted import PromptedExplainer
from ..label.prompts import FeatureTexts, NoPrompt, RenderedPrompt
from ..store.contexts import BackgroundWindows, load_background, read_features, read_prefixes
from ..store.database import Store
from ..store.output_effects import OutputEffects, read_output_effects
from ..store.records import FeatureId

_UNKNOWN = OutputEffects((), ())


@dataclass(frozen=True, slots=True)
class PromptSource:
    """Renders prompts from the published database; threads may share it."""

    store: Store
    background: BackgroundWindows
    token_texts: Mapping[int, str]

    @classmethod
    def of(cls, store: Store) -> PromptSource:
        """What all prompts have in common is read once."""
        background = load_background(store.connection, "explain")
        return cls(store, background, store.token_texts())

    def render(
        self,
        connection: duckdb.DuckDBPyConnection,
        explainer: PromptedExplainer,
        sae_id: str,
        features: Sequence[int],
    ) -> Iterator[tuple[FeatureId, RenderedPrompt | NoPrompt]]:
        """The prompts for features of one SAE, which lie close together, in order.

        Args:
            connection: a cursor of the store.
            explainer: whose prompts.
            sae_id: of which SAE.
            features: rising; those between the first and the last are read with them.
        """
        wanted = frozenset(features)
        between = range(features[0], features[-1] + 1)
        prefixes = read_prefixes(connection, sae_id, between, "explain")
        effects = read_output_effects(connection, sae_id, between)
        for contexts in read_features(connection, sae_id, between, self.background):
            feature = contexts.feature_id.feature
            if feature in wanted:
                raised, lowered = effects.get(feature, _UNKNOWN)
                texts = FeatureTexts(
                    self.token_texts.__getitem__, prefixes.__getitem__, raised, lowered
                )
                yield contexts.feature_id, explainer.render(contexts, texts)
