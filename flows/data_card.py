"""The data card of an export: what a stranger has to know to use its labels, from the run itself.

Nothing of the machine gets into it: of a file on disk its name, never its folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..store.card_facts import CardFacts
from ..store.export_choice import TABLES, Chosen, ExportChoice
from ..store.null_ladder import LadderRow
from ..store.splits import SPLITS
from ..store.status import RunStatus, SaeStatus
from .corpus_words import corpus_in_words
from .score_plot import draw_spreads
from .show_feature import figure
from .visible_text import visible

PLOT = "scores.png"
_TEXTS = Path(__file__).with_name("data_card_texts")
_SIZES = (
    (10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"), (10**8, "10M<n<100M"), (10**9, "100M<n<1B"),
)  # fmt: skip
# What would be read as markup in a table of Markdown.
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~&$!])")

_GEMMA_SCOPE = (
    "Lieberum et al. 2024, *Gemma Scope: Open Sparse Autoencoders Everywhere All At Once on "
    "Gemma 2*, arXiv:2408.05147."
)
_GEMMA = (
    "Gemma Team 2024, *Gemma 2: Improving Open Language Models at a Practical Size*, "
    "arXiv:2408.00118."
)
_SCORING = (
    "Bills et al. 2023, *Language models can explain neurons in language models* "
    "(scoring by simulation)."
)


@dataclass(frozen=True, slots=True)
class CardTable:
    """A configuration of the data set.

    Attributes:
        files: by the split of the data set.
    """

    name: str
    files: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class CardSubject:
    """What a data card is of.

    Attributes:
        place: what `load_dataset` is given: a repository of the hub, or a folder.
        license: an identifier of the hub's.
        revision: of the run's database.
        ladder: where the scores of these SAEs stand.
    """

    tables: Sequence[CardTable]
    choice: ExportChoice
    chosen: Chosen
    status: RunStatus
    facts: CardFacts
    place: str
    license: str
    revision: str
    ladder: Sequence[LadderRow]


def render_card(subject: CardSubject) -> str:
    """The card as Markdown with the header that the hub and `datasets` read."""
    from .. import __version__

    saes = [sae for sae in subject.status.saes if sae.sae_id in subject.facts.sae_ids]
    models = list(dict.fromkeys(sae.model for sae in saes))
    return (
        _environment()
        .get_template("README.md.jinja")
        .render(
            version=__version__,
            title=_title(saes, models),
            models=models,
            saes=saes,
            n_features=f"{subject.chosen.features:,}",
            size_category=_size(max(subject.chosen.as_dict().values())),
            missing=_missing(subject.tables),
            scope=_scope(subject.choice),
            corpus=corpus_in_words(subject.facts.config.get("corpus") or {}),
            level=_level(subject.facts.config),
            licences=_licences(saes, subject.facts),
            sources=_sources(saes),
            has_imported=any(maker.source == "imported" for maker in subject.facts.makers),
            **{name: getattr(subject, name) for name in CardSubject.__slots__},
        )
    )


def draw_plot(facts: CardFacts, file: Path) -> bool:
    """Draws the card's plot; False where there are no scores to draw."""
    if not facts.spreads:
        return False
    draw_spreads(facts.spreads, file)
    return True


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEXTS),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=False,
    )
    environment.filters.update(figure=figure, md=_escaped)
    return environment


def _escaped(text: str) -> str:
    return _MARKUP.sub(r"\\\1", " ".join(visible(text).split()))


def _title(saes: Sequence[SaeStatus], models: Sequence[str]) -> str:
    named = ", ".join(sae.sae_id.partition("/")[2] for sae in saes[:2])
    more = f" and {len(saes) - 2} more" if len(saes) > 2 else ""
    return f"Feature labels of {', '.join(models)}: {named}{more}"


def _missing(tables: Sequence[CardTable]) -> list[str]:
    named = {table.name: table.files for table in tables}
    splits = [
        f"split `{s}` of `contexts`" for s in SPLITS if s not in named.get("contexts", SPLITS)
    ]
    return [f"`{name}`" for name in TABLES if name not in named] + splits


def _size(n: int) -> str:
    return next((words for limit, words in _SIZES if n < limit), "n>1B")


def _scope(choice: ExportChoice) -> str:
    asked = []
    if choice.source is not None:
        asked.append(f"labels of source `{choice.source}`")
    if choice.min_score is not None:
        asked.append(f"labels that score at least {choice.min_score:g}")
    if not asked:
        return ""
    return f"Only {' and '.join(asked)}, and the features that have them."


def _level(config: Mapping[str, Any]) -> str:
    level = (config.get("score") or {}).get("level", 0.95)
    return f"{100 * level:g}%"


def _is_of_gemma_scope(sae: SaeStatus) -> bool:
    return "gemmascope" in sae.sae_id


def _licences(saes: Sequence[SaeStatus], facts: CardFacts) -> list[str]:
    lines = ["The text in `contexts`: as where it was taken from; this export does not change it."]
    if any(sae.model.startswith("gemma") for sae in saes):
        lines.append("Gemma: the Gemma Terms of Use (https://ai.google.dev/gemma/terms).")
    if any(map(_is_of_gemma_scope, saes)):
        lines.append("Gemma Scope's SAEs: CC-BY-4.0.")
    if any(sae.model.startswith("toy-") for sae in saes):
        lines.append("The toy model and its SAEs: Apache-2.0, as Scopenote.")
    writers = sorted({maker.model for maker in facts.makers if maker.model is not None})
    if writers:
        names = ", ".join(f"`{_escaped(name)}`" for name in writers)
        lines.append(f"Labels written by {names}: the terms of whoever offers it may apply.")
    return lines


def _sources(saes: Sequence[SaeStatus]) -> list[str]:
    lines = [_SCORING]
    if any(map(_is_of_gemma_scope, saes)):
        lines.insert(0, _GEMMA_SCOPE)
    if any(sae.model.startswith("gemma") for sae in saes):
        lines.insert(0, _GEMMA)
    return lines
