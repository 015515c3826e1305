"""A feature's page on a terminal: label, scores, statistics, and contexts with their shading.

With colour a token is shaded by its activation; without, strong ones stand in «guillemets» and
weaker ones in ‹single› ones. Text of the corpus is shown by `visible_text` only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, groupby, pairwise, zip_longest

from rich.color import Color
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.style import Style
from rich.table import Table
from rich.text import Text

from ..store.byte_pieces import join_bytes
from ..store.feature_contexts import ShownContext
from ..store.feature_labels import FeatureLabels
from ..store.feature_page import FeaturePage, ShownScore
from ..store.near_features import ShownNeighbour
from .label_rows import facts_grid, label_rows
from .visible_text import visible

_BARS = "▁▂▃▄▅▆▇█"
_STRONG = 0.5
_PREFIX_TOKENS = 24
_NEIGHBOURS = 5
_QUARTER = "correlation_quarter"
_LEFT_OUT = (
    _QUARTER,
    "ev_r_squared",
    "ev_absolute_deviation_explained",
    "balanced_accuracy",
    "chance_corrected_",
    "probability",
)
# From a faint to a full activation, on light and dark grounds alike: first the letters take
# colour, then the ground, with black letters on it (WCAG contrast above 6 all the way).
_FAINT_LETTERS = ((0.15, "#a07800"), (0.35, "#c77700"))
_GROUND = ((0.35, (238, 214, 120)), (0.65, (255, 176, 64)), (1.0, (255, 122, 70)))


def render_feature(page: FeaturePage) -> RenderableType:
    """The page, for a rich console of any width and with or without colour."""
    return Group(*_blocks(page))


def sparkline(counts: Sequence[int]) -> str:
    """Counts as bars one line high; what is there at all is never invisible."""
    most = max(counts, default=0)
    if not most:
        return " " * len(counts)
    return "".join(
        _BARS[min(len(_BARS) - 1, count * len(_BARS) // most)] if count else " " for count in counts
    )


def figure(value: float | None, digits: int = 2) -> str:
    """A number as in a table; a dash for none, and never a negative zero."""
    if value is None:
        return "–"
    return f"{value:.{digits}f}".replace("-", "−") if round(value, digits) else f"{0:.{digits}f}"


def percentage(share: float) -> str:
    """A share with two significant digits, down to a millionth."""
    if share <= 0:
        return "0%"
    percent = 100 * share
    for digits in range(5):
        if percent >= 10 ** (1 - digits) or digits == 4:
            return f"{percent:.{digits}f}%"
    return f"{percent:.0e}%"


def interval(low: float | None, high: float | None) -> str:
    """An interval's two ends; empty if there is none."""
    return "" if low is None or high is None else f"{figure(low)} to {figure(high)}"


def _blocks(page: FeaturePage) -> Iterator[RenderableType]:
    yield Text(str(page.feature_id), style="bold cyan")
    yield Padding(_facts(page), (0, 0, 0, 2))
    if page.neighbours:
        yield Text()
        yield Padding(_neighbours_table(page.neighbours), (0, 0, 0, 2))
    if page.scores:
        yield Text()
        scores = Group(
            _scores_table(page.scores), *_quarters(page.scores), *_score_remarks(page.scores)
        )
        yield Padding(scores, (0, 0, 0, 2))
    yield Text()
    yield _contexts_heading(page)
    for context in page.contexts:
        yield _ContextBlock(context, page.max_activation or context.peak)


def _facts(page: FeaturePage) -> Table:
    facts = facts_grid()
    labels = FeatureLabels(page.label, page.other_labels, page.failed_labels)
    for name, shown in label_rows(labels):
        facts.add_row(name, shown)
    if page.n_active:
        of_tokens = f" ({page.n_active:,} of {page.n_tokens:,})" if page.n_tokens else ""
        facts.add_row("density", f"{percentage(page.density)} of tokens{of_tokens}")
        facts.add_row(
            "activation",
            f"peak {figure(page.max_activation)}, mean {figure(page.mean_activation)} where active",
        )
    else:
        facts.add_row("density", Text("0% of tokens: never active in this text"))
    if any(page.histogram):
        facts.add_row("histogram", _histogram(page))
    strongest = [
        chip(token.text).append(f" {figure(token.mean)} ×{token.count:,}", style="dim")
        for token in page.top_tokens
    ]
    raised, lowered = (
        [
            chip(token.text).append(
                "" if token.logit is None else f" {figure(token.logit)}", style="dim"
            )
            for token in tokens
        ]
        for tokens in (page.top_tokens_positive, page.top_tokens_negative)
    )
    for name, chips in (("strong at", strongest), ("raises", raised), ("lowers", lowered)):
        if chips:
            facts.add_row(name, Chips(chips))
    return facts


def _histogram(page: FeaturePage) -> Text:
    counts = list(page.histogram)
    last = max(place for place, count in enumerate(counts) if count)
    first = next(place for place, count in enumerate(counts) if count)
    bars = Text(sparkline(counts[first : last + 1]), style="cyan")
    edges = page.histogram_edges
    if edges is None or len(edges) < len(counts):
        return bars
    peak = page.max_activation or 0.0
    high = min(edges[last + 1], peak) if last + 1 < len(edges) else peak
    return Text.assemble((f"{figure(edges[first])} ", "dim"), bars, (f" {figure(high)}", "dim"))


class Chips:
    """Tokens with their figures; a line is broken between two, never within one."""

    def __init__(self, chips: Sequence[Text]) -> None:
        self.chips = chips

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        line = Text(overflow="fold")
        for chip in self.chips:
            if line and line.cell_len + 2 + chip.cell_len > options.max_width:
                yield line
                line = Text(overflow="fold")
            line = Text.assemble(line, "  ", chip) if line else chip
        yield line

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, options.max_width)


def chip(token: str) -> Text:
    """A token in quotes, because many begin with a space."""
    shown, n_spaces = visible(token), len(token)
    if not token.strip(" "):
        shown = f"␣×{n_spaces}" if n_spaces > 3 else "␣" * n_spaces
    return Text.assemble(("“", "dim"), shown, ("”", "dim"), overflow="fold")


def _neighbours_table(neighbours: Sequence[ShownNeighbour]) -> Table:
    """The nearest by either measure side by side: number, value, and as much label as there is."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False, expand=True)
    columns = []
    for kind, value, heading in (
        ("cosine", "cosine", "by direction"),
        ("cofiring", "phi", "by co-firing"),
    ):
        nearest = [each for each in neighbours if each.kind == kind][:_NEIGHBOURS]
        if nearest:
            table.add_column("near", justify="right", no_wrap=True, style="cyan")
            table.add_column(value, justify="right", no_wrap=True)
            if kind == "cofiring":
                table.add_column("tokens", justify="right", no_wrap=True)
            table.add_column(heading, ratio=1, no_wrap=True, overflow="ellipsis")
            columns.append([_neighbour_cells(each) for each in nearest])
    for rows in zip_longest(*columns):
        # The shorter side is filled with as many empty cells as it has.
        cells = [row or [""] * len(column[0]) for row, column in zip(rows, columns, strict=True)]
        table.add_row(*chain.from_iterable(cells))
    return table


def _neighbour_cells(neighbour: ShownNeighbour) -> list[str | Text]:
    label = Text(visible(neighbour.label or "–"), style="" if neighbour.label else "dim")
    together = [] if neighbour.n_together is None else [f"{neighbour.n_together:,}"]
    return [neighbour.name, figure(neighbour.value), *together, label]


def _scores_table(scores: Sequence[ShownScore]) -> Table:
    shown = _main(scores)
    has_splits = len({score.split for score in shown}) > 1
    has_judges = bool({score.simulator for score in shown} - {"token_lookup"})
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("score", overflow="fold")
    if has_splits:
        table.add_column("split", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("interval", no_wrap=True)
    for column in ("null", "lift", "windows"):
        table.add_column(column, justify="right", no_wrap=True)
    # Sorting keeps the order within a judge.
    order = list(dict.fromkeys(score.simulator for score in shown))
    by_judge = sorted(shown, key=lambda score: order.index(score.simulator))
    for simulator, same in groupby(by_judge, key=lambda score: score.simulator):
        if has_judges:
            table.add_row(Text(f"by {visible(simulator)}", style="dim"))
        for score in same:
            is_headline = score is shown[0] and score.value is not None
            table.add_row(
                _named(score),
                *([score.split] if has_splits else []),
                Text(figure(score.value), style="bold" if is_headline else ""),
                interval(score.ci_low, score.ci_high),
                figure(score.null_value),
                figure(score.lift),
                f"{score.n_windows:,}",
            )
    return table


def _named(score: ShownScore) -> str:
    """A metric with its scorer, but for the one that most scores are by."""
    return score.metric if score.scorer == "simulation" else f"{score.scorer} {score.metric}"


def _main(scores: Sequence[ShownScore]) -> list[ShownScore]:
    """Those with a row of their own; of the others there are too many for a terminal."""
    return [score for score in scores if not score.metric.startswith(_LEFT_OUT)]


def _quarters(scores: Sequence[ShownScore]) -> Iterator[Text]:
    """The correlation by strength, a line a simulator and split."""
    quarters = sorted(
        (score for score in scores if score.metric.startswith(_QUARTER)),
        key=lambda each: (each.split, each.simulator, each.metric),
    )
    for (split, simulator), same in groupby(quarters, lambda each: (each.split, each.simulator)):
        by = "" if simulator == "token_lookup" else f" by {visible(simulator)}"
        figures = "  ".join(figure(each.value) for each in same)
        yield Text(f"quarters of active windows, weakest first, on {split}{by}:  {figures}")


def _score_remarks(scores: Sequence[ShownScore]) -> Iterator[Text]:
    """Why figures are missing, a line a reason; below the table, where there is room to say it."""
    why: dict[tuple[bool, str], list[str]] = {}
    for score in _main(scores):
        if score.value is None or (score.lift is None and score.lift_reason):
            is_undefined = score.value is None
            reason = (score.reason or "no reason given") if is_undefined else score.lift_reason
            why.setdefault((is_undefined, reason or ""), []).append(
                f"{_named(score)} on {score.split}"
            )
    for (is_undefined, reason), scored in why.items():
        several = len(scored) > 1
        which = f"{scored[0]} and {len(scored) - 1} more" if several else scored[0]
        lacks = ("are" if several else "is") + " undefined"
        if not is_undefined:
            lacks = ("have" if several else "has") + " no lift"
        yield Text(visible(f"{which} {lacks}: {reason}"), style="dim")


def _contexts_heading(page: FeaturePage) -> Text:
    kind = {"top": "highest peaks", "sample": "drawn at random"}.get(page.kind, page.kind)
    if not page.n_contexts:
        return Text(f"No contexts kept of split {page.split}, kind {page.kind}.", style="dim")
    shown = f"  {kind}, split {page.split}, {len(page.contexts)} of {page.n_contexts}"
    return Text.assemble(("contexts", "bold"), (shown, "dim"))


class _ContextBlock:
    """One context: its peak in front, its text beside it, as wide as the console."""

    def __init__(self, context: ShownContext, feature_peak: float) -> None:
        self.context = context
        self.feature_peak = feature_peak

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        has_colour = not console.no_color and console.color_system is not None
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(justify="right", width=7, style="dim", no_wrap=True)
        grid.add_column(ratio=1, overflow="fold")
        grid.add_row(figure(self.context.peak), self._text(has_colour))
        yield grid

    def _text(self, has_colour: bool) -> Text:
        context = self.context
        text = Text(overflow="fold")
        prefix = context.prefix[-_PREFIX_TOKENS:]
        before, _ = join_bytes(prefix, [0.0] * len(prefix))
        tokens, activations = join_bytes(context.tokens, context.activations)
        if len(prefix) < len(context.prefix) or context.start > len(context.prefix):
            text.append("…", style="dim")
        text.append(visible("".join(before)), style="dim")
        if prefix:
            text.append("│", style="dim")
        peak = self.feature_peak
        strengths = [min(value / peak, 1.0) if peak > 0 else 0.0 for value in activations]
        if has_colour:
            for token, strength in zip(tokens, strengths, strict=True):
                text.append(visible(token), style=shade(strength))
        else:
            text.append(_marked(tokens, strengths))
        return text


def shade(strength: float) -> Style:
    """The style of a token whose activation is this share (0 to 1) of the feature's peak."""
    if strength <= 0:
        return Style.null()
    for below, letters in _FAINT_LETTERS:
        if strength < below:
            return Style(color=letters)
    for (start, low), (end, high) in pairwise(_GROUND):
        if strength <= end:
            part = (strength - start) / (end - start)
            ground = Color.from_rgb(*(a + (b - a) * part for a, b in zip(low, high, strict=True)))
            return Style(color="#000000", bgcolor=ground, bold=strength >= _STRONG)
    raise ValueError(f"a strength is a share, not {strength}")


def _marked(tokens: Sequence[str], strengths: Sequence[float]) -> str:
    """The text with marks around what is active; neighbours of one kind stand in one pair."""

    def marks(place: int) -> str:
        strength = strengths[place]
        return "«»" if strength >= _STRONG else "‹›" if strength > 0 else ""

    marked = []
    for pair, places in groupby(range(len(tokens)), key=marks):
        stretch = visible("".join(tokens[place] for place in places))
        # The space in front stays outside, as between words of a sentence.
        inside = stretch.lstrip(" ") or stretch
        space = stretch[: len(stretch) - len(inside)]
        marked.append(f"{space}{pair[0]}{inside}{pair[1]}" if pair else stretch)
    return "".join(marked)
