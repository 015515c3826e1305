"""What a replayed label looks like on a terminal."""

from __future__ import annotations

import json

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from ..store.records import Call
from .replay import Replay
from .visible_text import visible


def render_replay(replay: Replay, with_prompt: bool) -> RenderableType:
    """The page of `scopenote replay`."""
    stored = replay.stored
    heading = Text.assemble(
        (str(stored.feature_id), "bold cyan"), f"  {stored.explainer}", f"  {stored.label_id}"
    )
    shown = stored.text if stored.text is not None else f"no label: {stored.reason}"
    blocks: list[RenderableType] = [heading, Text(visible(shown), style="bold"), ""]
    if with_prompt and replay.call is not None:
        blocks += [*_conversation(replay.call), ""]
    if replay.call is not None:
        blocks.append(
            Text(
                f"Prompt rendered again and found as request {replay.call.request_hash}, "
                f"answered {replay.call.created_at:%Y-%m-%d %H:%M} UTC by {stored.model}.",
                style="dim",
            )
        )
    if not replay.differing:
        blocks.append(Text("The label derived now equals the stored one.", style="green"))
        return Group(*blocks)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for column in ("differs", "stored", "derived now"):
        table.add_column(column, overflow="fold")
    for name in replay.differing:
        pair = (getattr(each, name) for each in (stored, replay.derived))
        table.add_row(name, *(Text(visible(str(value))) for value in pair))
    blocks += [Text("The label derived now is another one.", style="red"), table]
    return Group(*blocks)


def _conversation(call: Call) -> list[RenderableType]:
    blocks: list[RenderableType] = []
    for message in call.request["messages"]:
        blocks += [Rule(message["role"], align="left", style="dim"), _lines(message["content"])]
    answered = json.dumps(call.reply, ensure_ascii=False, indent=1) if call.reply else call.error
    return [*blocks, Rule("reply", align="left", style="dim"), _lines(answered or "")]


def _lines(text: str) -> Text:
    return Text("\n".join(map(visible, text.split("\n"))))
