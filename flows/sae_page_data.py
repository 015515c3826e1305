"""The features of a page as JSON that its script unpacks: rows of the list, and details by block.

Whatever is no visible character is given its sign here, as everywhere that text is shown. Numbers
are rounded to what can be told apart on the page: scores to four decimals, all else to three
digits.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..store.byte_pieces import join_bytes
from ..store.export_page_contexts import PageContext
from ..store.export_sae_pages import PageFeature, PageLabel
from .visible_text import visible

_STALE, _RIVAL, _WITHDRAWN = 1, 2, 4
_CUT_BEFORE, _CUT_AFTER = 1, 2
_TOKENS = 6


def pack(content: dict[str, Any]) -> str:
    """JSON, compressed by gzip, in base64: the same for the same content."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


class _Numbered:
    """Texts that recur, each once, by the number under which it was first seen."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}

    def of(self, each: Any) -> int:
        return self._numbers.setdefault(each, len(self._numbers))

    def listed(self) -> list[Any]:
        return list(self._numbers)


def list_rows(features: Sequence[PageFeature]) -> dict[str, Any]:
    """A row for each label of these features, and one for each feature without any."""
    hands, reasons = _Numbered(), _Numbered()
    columns: dict[str, list[Any]] = {
        name: []
        for name in (
            "feature", "text", "score", "low", "high", "null", "lift", "density", "hand", "reason",
            "marks",
        )
    }  # fmt: skip
    for feature in features:
        for label in feature.labels or (None,):
            row = _row(feature, label, hands, reasons)
            for name, column in columns.items():
                column.append(row.get(name))
    return {**columns, "hands": hands.listed(), "reasons": reasons.listed()}


def _row(
    feature: PageFeature, label: PageLabel | None, hands: _Numbered, reasons: _Numbered
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "feature": feature.feature,
        "density": _three_digits(feature.density),
        "marks": 0,
    }
    reason = feature.failure
    if label is not None:
        reason = (
            label.score_reason if label.status != "failed" else label.reason or "no reason given"
        )
        row |= {
            "text": None if label.status == "failed" else visible(label.text or "–"),
            "score": _four_decimals(label.score),
            "low": _four_decimals(label.ci_low),
            "high": _four_decimals(label.ci_high),
            "null": _four_decimals(label.null_value),
            "lift": _four_decimals(label.lift),
            "hand": hands.of(_hand(label)),
            "marks": label.is_stale * _STALE
            + (not label.is_in_force) * _RIVAL
            + (label.status == "withdrawn") * _WITHDRAWN,
        }
    if reason is not None:
        row["reason"] = reasons.of(visible(reason))
    return row


def _hand(label: PageLabel) -> str:
    if label.source != "auto":
        who = "a person" if label.source == "human" else label.source
        return f"{who}, {visible(label.author or '–')}"
    model = "" if label.model is None else f", {visible(label.model)}"
    return visible(label.explainer) + model


def feature_details(features: Sequence[PageFeature]) -> dict[str, Any]:
    """What is shown of these features when one of them is opened.

    Like stands beside like, texts apart from numbers: row by row it is a fifth larger.
    """
    judges, scores, reasons = _Numbered(), _Numbered(), _Numbered()
    rows = [_details(feature, judges, scores, reasons) for feature in features]
    return {
        "numbers": [feature.feature for feature in features],
        "columns": {name: [row[name] for row in rows] for name in rows[0]},
        "judges": judges.listed(),
        "scores": scores.listed(),
        "reasons": reasons.listed(),
    }


def _details(
    feature: PageFeature, judges: _Numbered, scores: _Numbered, reasons: _Numbered
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "n": feature.n_active,
        "peak": _three_digits(feature.max_activation),
        "mean": _three_digits(feature.mean_activation),
        "labels": [_label(label, judges, scores, reasons) for label in feature.labels],
        "kept": feature.contexts.n_kept,
    }
    for name, tokens in (
        ("strong", feature.top_tokens), ("up", feature.raised), ("down", feature.lowered)
    ):  # fmt: skip
        found[name] = [visible(token.text) for token in tokens[:_TOKENS]]
        found[f"{name}Values"] = [_three_digits(token.logit) for token in tokens[:_TOKENS]]
    for name, near in (("near", feature.by_direction), ("together", feature.by_cofiring)):
        found[name] = [each.feature for each in near]
        found[f"{name}Values"] = [round(each.value, 2) for each in near]
    for kind in ("top", "sample"):
        shown = [_stretches(each) for each in feature.contexts.shown if each.kind == kind]
        found[kind] = [each.texts for each in shown]
        found[f"{kind}Values"] = [each.values for each in shown]
    return found


def _label(
    label: PageLabel, judges: _Numbered, scores: _Numbered, reasons: _Numbered
) -> dict[str, Any]:
    because = None
    if label.explanation and label.explanation != label.text:
        because = "\n".join(map(visible, label.explanation.split("\n")))
    lift = [_four_decimals(label.lift_ci_low), _four_decimals(label.lift_ci_high)]
    more = [
        [
            scores.of((_score_name(each.scorer, each.metric), visible(each.simulator))),
            _four_decimals(each.value),
            *([reasons.of(visible(each.reason))] if each.reason is not None else []),
        ]
        for each in label.others
    ]
    found = {
        "because": because,
        "judge": None if label.simulator is None else judges.of(visible(label.simulator)),
        "lift": None if lift == [None, None] else lift,
        "noLift": None if label.lift_reason is None else reasons.of(visible(label.lift_reason)),
        "windows": label.n_windows,
        "up": label.n_up or None,
        "down": label.n_down or None,
        "saw": label.saw_score or None,
        "more": more or None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _score_name(scorer: str, metric: str) -> str:
    words = metric.replace("_", " ")
    return visible(words if scorer == "simulation" else f"{scorer.replace('_', ' ')}, {words}")


class _Stretches(NamedTuple):
    """A context for the page's script.

    Attributes:
        texts: marks, what stands before the window, and then by turns tokens that are off, which
            may be none, and one that is on.
        values: the activations of those that are on.
    """

    texts: list[Any]
    values: list[float | None]


def _stretches(context: PageContext) -> _Stretches:
    before, _ = join_bytes(context.before, [0.0] * len(context.before))
    marks = context.is_cut_before * _CUT_BEFORE + context.is_cut_after * _CUT_AFTER
    found = _Stretches([marks, visible("".join(before))], [])
    off: list[str] = []
    for token, activation in zip(*join_bytes(context.tokens, context.activations), strict=True):
        if activation <= 0:
            off.append(token)
            continue
        found.texts.extend((visible("".join(off)), visible(token)))
        found.values.append(_three_digits(activation))
        off = []
    if off:
        found.texts.append(visible("".join(off)))
    return found


def _four_decimals(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 4)


def _three_digits(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.3g}")
