"""How a search compares meanings: by which model labels and queries become vectors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from .config_section import Positive, Text
from .endpoint_settings import EndpointSection

if TYPE_CHECKING:
    from ..label.embedding_client import EmbeddingClient
    from .embedders import Embedder


class SearchSection(EndpointSection):
    """The model of embeddings that `scopenote search` compares meanings by."""

    model: Text | None = Field(
        default=None,
        description='its name at the endpoint, such as "text-embedding-3-small"; by default the '
        "sentence model of the extra `search`, where that is installed",
    )
    concurrency: Positive = Field(default=4, description="calls at once")

    def embedder(self, journal: Path) -> Embedder | None:
        """What makes vectors; None where nothing is named and the extra is not installed.

        Args:
            journal: the folder in which calls to an endpoint are recorded.
        """
        from ..label.sentence_model import local_model_name, packaged_folder
        from .embedders import EndpointEmbedder, LocalEmbedder

        if self.model is not None and not self.local:
            return EndpointEmbedder(self, journal)
        if self.model is None and packaged_folder() is None:
            return None
        return LocalEmbedder(local_model_name(self.model), self.model, self.device)

    def embedding_client(self) -> EmbeddingClient:
        """The endpoint's client, with the environment's key."""
        from ..label.embedding_client import EmbeddingClient
        from ..label.endpoint_client import Patience

        patience = Patience(attempt_seconds=self.timeout_seconds)
        return EmbeddingClient(self.base_url, self._limits(1), patience)
