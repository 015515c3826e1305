"""Published numbers of Gemma 2 2B and Gemma Scope, measured again on weights that are at hand.

The numbers, their origins and how near is near enough stand in `golden_numbers.json`. Whatever
is not at hand is said to be so and counts neither for nor against.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from transformers import Gemma2Config

from .feature_changes import ChangeMode, FeatureChange, HeldNeuron, ModelChange
from .golden import (
    FullModel,
    changed_probabilities,
    lens_probabilities,
    measure_text_fidelity,
    next_token_probabilities,
    read_site,
)
from .local_files import find_local_sae, read_sae_shapes
from .sae_sources import locate_sae
from .saes import Sae, load_sae
from .sites import Site, SiteKind
from .splicing import splice

Number = float | list[int]
"""A measured or published number; the shape of an array is a list."""


@dataclass(frozen=True, slots=True)
class GoldenCheck:
    """Some published numbers that one measurement gives.

    Attributes:
        name: what is measured, for people.
        kind: how, one of those this module knows.
        expected: the published numbers by token, feature, position or name.
        absolute, relative: a number passes within `absolute` plus `relative` times its size.
        origin: who published them.
        prompt: the text; empty where only the SAE's weights are looked at.
        sae: its path on the hub, where one is needed.
        layer, site: what is read, where it is not the SAE's own; layers count from 0.
        with_bos: whether BOS is one of the tokens that fidelity is measured on.
        coordinate, value: of a clamp.
        feature, strength: of an SAE's feature and how it is steered.
    """

    name: str
    kind: str
    expected: dict[str, Number]
    absolute: float
    relative: float
    origin: str
    prompt: str = ""
    sae: str = ""
    layer: int | None = None
    site: SiteKind | None = None
    with_bos: bool = False
    coordinate: int = 0
    value: float = 0.0
    feature: int = 0
    strength: float = 0.0

    def allows(self, name: str, measured: Number | None) -> bool:
        """Whether a measured number is as near as it must be to the published one."""
        published = self.expected[name]
        if isinstance(published, list) or isinstance(measured, list) or measured is None:
            return published == measured
        return abs(measured - published) <= self.absolute + self.relative * abs(published)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What was published and is not measured here, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class GoldenNumbers:
    """All of them, and the model that they are of."""

    model: str
    checks: tuple[GoldenCheck, ...]
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True, slots=True)
class GoldenResult:
    """What came of one check.

    Attributes:
        measured: the numbers, by the names of the published ones; None where nothing could
            be measured.
        reason: why nothing could.
        clamped: where a feature was steered, the same with its activation set to the strength
            instead: the sources say both words for what they do, and add.
    """

    check: GoldenCheck
    measured: dict[str, Number] | None
    reason: str | None = None
    clamped: dict[str, Number] | None = None

    @property
    def wrong(self) -> list[str]:
        """The names of the numbers that are too far off, or missing."""
        if self.measured is None:
            return []
        return self._too_far(self.measured)

    @property
    def holds_clamped(self) -> bool:
        """Whether the published numbers are those of the clamped feature."""
        return self.clamped is not None and not self._too_far(self.clamped)

    def _too_far(self, measured: dict[str, Number]) -> list[str]:
        return [
            name for name in self.check.expected if not self.check.allows(name, measured.get(name))
        ]


@cache
def read_golden_numbers() -> GoldenNumbers:
    """The published numbers that come with the package."""
    content = json.loads(
        files("scopenote.extract").joinpath("golden_numbers.json").read_text("utf-8")
    )
    return parse_golden_numbers(content)


def parse_golden_numbers(content: dict[str, Any]) -> GoldenNumbers:
    """The same from JSON of this form."""
    checks = []
    for entry in content["checks"]:
        bounds = {"absolute": 0.0, "relative": 0.0, **entry["within"]}
        rest = {name: value for name, value in entry.items() if name != "within"}
        checks.append(GoldenCheck(**rest, **bounds))
    left_out = tuple(LeftOut(**entry) for entry in content["left_out"])
    return GoldenNumbers(content["model"], tuple(checks), left_out)


class NotAtHand(Exception):
    """What a check needs is not on this machine; the message says what."""


@dataclass(slots=True)
class Bench:
    """What the checks are measured on.

    Attributes:
        model: the whole model, if it is at hand.
        why_no_model: if it is not.
        folders: where SAEs are looked for, beside the hub's cache.
    """

    model: FullModel | None
    why_no_model: str
    folders: Sequence[Path] = ()
    _saes: dict[str, Sae] = field(default_factory=dict)

    def require_model(self) -> FullModel:
        """The model.

        Raises:
            NotAtHand: there is none.
        """
        if self.model is None:
            raise NotAtHand(self.why_no_model)
        return self.model

    def find_sae(self, path: str) -> Path:
        """An SAE's file.

        Raises:
            NotAtHand: it is not on this machine.
        """
        file = find_local_sae(path, self.folders)
        if file is None:
            raise NotAtHand(f"{path} is not on this machine")
        return file

    def require_sae(self, path: str) -> Sae:
        """An SAE, loaded once.

        Raises:
            NotAtHand: it is not on this machine.
            SaeError: it is damaged.
        """
        if path not in self._saes:
            source = locate_sae(str(self.find_sae(path)), "gemma-2-2b")
            # By default that of Gemma 2 2B, for checks that need no model.
            config = self.model.network.config if self.model else Gemma2Config()
            self._saes[path] = load_sae(source, config)
        return self._saes[path]


def measure_golden_numbers(numbers: GoldenNumbers, bench: Bench) -> Iterator[GoldenResult]:
    """Measures what can be measured, one check after another.

    Raises:
        ModelError: the model lacks a token or a layer that the numbers name.
        SaeError: an SAE is damaged.
    """
    for check in numbers.checks:
        try:
            measured = _MEASURES[check.kind](check, bench)
            clamped = _steer(check, bench, "clamp") if check.kind == "steer" else None
            yield GoldenResult(check, measured, clamped=clamped)
        except NotAtHand as missing:
            yield GoldenResult(check, None, str(missing))


# --- one function a kind ------------------------------------------------------------------


def _next_token(check: GoldenCheck, bench: Bench) -> dict[str, Number]:
    model = bench.require_model()
    found = next_token_probabilities(model, model.encode(check.prompt))
    return _by_token(check, model, found)


def _lens(check: GoldenCheck, bench: Bench) -> dict[str, Number]:
    model = bench.require_model()
    assert check.layer is not None
    probabilities = lens_probabilities(model, model.encode(check.prompt), check.layer)
    return _by_token(check, model, probabilities)


def _clamp(check: GoldenCheck, bench: Bench) -> dict[str, Number]:
    bench.require_model()
    assert check.layer is not None
    return _changed(check, bench, HeldNeuron(check.layer, check.coordinate, check.value))


def _splice(check: GoldenCheck, bench: Bench) -> dict[str, Number]:
    model, sae = bench.require_model(), bench.require_sae(check.sae)
    ids = model.encode(check.prompt)
    return _by_token(check, model, next_token_probabilities(model, ids, sae.site, splice(sae)))


def _steer(check: GoldenCheck, bench: Bench, mode: ChangeMode = "add") -> dict[str, Number]:
    bench.require_model()
    sae = bench.require_sae(check.sae)
    return _changed(check, bench, FeatureChange(sae, check.feature, mode, check.strength))


def _last_token_features(check: GoldenCheck, bench: Bench) -> dict[str, Number]:
    last = _activations(check, bench)[-1]
    return {name: float(last[int(name)]) for name in check.expected}


def _last_token(check: GoldenCheck, bench: Bench) -> dict[str, Number]:
    last = _vectors(check, bench)[-1]
    f = bench.require_sae(check.sae).encode(last[None])
    return {"norm": float(last.norm()), "L0": float((f > 0).sum())}


def _feature_by_token(check: GoldenCheck, bench: Bench) -> dict[str, Number]:
    model = bench.require_model()
    f = _activations(check, bench)[:, check.feature].tolist()
    pieces = model.pieces(model.encode(check.prompt))
    # By position and piece, so that another tokenization cannot pass for the same.
    named = enumerate(zip(pieces, f, strict=True))
    return {f"{position} {piece}": value for position, (piece, value) in named}


def _peak(check: GoldenCheck, bench: Bench) -> dict[str, Number]:
    model = bench.require_model()
    f = _activations(check, bench)[:, check.feature]
    pieces = model.pieces(model.encode(check.prompt))
    # Named by its token, so that a peak elsewhere is no peak.
    return {pieces[int(f.argmax())]: float(f.max())}


def _counts_above_one(check: GoldenCheck, bench: Bench) -> dict[str, Number]:
    counts = (_activations(check, bench) > 1).sum(1).tolist()
    return {str(position): count for position, count in enumerate(counts)}


def _strongest_features(check: GoldenCheck, bench: Bench) -> dict[str, Number]:
    strongest = _activations(check, bench).argmax(1).tolist()
    return {str(position): feature for position, feature in enumerate(strongest)}


def _fidelity(check: GoldenCheck, bench: Bench) -> dict[str, Number]:
    model, sae = bench.require_model(), bench.require_sae(check.sae)
    first = 0 if check.with_bos else 1
    x = _vectors(check, bench)[first:]
    target = Site(_layer(check, sae), sae.site.kind).target
    y = read_site(model, model.encode(check.prompt), target)[first:]
    fidelity = measure_text_fidelity(sae, x, y)
    return {"L0": fidelity.mean_l0, "FVU": fidelity.fvu, "explained": fidelity.explained}


def _shapes(check: GoldenCheck, bench: Bench) -> dict[str, Number]:
    shapes = read_sae_shapes(bench.find_sae(check.sae))
    # Some uploads spell W_enc as w_enc.
    by_name = {name.lower(): list(shape) for name, shape in shapes.items()}
    return {name: by_name[name.lower()] for name in check.expected if name.lower() in by_name}


def _encoder_norms(check: GoldenCheck, bench: Bench) -> dict[str, Number]:
    norms = bench.require_sae(check.sae).encoder.norm(dim=1)
    return {name: float(norms[int(name)]) for name in check.expected}


def _thresholds(check: GoldenCheck, bench: Bench) -> dict[str, Number]:
    threshold = bench.require_sae(check.sae).threshold
    measured: dict[str, Number] = {
        "least": float(threshold.min()),
        "median": float(threshold.quantile(0.5)),
        "greatest": float(threshold.max()),
    }
    for name in check.expected:
        if name.isdecimal():
            measured[name] = float(threshold[int(name)])
    return measured


_MEASURES: dict[str, Callable[[GoldenCheck, Bench], dict[str, Number]]] = {
    "next_token": _next_token,
    "lens": _lens,
    "clamp": _clamp,
    "splice": _splice,
    "steer": _steer,
    "last_token_features": _last_token_features,
    "last_token": _last_token,
    "feature_by_token": _feature_by_token,
    "peak": _peak,
    "counts_above_one": _counts_above_one,
    "strongest_features": _strongest_features,
    "fidelity": _fidelity,
    "shapes": _shapes,
    "encoder_norms": _encoder_norms,
    "thresholds": _thresholds,
}


def _changed(check: GoldenCheck, bench: Bench, change: ModelChange) -> dict[str, Number]:
    model = bench.require_model()
    return _by_token(check, model, changed_probabilities(model, check.prompt, [change]))


def _by_token(
    check: GoldenCheck, model: FullModel, probabilities: Float[torch.Tensor, " V"]
) -> dict[str, Number]:
    return {piece: float(probabilities[model.token_id(piece)]) for piece in check.expected}


def _vectors(check: GoldenCheck, bench: Bench) -> Float[torch.Tensor, "S D"]:
    model, sae = bench.require_model(), bench.require_sae(check.sae)
    site = Site(_layer(check, sae), check.site or sae.site.kind)
    return read_site(model, model.encode(check.prompt), site)


def _layer(check: GoldenCheck, sae: Sae) -> int:
    return sae.site.layer if check.layer is None else check.layer


def _activations(check: GoldenCheck, bench: Bench) -> Float[torch.Tensor, "S F"]:
    with torch.inference_mode():
        return bench.require_sae(check.sae).encode(_vectors(check, bench))
