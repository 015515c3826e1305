"""The page of `scopenote match`: a feature among its counterparts, by layer."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..store.known_features import KnownFeature
from ..store.records import FeatureId
from ..store.tried_feature import CollectedSae
from .match_feature import ALIKE, Match
from .show_feature import figure
from .visible_text import visible

_DIFFERS = "≠"


def render_match(found: Match) -> RenderableType:
    """The page."""
    where = f"  in {visible(found.other_run)}" if found.other_run else ""
    blocks: list[RenderableType] = [
        Text.assemble((str(found.feature_id), "bold cyan"), (f"  counterparts{where}", "dim")),
        Padding(_table(found), (0, 0, 0, 2)),
        "",
        *(Padding(Text(words, style="dim"), (0, 0, 0, 2)) for words in _remarks(found)),
    ]
    return Group(*blocks)


def _table(found: Match) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False, expand=True)
    table.add_column("layer", justify="right", no_wrap=True)
    table.add_column("site", no_wrap=True)
    table.add_column("feature", no_wrap=True, style="cyan")
    for name in ("cosine", "phi", "score"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("label", ratio=1, no_wrap=True, overflow="ellipsis")
    rows = [_own_row(found)] if found.other_run is None else []
    for each in found.saes:
        cells = [
            (*_place(each.sae, it.feature_id), figure(it.cosine), figure(it.phi),
             *_judged(it.known, it.labels_differ))
            for it in each.counterparts
        ]  # fmt: skip
        nothing = (*_place(each.sae, None), "–", "–", "", Text("nothing near", style="dim"))
        rows.append((each.sae, cells or [nothing]))
    # The feature stands among its counterparts, where it is in the model.
    rows.sort(key=lambda row: (row[0].layer, row[0].site, row[0].sae_id))
    if found.other_run is not None:
        rows.insert(0, _own_row(found))
    for sae, cells in rows:
        for row in cells:
            is_own = sae is found.sae and row[3] == "itself"
            table.add_row(*row, style="bold" if is_own else "")
    return table


_Row = tuple[CollectedSae, list[tuple[str | Text, ...]]]


def _own_row(found: Match) -> _Row:
    place = _place(found.sae, found.feature_id)
    return found.sae, [(*place, "itself", "", *_judged(found.known, False))]


def _place(sae: CollectedSae, feature_id: FeatureId | None) -> tuple[str | Text, ...]:
    name = sae.sae_id if feature_id is None else str(feature_id)
    return str(sae.layer), sae.site, name.split("/", 1)[1]


def _judged(known: KnownFeature, differs: bool) -> tuple[str | Text, ...]:
    if known.label is None:
        return figure(known.score), Text("–", style="dim")
    mark = (f"{_DIFFERS} ", "yellow") if differs else ("", "")
    return figure(known.score), Text.assemble(mark, visible(known.label))


def _remarks(found: Match) -> Iterator[str]:
    if found.why_no_cofiring:
        yield f"phi: not known, {found.why_no_cofiring}"
    else:
        yield (
            f"phi: correlation of firing over {found.n_tokens:,} tokens of the background; the "
            f"feature fires at {found.n_active:,} of them"
        )
    reasons: dict[str, int] = {}
    for each in found.saes:
        if each.why_no_cosine:
            reasons[each.why_no_cosine] = reasons.get(each.why_no_cosine, 0) + 1
    for reason, n in reasons.items():
        yield f"cosine: not known for {n} of {len(found.saes)} SAEs: {reason}"
    if len(found.saes) > sum(reasons.values()):
        yield "cosine: of the directions in the residual stream"
    n_differ = sum(it.labels_differ for each in found.saes for it in each.counterparts)
    if n_differ:
        yield f"{_DIFFERS} another label although cosine or phi is {ALIKE} or more: {n_differ}"
