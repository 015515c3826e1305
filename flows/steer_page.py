"""The page of `scopenote steer`: what was written, next tokens, what the SAE reads back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..store.byte_pieces import join_bytes
from .plain_tables import plain_table
from .show_feature import figure, percentage
from .steer_run import SteeredBy, SteeredText, Steering
from .visible_text import NEWLINE, visible

if TYPE_CHECKING:
    from ..extract.steering_trial import PromptReading

# From so many columns on two texts stand side by side.
_WIDE = 100
_N_NEXT = 3


def render_steering(found: Steering) -> RenderableType:
    """The page, for a rich console of any width."""
    return Group(*_blocks(found))


def _blocks(found: Steering) -> Iterator[RenderableType]:
    one = found.steered[0] if len(found.steered) == 1 else None
    for number in range(len(found.steered_by)):
        yield _heading(found, number)
    yield _how(found)
    yield ""
    yield _prompt(found)
    yield ""
    if one is not None:
        yield _TwoTexts(found.plain, one)
        yield ""
        yield _next_table(one)
        yield ""
        yield _readings_table(found.steered_by, one.readings, len(found.prompt))
    else:
        yield _sweep_table(found)
    yield ""
    yield from map(_remark, _explanations(found))


def _heading(found: Steering, number: int) -> Text:
    by = found.steered_by[number]
    strengths = {text.strengths[number] for text in found.steered}
    shown = _plain(*strengths) if len(strengths) == 1 else "each strength in turn"
    done = {
        "add": f"{shown} × its direction added",
        "clamp": f"set to {shown}",
        "ablate": "set to 0",
        "hold": f"held at {shown}",
    }[by.mode]
    peak = "" if by.peak is None else f"; peak in the run {figure(by.peak)}"
    line = Text.assemble((by.name, "bold cyan"), f"  {done}", (peak, "dim"))
    return line if by.label is None else line.append(f"\n  {visible(by.label)}")


def _how(found: Steering) -> Text:
    drawn = (
        "most probable token each time" if found.seed is None else f"drawn with seed {found.seed}"
    )
    where = "at every token, BOS too" if found.with_bos else "at every token but BOS"
    return Text(f"  {where}; {drawn}", style="dim")


def _prompt(found: Steering) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    grid.add_row("prompt", Text(_in_lines(_joined(found.prompt))))
    return grid


class _TwoTexts:
    """Without and with, side by side where there is room."""

    def __init__(self, plain: SteeredText, steered: SteeredText) -> None:
        self.sides = [("without", plain), ("with", steered)]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if options.max_width < _WIDE:
            for number, (name, text) in enumerate(self.sides):
                if number:
                    yield ""
                yield _side_heading(name, text)
                yield Padding(_written(text), (0, 0, 0, 2))
            return
        grid = Table.grid(padding=(0, 4, 0, 0), expand=True, pad_edge=False)
        for _ in self.sides:
            grid.add_column(ratio=1, overflow="fold")
        grid.add_row(*(_side_heading(name, text) for name, text in self.sides))
        grid.add_row(*(_written(text) for _, text in self.sides))
        yield grid


def _side_heading(name: str, text: SteeredText) -> Text:
    return Text.assemble((name, "bold"), (f"  perplexity {_perplexity(text)}", "dim"))


def _written(text: SteeredText) -> Text:
    if not text.tokens:
        return Text("nothing: the model ended at once", style="dim")
    if not text.text.strip(" "):
        return Text(f"{len(text.text):,} spaces", style="dim")
    shown = Text(_in_lines(text.text), overflow="fold")
    return shown.append(" (ended)", style="dim") if text.has_ended else shown


def _next_table(steered: SteeredText) -> RenderableType:
    table = plain_table("next token", "without>", "with>")
    for token in steered.next_tokens:
        table.add_row(
            _token(token.text),
            percentage(token.probability),
            percentage(token.steered_probability),
        )
    return table


def _readings_table(
    steered_by: Sequence[SteeredBy], readings: Sequence[PromptReading], n_tokens: int
) -> RenderableType:
    table = plain_table(f"on the prompt's {n_tokens:,} tokens", "before>", "after>", "on average>")
    for by, reading in zip(steered_by, readings, strict=True):
        after = reading.after
        table.add_row(
            Text(by.name, style="cyan"),
            _range(reading.before),
            "not read" if after is None else _range(after),
            "" if after is None else figure(sum(after) / len(after)),
        )
    return table


def _sweep_table(found: Steering) -> RenderableType:
    has_one = len(found.steered_by) == 1
    columns = ["strength>", "perplexity>", "distinct>"]
    columns += ["read back>"] if has_one else []
    table = plain_table(*columns, "first tokens, and what is written")
    last = found.steered[-1]
    for text in (found.plain, *found.steered):
        table.add_row(
            "without" if text is found.plain else _plain(text.strength),
            _perplexity(text),
            f"{len(set(text.token_ids))}/{len(text.token_ids)}",
            *([_read_back(text)] if has_one else []),
            # A line between two, which tables without lines do not have.
            Group(_first_tokens(text), _written(text), *([""] if text is not last else [])),
        )
    return table


def _read_back(text: SteeredText) -> str:
    """The mean of what the one change left behind."""
    after = text.readings[0].after if text.readings else None
    return "–" if after is None else figure(sum(after) / len(after))


def _first_tokens(text: SteeredText) -> Text:
    strongest = sorted(text.next_tokens, key=lambda token: -token.steered_probability)
    line = Text(overflow="fold", style="dim")
    for number, token in enumerate(strongest[:_N_NEXT]):
        line.append("   " if number else "")
        line.append(_token(token.text)).append(f" {percentage(token.steered_probability)}")
    return line


def _explanations(found: Steering) -> Iterator[str]:
    yield (
        "perplexity: of what was written, by the model as it is; low where it would write the same "
        "itself, and also where something is repeated forever"
    )
    readings = [reading for text in found.steered for reading in text.readings]
    has_features = any(by.mode != "hold" for by in found.steered_by)
    encoded = "what the SAE encodes" if has_features else "the neuron's value"
    if len(found.steered) == 1:
        yield f"before, after: {encoded} ahead of the change and behind it"
    else:
        yield "distinct: how many of the written tokens differ"
    if len(found.steered) > 1 and len(found.steered_by) == 1:
        yield f"read back: {encoded} behind the change, on average over the prompt's tokens"
    if any(reading.after is None for reading in readings):
        yield "a transcoder reads another tensor than it changes, so that nothing is read back"


def _perplexity(text: SteeredText) -> str:
    value = text.perplexity
    if value is None:
        return "–"
    return figure(value) if value < 1000 else f"{value:,.0f}"


def _range(values: Sequence[float]) -> str:
    low, high = figure(min(values)), figure(max(values))
    return low if low == high else f"{low} to {high}"


def _plain(number: float | None) -> str:
    return "–" if number is None else f"{number:,.10g}".replace("-", "−")


def _token(text: str) -> Text:
    """A token in quotes, because many begin with a space."""
    shown = visible(text) if text.strip(" ") else "␣" * len(text)
    return Text.assemble(("“", "dim"), shown, ("”", "dim"), overflow="fold")


def _joined(tokens: Sequence[str]) -> str:
    return "".join(join_bytes(tokens, [0.0] * len(tokens))[0])


def _in_lines(text: str) -> str:
    return visible(text).replace(NEWLINE, f"{NEWLINE}\n")


def _remark(words: str) -> RenderableType:
    return Padding(Text(words, style="dim"), (0, 0, 0, 2))
