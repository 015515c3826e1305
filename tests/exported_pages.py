"""What the packed data of an exported page say, read as slowly and plainly as can be."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

DATA = (
    r'<script type="text/plain" data-(list|details)(?: data-last="(\d+)")?>'
    r"([A-Za-z0-9+/=]*)</script>"
)


def page_name(sae_id: str) -> str:
    return sae_id.replace("/", "_") + ".html"


def unpacked(page: Path, kind: str) -> list[dict[str, Any]]:
    """The blocks of a kind."""
    return [
        json.loads(gzip.decompress(base64.b64decode(packed)))
        for found, _, packed in re.findall(DATA, page.read_text(encoding="utf-8"))
        if found == kind
    ]


def list_of(page: Path) -> list[dict[str, Any]]:
    """The rows of the list."""
    rows = []
    for block in unpacked(page, "list"):
        hands, reasons = block.pop("hands"), block.pop("reasons")
        for values in zip(*block.values(), strict=True):
            row = dict(zip(block, values, strict=True))
            row["hand"] = None if row["hand"] is None else hands[row["hand"]]
            row["reason"] = None if row["reason"] is None else reasons[row["reason"]]
            rows.append(row)
    return rows


def details_of(page: Path) -> dict[int, dict[str, Any]]:
    """What is shown of each feature that is opened."""
    found = {}
    for block in unpacked(page, "details"):
        for at, feature in enumerate(block["numbers"]):
            own = {name: values[at] for name, values in block["columns"].items()}
            found[feature] = {**own, "judges": block["judges"], "scores": block["scores"]}
    return found


def text_of(context: list[Any]) -> str:
    """A context without its marks: what stands before it, a bar, and its tokens."""
    _, before, *stretches = context
    return before + "│" + "".join(stretches)
