"""A search over a run's labels: its query made a vector where that is possible, and its answer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..store.errors import StoreError, UserMistake
from ..store.feature_list import FeatureQuery, FeatureRow, read_rows_at
from ..store.hit_families import group_into_families
from ..store.label_words import has_label_words
from ..store.search_hits import Found, Hit, require_filters, search_labels
from ..store.text_ranking import TextMatch

if TYPE_CHECKING:
    from ..store.database import Store
    from .query_vector import AskedVector


@dataclass(frozen=True, slots=True)
class FoundFeature:
    """A feature that was found, and how well it matches."""

    row: FeatureRow
    hit: Hit

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        row = {name: value for name, value in asdict(self.row).items() if name not in _NOT_SAID}
        ranks = {name: value for name, value in asdict(self.hit).items() if name != "place"}
        return {"id": str(self.row.feature_id), **row, **ranks}


# What lists say of a feature that is no matter of a search.
_NOT_SAID = ("disagreement", "n_labels", "n_failed", "failure", "n_same")


@dataclass(frozen=True, slots=True)
class SearchReport:
    """What a search found.

    Attributes:
        text: what was looked for.
        model: whose vectors meaning was compared by; None where text alone ranked.
        why_text_alone: why, as a sentence.
        match: what of the text was looked for.
        n_text: labels that match by text.
        n_chosen: labels in force that the filters let through.
        n_without_vector: of these, those that only text can find.
        families: features grouped where they are nearly the same, the best first.
        n_families: how many there are of those that were ranked.
    """

    text: str
    model: str | None
    why_text_alone: str | None
    match: TextMatch
    n_text: int
    n_chosen: int
    n_without_vector: int | None
    families: tuple[tuple[FoundFeature, ...], ...]
    n_families: int

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        content = {name: getattr(self, name) for name in self.__slots__ if name != "families"}
        families = [[each.as_dict() for each in family] for family in self.families]
        return {**content, "families": families}


def search_run(
    store: Store, text: str, filters: FeatureQuery, n: int, flat: bool, asked: AskedVector
) -> SearchReport:
    """Searches the labels in force of a run.

    Args:
        store: the run's, made by this version.
        text: what is looked for.
        filters: which features.
        n: families at most.
        flat: each feature is a family of its own.
        asked: the text as a vector, or why there is none.

    Raises:
        UserMistake: there is nothing to search, or no such SAE.
    """
    with store.cursor() as cursor:
        found = search_labels(cursor, text, filters, asked.vector)
        places = [hit.place for hit in found.hits]
        families: list[tuple[int, ...]] = [(place,) for place in places]
        if not flat:
            families = group_into_families(cursor, places)
        shown = [place for family in families[:n] for place in family]
        rows = read_rows_at(cursor, shown)
    return _report(text, found, families[:n], len(families), rows, asked)


def _report(
    text: str,
    found: Found,
    families: list[tuple[int, ...]],
    n_families: int,
    rows: dict[int, FeatureRow],
    asked: AskedVector,
) -> SearchReport:
    hits = {hit.place: hit for hit in found.hits}
    return SearchReport(
        text=text,
        model=None if asked.vector is None else asked.vector.model,
        why_text_alone=asked.why_none,
        match=found.match,
        n_text=found.n_text,
        n_chosen=found.n_chosen,
        n_without_vector=found.n_without_vector,
        families=tuple(
            tuple(FoundFeature(rows[place], hits[place]) for place in family) for family in families
        ),
        n_families=n_families,
    )


def require_choice(store: Store, text: str, filters: FeatureQuery, run: Path) -> None:
    """Makes sure that there is something to search, and something to search for.

    Raises:
        UserMistake: no label is in force, the filters name what the run has not, or the text is
            empty.
        StoreError: an older version made the database.
    """
    if not text.strip():
        raise UserMistake("There is nothing to search for.", found="an empty text")
    with store.cursor() as cursor:
        if store.is_older or not has_label_words(cursor):
            raise StoreError(
                "This database was made by an older version and cannot be brought up to date here.",
                where=str(run),
                mend="search it where the run is, or with the version that made it",
            )
        require_filters(cursor, filters)
