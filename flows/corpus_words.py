"""What a run's text was, in words for those whom an export is sent to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any


def corpus_in_words(corpus: Mapping[str, Any]) -> str | None:
    """What the text was; of a path its last part only, as the rest is nobody's business.

    Args:
        corpus: the settings of that name; empty where none are on record.
    """
    if corpus.get("standard_library"):
        return "documentation and source of Python's standard library"
    if corpus.get("dataset"):
        parts = (corpus.get("dataset_config"), corpus.get("dataset_split"), corpus.get("revision"))
        more = ", ".join(part for part in parts if part)
        return f"data set {corpus['dataset']}" + (f" ({more})" if more else "")
    if corpus.get("path"):
        return f"files: {PurePath(corpus['path']).name}"
    return None
