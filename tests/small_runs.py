"""The configuration of a whole run that takes seconds: six features of one SAE, one judge."""

from __future__ import annotations

import importlib.resources
import json
from pathlib import Path

from .fake_openai import FakeOpenAI
from .pipeline_runs import docstrings


def write_corpus(folder: Path, n: int) -> None:
    """So many documents; the first ones are always the same."""
    texts = [text for text, _ in zip(docstrings(), range(n), strict=False)]
    (folder / "corpus.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))


def configure(
    folder: Path,
    fake: FakeOpenAI,
    *,
    besides: tuple[str, ...] = (),
    active: int = 5,
    silent: int = 5,
    collect: str = "",
    again: str = "",
    chat: str = "",
    more: str = "",
) -> Path:
    """By a model that also judges.

    Args:
        folder: where the corpus lies.
        fake: the model's server.
        besides: explainers and simulators that ask no model.
        active, silent: windows that a label is judged on.
        collect, again, chat: further lines of `[collect]`, `[explain.again]` and both `.chat`.
        more: further tables.
    """
    saes = Path(str(importlib.resources.files("scopenote.extract.toy").joinpath("saes")))
    model = f'model = "gpt-4o-mini"\nbase_url = {json.dumps(fake.base_url)}\n{chat}'
    config = folder / "small.toml"
    config.write_text(
        f"""
        [model]
        name = "toy"
        [saes]
        paths = {json.dumps([str(next((saes / "res").rglob("params.npz")))])}
        [corpus]
        path = "corpus.jsonl"
        [collect]
        neighbours = false
        logit_effects = false
        {collect}
        [explain]
        explainers = {json.dumps([*besides, "highlighted"])}
        features = 6
        [explain.again]
        {again}
        [explain.chat]
        {model}
        [score]
        simulators = {json.dumps([*besides, "chat"])}
        resamples = 100
        [score.chat]
        {model}
        active_windows = {active}
        silent_windows = {silent}
        shuffled_labels = 0
        gold = false
        {more}
        """
    )
    return config
