"""How far the scores of a run may be trusted, on a terminal: what they stand beside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ..store.collisions import CollisionRow
from ..store.gold import GoldStanding, ItemMean
from ..store.null_ladder import LadderRow
from ..store.second_opinions import OpinionRow
from ..store.status import RunStatus
from .plain_tables import plain_table
from .show_feature import figure, percentage
from .visible_text import visible

_LADDER = (
    "null: the token lookup on the same windows; shuffled: another feature's label; above: labels "
    "that beat 95% of those. A constant prediction has no correlation."
)
_OPINIONS = "  AUROC, 0.5 by chance; told apart, intervention: above chance, 0"


def trust_blocks(status: RunStatus) -> Iterator[RenderableType]:
    """What a run has of it, each after an empty line."""
    if status.ladder:
        yield from ("", _ladder_table(status.ladder))
        notes = (*_undefined(status.ladder), _LADDER, *_imported(status))
        yield Text("\n".join(notes), style="dim")
    if status.opinions:
        yield from ("", Text.assemble(("Second opinions", "bold"), (_OPINIONS, "dim")))
        yield _opinions_table(status.opinions)
    if status.gold:
        words = "  known features, under their own labels and under wrong ones"
        yield from ("", Text.assemble(("Gold items", "bold"), (words, "dim")))
        yield _gold_table(status.gold)
        yield from _drifts(status.gold)
    shared = [row for row in status.collisions if row.n_near_identical]
    if shared:
        words = "  labels that another feature of the SAE has as well"
        yield from ("", Text.assemble(("Collisions", "bold"), (words, "dim")))
        yield _collisions_table(shared)


def _ladder_table(ladder: Sequence[LadderRow]) -> Table:
    table = plain_table(
        "labels by", "judged by", "scored>", "median>", "null>", "shuffled>", "above>"
    )
    for row in ladder:
        shuffled = f"{figure(row.shuffled_median)} ({row.n_shuffled:,})" if row.n_shuffled else ""
        above = row.n_above_shuffled
        table.add_row(
            Text(visible(row.explainer)),
            Text(visible(row.simulator)),
            f"{row.n:,}",
            figure(row.median),
            figure(row.null_median),
            shuffled,
            "" if above is None else f"{above / row.n:.0%}",
        )
    return table


def _undefined(ladder: Sequence[LadderRow]) -> Iterator[str]:
    for row in ladder:
        if row.n_shuffled_undefined:
            n, of = row.n_shuffled_undefined, row.n_shuffled
            who = f"{visible(row.explainer)} by {visible(row.simulator)}"
            yield f"{who}: {n:,} of {of:,} shuffled scores are undefined"


def _imported(status: RunStatus) -> Iterator[str]:
    scored = {row.explainer for row in status.ladder}.intersection(status.imported)
    if scored:
        yield (
            f"Imported: {', '.join(map(visible, sorted(scored)))}. What text they were written "
            "from is not known: it may have been this."
        )


# By the scorer's name, what is shown and the metric that it is.
_SHOWN = (
    ("detection", "random", "auroc_random"),
    ("detection", "near misses", "auroc_near_miss"),
    ("fuzzing", "random", "auroc_random"),
    ("fuzzing", "near misses", "auroc_near_miss"),
    ("discrimination", "told apart", "chance_corrected"),
    ("intervention", "others", "promoted_tokens"),
    ("intervention", "told apart", "told_apart"),
)


def _opinions_table(opinions: Sequence[OpinionRow]) -> Table:
    table = plain_table("labels by", "asked", "against", "median>", "null>", "of>", "undefined>")
    for row in opinions:
        for scorer, against, metric in _SHOWN:
            if (row.scorer, row.metric) == (scorer, metric):
                table.add_row(
                    Text(visible(row.explainer)),
                    scorer,
                    against,
                    figure(row.median),
                    figure(row.null_median),
                    f"{row.n:,}",
                    f"{row.n_undefined:,}" if row.n_undefined else "",
                )
    return table


def _gold_table(gold: Sequence[GoldStanding]) -> Table:
    table = plain_table("judge", "true>", "wrong>", "undefined>", "silence>", "failed>", "runs>")
    for each in gold:
        table.add_row(
            Text(visible(each.simulator)),
            _mean(each.true),
            _mean(each.wrong),
            f"{each.true.n_undefined}, {each.wrong.n_undefined}",
            "–" if each.silent_mean is None else percentage(each.silent_mean),
            f"{each.n_failed:,}" if each.n_failed else "",
            f"{each.drift.n_runs + 1:,}",
        )
    return table


def _mean(mean: ItemMean) -> str:
    error = "" if mean.standard_error is None else f" ± {mean.standard_error:.2f}"
    return f"{figure(mean.mean)}{error}"


def _drifts(gold: Sequence[GoldStanding]) -> Iterator[Text]:
    for each in gold:
        if each.drift.is_beyond_chance:
            by = "" if each.drift.mean is None else f" by {each.drift.mean:+.2f}"
            words = f"  {each.simulator} is not the judge it was: {each.drift.reason}{by}"
            yield Text(words, style="yellow")


def _collisions_table(rows: Sequence[CollisionRow]) -> Table:
    table = plain_table("SAE", "labels by", "of>", "identical>", "nearly>", "for example")
    for row in rows:
        largest = row.examples[0]
        example = f"{visible(largest.texts[0])} ({largest.n_features:,})"
        table.add_row(
            Text(row.sae_id, style="cyan"),
            Text(visible(row.explainer)),
            f"{row.n_labels:,}",
            f"{row.identical_rate:.1%}",
            f"{row.near_identical_rate:.1%}",
            Text(example),
        )
    return table
