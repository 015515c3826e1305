"""The page of a feature: label and rivals, contexts, statistics, neighbours, where all is from.

Contexts of `score` are what labels are judged by, so the page opens with those of `explain`. Who
opens the others is remembered, for this feature, and what they write afterwards says so.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from ...store.errors import UserMistake
from ...store.feature_contexts import ShownContext, read_contexts
from ...store.feature_history import (
    LabelRecord,
    labels_of,
    read_label_records,
    read_left_in_force,
    read_votes,
)
from ...store.feature_list import FeatureRow, read_feature_row
from ...store.feature_page import find_feature, read_statistics
from ...store.label_provenance import Provenance, read_provenance
from ...store.label_scores import read_label_scores
from ...store.near_features import read_neighbours
from ...store.records import FeatureId
from ...store.shown_simulations import ShownSimulation, read_shown_simulations
from ...store.unit_names import unit_number
from .activation_histogram import make_histogram
from .label_blocks import LabelBlocks, make_blocks
from .page_templates import feature_path, with_query
from .pages import Connection, render, site_of
from .token_shades import shade_contexts
from .who_writes import default_author, has_seen_score, remember_score_was_seen

if TYPE_CHECKING:
    import duckdb

router = APIRouter()
_LONGEST_SHOWN = 200


class ViewQuery(BaseModel):
    """What of a feature its address asks for.

    Attributes:
        under, by: the label and the simulator whose predictions are laid over the contexts.
        made: the label whose prompt and reply are shown.
    """

    model_config = ConfigDict(extra="forbid")

    split: Literal["explain", "select", "score"] = "explain"
    kind: Literal["top", "sample"] = "top"
    under: Annotated[str, Field(max_length=100)] = ""
    by: Annotated[str, Field(max_length=200)] = ""
    made: Annotated[str, Field(max_length=100)] = ""

    def changed(self, **changes: str) -> dict[str, str]:
        """As parameters of an address, some of them others."""
        return {**self.model_dump(exclude_defaults=True), **changes}


@dataclass(frozen=True, slots=True)
class Mistake:
    """What was wrong with a form, and what had been typed into it."""

    error: UserMistake
    typed: Mapping[str, str]


@router.get("/{model}/{source}/{index}")
def feature(
    request: Request,
    connection: Connection,
    model: str,
    source: str,
    index: str,
    asked: Annotated[ViewQuery, Query()],
) -> Response:
    """The page of a feature."""
    row = find_row(connection, model, source, index)
    path = feature_path(row.feature_id)
    if row.name != index:  # such as 007: cookies are for one address
        return RedirectResponse(with_query(path, asked.changed()), status_code=307)
    return show_feature(request, connection, row, asked)


def find_row(
    connection: duckdb.DuckDBPyConnection, model: str, source: str, index: str
) -> FeatureRow:
    """The feature of an address.

    Raises:
        UserMistake: there is none; with the ids there are.
    """
    sae_id = f"{model}/{source}"
    number = unit_number(sae_id, index) if len(index) <= len("4294967295") else None
    if number is not None and number < 2**31:
        row = read_feature_row(connection, FeatureId(sae_id, number))
        if row is not None:
            return row
    # It knows why there is none.
    found = find_feature(connection, f"{sae_id}/{index}"[:_LONGEST_SHOWN])
    row = read_feature_row(connection, found)
    if row is None:
        raise UserMistake("Nothing has been collected for this feature.", found=str(found))
    return row


def show_feature(
    request: Request,
    connection: duckdb.DuckDBPyConnection,
    row: FeatureRow,
    asked: ViewQuery,
    mistake: Mistake | None = None,
) -> Response:
    """The page, also as the answer to a form that could not be taken."""
    feature_id = row.feature_id
    author = default_author(request)
    records = read_label_records(connection, feature_id)
    done = [each.label_id for each in records if each.status == "done"]
    votes = read_votes(connection, done, author)
    blocks = make_blocks(
        labels_of(records, row.label_id, votes),
        records,
        read_label_scores(connection, done),
        votes,
        author,
    )
    statistics = read_statistics(connection, feature_id)
    kept = read_contexts(connection, feature_id, asked.split, asked.kind)
    simulations = _simulations(connection, asked, done, kept.contexts)
    simulation = _chosen(simulations, asked, row)
    has_seen = has_seen_score(request) or asked.split == "score"
    response = render(
        request,
        "feature.html",
        status=200 if mistake is None else 422,
        title=f"{row.text or 'no label'} · {feature_id}",
        row=row,
        blocks=blocks,
        statistics=statistics,
        histogram=make_histogram(
            statistics.histogram, statistics.histogram_edges, statistics.max_activation
        ),
        neighbours=read_neighbours(connection, feature_id),
        asked=asked,
        own=feature_path(feature_id),
        counts=kept.counts,
        intervals=shade_contexts(kept.contexts, statistics.max_activation or 0.0, simulation),
        simulations=simulations,
        simulation=simulation,
        texts={record.label_id: record.text for record in records},
        records=records,
        left_in_force=read_left_in_force(connection, feature_id),
        provenance=_provenance(connection, records, blocks, asked),
        run_word=shlex.quote(str(site_of(request).run)),
        author=author,
        has_seen_score=has_seen,
        mistake=mistake,
        **_next_to(feature_id, statistics.width),
    )
    if asked.split == "score":
        remember_score_was_seen(response, feature_path(feature_id))
    return response


def _simulations(
    connection: duckdb.DuckDBPyConnection,
    asked: ViewQuery,
    labels: list[str],
    contexts: tuple[ShownContext, ...],
) -> tuple[ShownSimulation, ...]:
    # Nothing is ever simulated on what labels are written from.
    if asked.split == "explain":
        return ()
    windows = [context.window_id for context in contexts]
    return read_shown_simulations(connection, labels, windows)


def _chosen(
    simulations: tuple[ShownSimulation, ...], asked: ViewQuery, row: FeatureRow
) -> ShownSimulation | None:
    """What was asked for, else what is nearest to the score that is reported."""

    def fit(each: ShownSimulation) -> tuple[bool, ...]:
        return (
            each.label_id == asked.under,
            each.simulator == asked.by,
            each.label_id == row.label_id,
            each.simulator == row.simulator,
            each.simulator != "token_lookup",
        )

    return max(simulations, key=fit, default=None)


def _provenance(
    connection: duckdb.DuckDBPyConnection,
    records: tuple[LabelRecord, ...],
    blocks: LabelBlocks,
    asked: ViewQuery,
) -> Provenance | None:
    """Of the label that was asked for, else of the first that a model wrote: in force, rivals."""
    by_model = {each.label_id: each for each in records if each.request_hash is not None}
    shown = [blocks.in_force] if blocks.in_force else []
    order = [asked.made, *(block.label.label_id for block in [*shown, *blocks.others]), *by_model]
    chosen = next((by_model[label_id] for label_id in order if label_id in by_model), None)
    return None if chosen is None else read_provenance(connection, chosen)


def _next_to(feature_id: FeatureId, width: int | None) -> dict[str, Any]:
    """Where the features before and after it in the SAE are; None where it is the last."""
    n = feature_id.feature
    return {
        "previous": feature_path(FeatureId(feature_id.sae_id, n - 1)) if n > 0 else None,
        "next": feature_path(FeatureId(feature_id.sae_id, n + 1)) if n + 1 < (width or 0) else None,
    }
