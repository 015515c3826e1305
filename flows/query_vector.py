"""The query of a search as a vector, by the model that made the vectors of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..store.errors import ConfigurationError, ModelError, ScopenoteError, StoreError
from ..store.label_vectors import QueryVector, VectorCount, count_vectors
from .search_settings import SearchSection

if TYPE_CHECKING:
    from ..store.database import Store
    from ..store.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class AskedVector:
    """A query's vector, or why there is none."""

    vector: QueryVector | None = None
    why_none: str | None = None


TEXT_ONLY = AskedVector(why_none="as `--text-only` asks")


def query_vector(
    store: Store, folder: RunFolder, settings: SearchSection, text: str
) -> AskedVector:
    """A query as a vector, where labels have vectors of the model and it can be asked.

    Args:
        store: the run's.
        folder: the run's, where a call to an endpoint is recorded.
        settings: which model.
        text: the query.
    """
    embedder = settings.embedder(folder.journal)
    with store.cursor() as cursor:
        there = count_vectors(cursor)
    if embedder is None:
        return AskedVector(why_none=_no_model(there))
    model = embedder.model
    mine = next((each for each in there if each.model == model), None)
    if mine is None:
        return AskedVector(why_none=_no_vectors(model, there))
    try:
        (values,) = embedder.embed([text])
    except (ModelError, StoreError, ConfigurationError) as error:
        values = error
    if isinstance(values, ScopenoteError):
        return AskedVector(why_none=f"{model} gave no vector of the query: {_in_short(values)}")
    if len(values) != mine.dimensions:
        return AskedVector(
            why_none=f"{model} made {len(values):,} numbers of the query, and {mine.dimensions:,} "
            "of each label"
        )
    return AskedVector(QueryVector(model, values.tolist()))


def _no_model(there: Sequence[VectorCount]) -> str:
    if there:
        return f"labels have vectors by {there[0].model}, which is not at hand"
    return "there is no model of embeddings: the extra `search` brings one, `[search]` may name one"


def _no_vectors(model: str, there: Sequence[VectorCount]) -> str:
    if there:
        return f"labels have vectors by {there[0].model}, and none by {model}"
    return "labels have no vectors yet: `--embed` makes them"


def _in_short(error: ScopenoteError) -> str:
    return f"{error.what} ({error.found})" if error.found else error.what
