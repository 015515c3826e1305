"""What makes vectors of texts: a model in this process, or one at an endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float32

    from ..label.sentence_model import SentenceModel


class Embedder(Protocol):
    """Makes vectors of texts."""

    @property
    def model(self) -> str:
        """How its vectors are marked."""

    def embed(self, texts: Sequence[str]) -> Float32[np.ndarray, "N D"]:
        """A vector of length 1 for each text.

        Raises:
            EndpointRefuses, RequestGivenUp, ModelError, StoreError: there are none.
        """


@dataclass(frozen=True)
class LocalEmbedder:
    """A sentence model in this process, loaded when it is first needed.

    Attributes:
        folder: or hub id; None for that of the extra `search`.
    """

    model: str
    folder: str | None
    device: str

    @cached_property
    def _loaded(self) -> SentenceModel:
        from ..label.sentence_model import load_sentence_model

        return load_sentence_model(self.folder, self.device)

    def embed(self, texts: Sequence[str]) -> Float32[np.ndarray, "N D"]:
        """A vector of length 1 for each text."""
        return self._loaded.encode(texts)
