"""The page of `scopenote inspect`: a table a layer or SAE, then the logit lens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .inspect_text import ActiveFeature, InspectedLens, InspectedSae, Inspection, LensToken
from .show_feature import Chips, chip, figure, percentage
from .visible_text import visible

# Up to so many tokens there is room for several features of each.
_SHORT = 20
_OF_SHORT, _OF_LONG = 3, 1
_TOKEN_CELLS = 14
_LENS_TOKENS = 3
_SITES = {
    "res": "the residual stream after layer {}",
    "mlp": "what the MLP of layer {} adds",
    "att": "the attention heads of layer {}",
    "transcoder": "the MLP of layer {}, from its input to what it adds",
    "mlp_in": "the MLP of layer {}, from its input to what it adds",
    "embedding": "the embedding",
}


def default_top(n_tokens: int) -> int:
    """How many features of each token are shown where nobody says."""
    return _OF_SHORT if n_tokens <= _SHORT else _OF_LONG


def render_inspection(found: Inspection, top: int | None = None) -> RenderableType:
    """The page.

    Args:
        found: what was found.
        top: how many features of each token; by default as many as suit the prompt.
    """
    k = default_top(len(found.prompt.tokens)) if top is None else top
    blocks: list[RenderableType] = []
    for sae in found.saes:
        blocks += [*_sae_blocks(found, sae, k), ""]
    if found.lens is None:
        blocks += [_remark("No logit lens: the model keeps its unembedding in a head of its own.")]
    else:
        blocks += [*_lens_blocks(found, found.lens), ""]
    blocks += map(_remark, _remarks(found, k))
    return Group(*blocks)


def _sae_blocks(found: Inspection, sae: InspectedSae, k: int) -> Iterator[RenderableType]:
    where = _SITES.get(sae.sae.site, sae.sae.site).format(sae.sae.layer)
    yield Text.assemble((sae.sae.sae_id, "bold cyan"), (f"  {where}", "dim"))
    yield _remark(_unseen_in_text(sae))
    yield Padding(_features_table(found, sae, k), (0, 0, 0, 2))


def _unseen_in_text(sae: InspectedSae) -> str:
    if sae.unexplained is None:
        return f"unseen: not known, {sae.why_unknown or 'nothing varies'}"
    in_run = (
        "" if sae.run_unexplained is None else f", {percentage(sae.run_unexplained)} in the run"
    )
    return f"unseen: {percentage(sae.unexplained)} of the variance in this text{in_run}"


def _features_table(found: Inspection, sae: InspectedSae, k: int) -> Table:
    has_share, has_labels = sae.unexplained is not None, found.n_labels > 0
    table = Table(
        box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False, expand=has_labels
    )
    table.add_column("#", justify="right", style="dim", no_wrap=True)
    table.add_column("token", no_wrap=True, max_width=_TOKEN_CELLS, overflow="ellipsis")
    if has_share:
        table.add_column("unseen", justify="right", no_wrap=True)
    table.add_column("feature", justify="right", no_wrap=True, style="cyan")
    table.add_column("active", justify="right", no_wrap=True)
    table.add_column("of peak", justify="right", no_wrap=True)
    if has_labels:
        table.add_column("score", justify="right", no_wrap=True)
        table.add_column("label", ratio=1, no_wrap=True, overflow="ellipsis")
    width = len(table.columns)
    for place, token in enumerate(sae.tokens):
        share = "–" if token.unexplained is None else percentage(token.unexplained)
        head: list[str | Text] = [
            str(place + 1),
            chip(found.prompt.tokens[place]),
            *([share] if has_share else []),
        ]
        for each in token.features[:k]:
            cells = [*head, *_feature_cells(each)]
            table.add_row(*cells[:width])
            head = [""] * len(head)
        if not token.features:
            is_special = found.prompt.is_special[place]
            table.add_row(*head, Text("special" if is_special else "none", style="dim"))
    return table


def _feature_cells(active: ActiveFeature) -> list[str | Text]:
    share, known = active.share_of_peak, active.known
    return [
        active.name,
        figure(active.activation),
        "–" if share is None else f"{share:.0%}",
        figure(known.score),
        Text(visible(known.label)) if known.label else Text("–", style="dim"),
    ]


def _lens_blocks(found: Inspection, lens: InspectedLens) -> Iterator[RenderableType]:
    tokens = found.prompt.tokens
    yield Text.assemble(
        ("logit lens", "bold"),
        ("  what would come next if the model ended after a layer", "dim"),
    )
    after = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    after.add_column("#", justify="right", style="dim", no_wrap=True)
    after.add_column("after", no_wrap=True, max_width=_TOKEN_CELLS, overflow="ellipsis")
    after.add_column("comes next", no_wrap=True, max_width=_TOKEN_CELLS + 6, overflow="ellipsis")
    after.add_column("probability", justify="right", no_wrap=True)
    after.add_column("from layer", justify="right", no_wrap=True)
    for place, token in enumerate(tokens):
        best = lens.next_tokens(lens.n_layers - 1, place)[0]
        settled = str(lens.settled(place))
        after.add_row(str(place + 1), chip(token), chip(best.text), _probability(best), settled)
    yield Padding(after, (0, 0, 0, 2))
    yield ""
    last = len(tokens) - 1
    yield Text.assemble(("after ", "dim"), chip(tokens[last]), (", layer by layer", "dim"))
    layers = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    layers.add_column("layer", justify="right", style="dim", no_wrap=True)
    layers.add_column("comes next", ratio=1)
    for layer in range(lens.n_layers):
        layers.add_row(str(layer), _chips(lens.next_tokens(layer, last)[:_LENS_TOKENS]))
    yield Padding(layers, (0, 0, 0, 2))


def _chips(tokens: Sequence[LensToken]) -> Chips:
    return Chips([chip(each.text).append(f" {_probability(each)}", style="dim") for each in tokens])


def _probability(token: LensToken) -> str:
    return f"{token.probability:.3f}"


def _remarks(found: Inspection, k: int) -> Iterator[str]:
    most = max((len(token.features) for sae in found.saes for token in sae.tokens), default=0)
    if most > k:
        shown = "strongest" if k == 1 else f"{k} strongest"
        yield f"the {shown} of up to {most} features a token; --top shows more, --json all"
    if any(sae.unexplained is not None for sae in found.saes):
        yield (
            "unseen: the squared error of the SAE's reconstruction, of the squared distance from "
            "the mean over the run's text"
        )
    if found.lens is not None:
        yield "from layer: the first from which on the most probable token is the model's own"
    if not found.n_labels:
        yield "this run has no labels yet; `scopenote explain RUN` writes them"


def _remark(text: str) -> RenderableType:
    return Padding(Text(text, style="dim"), (0, 0, 0, 2))
