"""What stands behind a side of a comparison: how much was tried, what failed, what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from .paired_scores import SideKey, key_of

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True, slots=True)
class SideFacts:
    """A side as it was made.

    Attributes:
        name: None for labels to which what is compared does not apply.
        n_features: that it was tried on.
        n_labels: that came of it; with several candidates more than features.
        n_asked: of these, labels that a model was asked for.
        failures: features without any label, by reason.
        explainers, models, prompt_versions: that its labels are by.
        usd: of all calls for its labels, failed ones too; None where no price is known.
        n_unpriced: calls of unknown price, which `usd` leaves out.
    """

    name: str | None
    n_features: int
    n_labels: int
    n_asked: int
    failures: Mapping[str, int]
    explainers: tuple[str, ...]
    models: tuple[str, ...]
    prompt_versions: tuple[str, ...]
    usd: Decimal | None
    n_unpriced: int

    @classmethod
    def of_nothing(cls) -> SideFacts:
        """Of a run without labels."""
        return cls(None, 0, 0, 0, {}, (), (), (), None, 0)

    @property
    def n_failed(self) -> int:
        """Features that it was tried on without a label."""
        return sum(self.failures.values())

    @property
    def usd_per_label(self) -> Decimal | None:
        """What a label by a model came to; None where some price is unknown or none was asked."""
        if self.usd is None or self.n_unpriced or not self.n_asked:
            return None
        return self.usd / self.n_asked


def read_side_facts(
    connection: duckdb.DuckDBPyConnection, by: SideKey | None
) -> dict[str | None, SideFacts]:
    """What stands behind each side; behind all labels together, as None, where `by` is None."""
    rows = connection.execute(
        f"""
        WITH mine AS (
            SELECT {key_of(by)} AS side, * FROM labels WHERE status <> 'withdrawn'
        ),
        by_feature AS (
            SELECT side, sae_id, feature, count_if(status = 'done') AS n_labels,
                count_if(status = 'done' AND request_hash IS NOT NULL) AS n_asked,
                min(coalesce(reason, 'no reason given')) FILTER (status = 'failed') AS reason
            FROM mine GROUP BY side, sae_id, feature
        ),
        failures AS (
            SELECT side, map(list(reason ORDER BY n DESC, reason), list(n ORDER BY n DESC, reason))
                AS failures
            FROM (
                SELECT side, reason, count(*) AS n FROM by_feature WHERE n_labels = 0 GROUP BY ALL
            ) GROUP BY side
        ),
        counted AS (
            SELECT side, count(*) AS n_features, sum(n_labels)::BIGINT AS n_labels,
                sum(n_asked)::BIGINT AS n_asked
            FROM by_feature GROUP BY side
        ),
        named AS (
            SELECT side, {_names("explainer")}, {_names("model")}, {_names("prompt_version")}
            FROM mine GROUP BY side
        ),
        paid AS (
            SELECT side, sum(usd) AS usd, count_if(usd IS NULL) AS n_unpriced
            FROM (SELECT DISTINCT side, request_hash FROM mine)
            JOIN (
                SELECT request_hash, usd FROM calls
                UNION ALL SELECT request_hash, usd FROM repeated_calls
            ) USING (request_hash) GROUP BY side
        )
        SELECT c.side, n_features, n_labels, n_asked, failures,
            explainers, models, prompt_versions, usd, coalesce(n_unpriced, 0)
        FROM counted c
        JOIN named n ON n.side IS NOT DISTINCT FROM c.side
        LEFT JOIN failures f ON f.side IS NOT DISTINCT FROM c.side
        LEFT JOIN paid p ON p.side IS NOT DISTINCT FROM c.side
        """
    ).fetchall()
    return {
        name: SideFacts(
            name,
            n,
            n_labels,
            n_asked,
            failures or {},
            tuple(names[0]),
            tuple(names[1]),
            tuple(names[2]),
            usd,
            n_unpriced,
        )
        for name, n, n_labels, n_asked, failures, *names, usd, n_unpriced in rows
    }


def _names(column: str) -> str:
    return (
        f"coalesce(list(DISTINCT {column} ORDER BY {column}) "
        f"FILTER ({column} IS NOT NULL), []) AS {column}s"
    )


@dataclass(frozen=True, slots=True)
class SharedSaes:
    """The SAEs of two runs.

    Attributes:
        both: that both have, with the same tensors.
        different: of the same name, with other tensors: their features have nothing in common.
        only_one: that one of them lacks.
    """

    both: tuple[str, ...]
    different: tuple[str, ...]
    only_one: tuple[str, ...]


def share_saes(base: duckdb.DuckDBPyConnection, other: duckdb.DuckDBPyConnection) -> SharedSaes:
    """Which SAEs two runs have in common."""
    here, there = (
        dict(each.execute("SELECT sae_id, content_hash FROM saes").fetchall())
        for each in (base, other)
    )
    named = sorted(here.keys() & there.keys())
    return SharedSaes(
        both=tuple(it for it in named if here[it] == there[it]),
        different=tuple(it for it in named if here[it] != there[it]),
        only_one=tuple(sorted(here.keys() ^ there.keys())),
    )
