"""What a page that can be mailed says of the text and of the runs that its labels come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .runs import read_last_config
from .splits import SPLITS

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True, slots=True)
class SplitTokens:
    """How much of the text an SAE has seen in a split, copies counted."""

    split: str
    n_tokens: int
    n_windows: int


@dataclass(frozen=True, slots=True)
class PageFacts:
    """The text that an SAE has seen, and the work on it.

    Attributes:
        corpus: the settings of that name of the last run that left its configuration.
        n_runs: invocations that worked on it.
        first_day, last_day: of them, in UTC, as ISO 8601.
        versions: of Scopenote.
    """

    corpus: dict[str, Any]
    n_tokens: int
    n_documents: int
    splits: tuple[SplitTokens, ...]
    n_runs: int
    first_day: str | None
    last_day: str | None
    versions: tuple[str, ...]


def read_page_facts(connection: duckdb.DuckDBPyConnection, sae_id: str) -> PageFacts:
    """What is known of the text of this SAE."""
    ((n_tokens, n_documents),) = connection.execute(
        "SELECT coalesce(sum(n_tokens), 0)::BIGINT, coalesce(sum(n_documents), 0)::BIGINT "
        "FROM chunks"
    ).fetchall()
    splits = connection.execute(
        "SELECT split::VARCHAR, max(n_tokens), max(n_windows) FROM feature_splits "
        "WHERE sae_id = ? GROUP BY split",
        [sae_id],
    ).fetchall()
    ((n_runs, first_day, last_day),) = connection.execute(
        """
        SELECT count(*), strftime(min(started_at) AT TIME ZONE 'UTC', '%Y-%m-%d'),
            strftime(max(coalesce(finished_at, started_at)) AT TIME ZONE 'UTC', '%Y-%m-%d')
        FROM runs
        """
    ).fetchall()
    versions = connection.execute(
        "SELECT DISTINCT version FROM runs WHERE version IS NOT NULL ORDER BY version"
    ).fetchall()
    return PageFacts(
        read_last_config(connection).get("corpus") or {},
        n_tokens,
        n_documents,
        tuple(SplitTokens(*row) for row in sorted(splits, key=lambda row: SPLITS.index(row[0]))),
        n_runs,
        first_day,
        last_day,
        tuple(version for (version,) in versions),
    )
