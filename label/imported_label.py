"""What a row that others wrote comes to: a label of a feature, or why it is left out.

Texts are cleaned as our own labels are, and refused where those would be: a label is one line of a
table. It is never cut to size, because half a label is another label. A reason is the same words
for the same fault, so that they can be counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..store.label_files import FileRow
from ..store.records import FeatureId, Label
from ..store.unit_names import unit_number
from .label_reply import MAX_TEXT_CHARACTERS, clean_text, shows_nothing

# Nothing is known of what its writer was shown or asked.
PROMPT_VERSION = "unknown"
MAX_NAME_CHARACTERS = 100
_MOST_DIGITS = 12

MAX_IMPORTED_CHARACTERS = 1_000
"""Of a label by others, who write sentences where ours are a few words."""

BROKEN = "the row cannot be read"
NO_NAME = "it does not name a feature"
UNNAMED_SAE = "it names no SAE, and the run has several"
SEVERAL_SAES = "several SAEs of the run are called so"
OTHER_MODEL = "it is of another model"
OTHER_SAE = "it is of an SAE that the run does not have"
NO_FEATURE = "the SAE has no feature of this number"
NO_TEXT = "it has no text"
SHOWS_NOTHING = "nothing of its text can be seen"
NOT_TEXT = "its label is no text"
TOO_LONG = f"its label has more than {MAX_IMPORTED_CHARACTERS:,} characters"
LONG_EXPLANATION = f"its explanation has more than {MAX_TEXT_CHARACTERS:,} characters"
LONG_NAME = f"its explainer, author or model has more than {MAX_NAME_CHARACTERS} characters"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A row that is no label here.

    Attributes:
        reason: one of those above.
        what: it has there, cleaned.
    """

    reason: str
    what: str


@dataclass(frozen=True, slots=True)
class LabelImporter:
    """Makes labels of rows.

    Attributes:
        source_name: whose labels these are; where a row says who explained, that is added to it.
        widths: how many features each SAE of the run has, by its id.
    """

    source_name: str
    widths: Mapping[str, int]
    _saes: dict[Any, str | LeftOut] = field(default_factory=dict)
    _names: dict[Any, str | None] = field(default_factory=dict)

    def label(self, row: FileRow) -> Label | LeftOut:
        """The label that a row is, or why it is none."""
        if row.fault is not None:
            return LeftOut(BROKEN, row.fault)
        feature_id = self._feature_id(row)
        if isinstance(feature_id, LeftOut):
            return feature_id
        if row.text is None or row.text == "":
            return LeftOut(NO_TEXT, str(feature_id))
        if not isinstance(row.text, str):
            return LeftOut(NOT_TEXT, str(feature_id))
        text, explanation = clean_text(row.text), _explanation(row)
        explainer, author, model = map(self._name, (row.explainer, row.author, row.model))
        longest = max(len(name or "") for name in (explainer, author, model))
        for is_so, reason in (
            (shows_nothing(text), SHOWS_NOTHING),
            (len(text) > MAX_IMPORTED_CHARACTERS, TOO_LONG),
            (len(explanation or "") > MAX_TEXT_CHARACTERS, LONG_EXPLANATION),
            (longest > MAX_NAME_CHARACTERS, LONG_NAME),
        ):
            if is_so:
                return LeftOut(reason, str(feature_id))
        return Label(
            feature_id=feature_id,
            text=text,
            explanation=explanation,
            explainer=self.source_name + (f"/{explainer}" if explainer else ""),
            prompt_version=PROMPT_VERSION,
            window_ids=(),
            model=model,
            source="imported",
            author=author or self.source_name,
        )

    def _feature_id(self, row: FileRow) -> FeatureId | LeftOut:
        if isinstance(row.feature, bool) or not isinstance(row.feature, int | str):
            return LeftOut(NO_NAME, _shown(row.feature))
        source, _, name = str(row.feature).strip().strip("/").rpartition("/")
        named = source or row.sae
        try:
            sae_id = self._saes[named]
        except (KeyError, TypeError):  # not seen yet, or nothing that can name an SAE
            sae_id = self._sae(named)
            if isinstance(named, str | None):
                self._saes[named] = sae_id
        if isinstance(sae_id, LeftOut):
            return LeftOut(sae_id.reason, "/".join(filter(None, (sae_id.what, _shown(name)))))
        number = unit_number(sae_id, name) if len(name) <= _MOST_DIGITS else None
        if number is None:
            is_number = name.isascii() and name.isdigit()
            return LeftOut(NO_FEATURE if is_number else NO_NAME, f"{sae_id}/{_shown(name)}")
        if number >= self.widths[sae_id]:
            return LeftOut(NO_FEATURE, str(FeatureId(sae_id, number)))
        return FeatureId(sae_id, number)

    def _sae(self, named: Any) -> str | LeftOut:
        if not isinstance(named, str | None):
            return LeftOut(NO_NAME, _shown(named))
        wanted = (named or "").strip().strip("/")
        if wanted in self.widths:
            return wanted
        if not wanted:
            only = list(self.widths)
            return only[0] if len(only) == 1 else LeftOut(UNNAMED_SAE, "")
        matches = [sae_id for sae_id in self.widths if sae_id.endswith(f"/{wanted}")]
        if len(matches) == 1:
            return matches[0]
        model, slash, _ = wanted.partition("/")
        models = {sae_id.partition("/")[0] for sae_id in self.widths}
        reason = OTHER_MODEL if slash and model not in models else OTHER_SAE
        return LeftOut(SEVERAL_SAES if matches else reason, _shown(wanted))

    def _name(self, value: Any) -> str | None:
        """The name of somebody or something; None where there is none."""
        if isinstance(value, bool) or not isinstance(value, str | int):
            return None
        if value not in self._names:
            name = clean_text(str(value))
            self._names[value] = None if shows_nothing(name) else name
        return self._names[value]


def _explanation(row: FileRow) -> str | None:
    if not isinstance(row.explanation, str):
        return None
    explanation = clean_text(row.explanation)
    return None if shows_nothing(explanation) else explanation


def _shown(value: Any) -> str:
    written = clean_text(str(value)) or repr(value)
    return written if len(written) <= MAX_NAME_CHARACTERS else f"{written[:MAX_NAME_CHARACTERS]}…"
