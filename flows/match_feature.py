"""The counterparts of a feature in other layers, at other sites, and in another run's model.

    found = match_feature("demo", "1-res-1k/42")

Two measures, each as exact as its data: the cosine of decoder directions in the residual stream,
where spaces agree, and how often both fire at the same token of the background. Weights are read an
SAE at a time. Co-firing needs the databases alone.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..store.cofiring_across import (
    FiringTogether,
    SharedText,
    count_together,
    is_same_tokenizer,
    share_text,
)
from ..store.errors import ModelError, SaeError, UserMistake
from ..store.feature_page import find_feature
from ..store.known_features import KnownFeature, find_saes, read_known_features
from ..store.records import FeatureId
from ..store.tried_feature import CollectedSae
from .compare_runs import require_current
from .loaded_run import LoadedRun
from .working import published

if TYPE_CHECKING:
    import duckdb

    from ..extract.saes import Sae
    from ..store.database import Store

ALIKE = 0.7
"""From here on labels should agree: at a cosine, or correlation, of 0.7 half of the variance is
common (0.7² ≈ 0.5)."""

NO_CONFIG = "there is no run.toml beside the database, which says where weights lie"


@dataclass(frozen=True, slots=True)
class Counterpart:
    """A feature of another SAE.

    Attributes:
        cosine: of the two decoder directions; None where spaces do not agree, or one has none.
        phi: correlation of firing over the shared tokens; None where there are none, or one never
            fires.
        jaccard: shared tokens at which both fire, of those at which one does.
        n_together: shared tokens at which both fire; None without shared text.
        labels_differ: whether both have a label, which say different things although one of the
            two measures is at least `ALIKE`.
    """

    feature_id: FeatureId
    cosine: float | None
    phi: float | None
    jaccard: float | None
    n_together: int | None
    known: KnownFeature
    labels_differ: bool

    @property
    def nearness(self) -> float:
        """The larger of the two measures."""
        return max(each for each in (self.cosine, self.phi, -1.0) if each is not None)


@dataclass(frozen=True, slots=True)
class MatchedSae:
    """What another SAE has of the feature.

    Attributes:
        why_no_cosine: why there are no cosines.
        counterparts: the nearest first: the best by cosine and the best by co-firing.
    """

    sae: CollectedSae
    why_no_cosine: str | None
    counterparts: tuple[Counterpart, ...]


@dataclass(frozen=True, slots=True)
class Match:
    """A feature and its counterparts.

    Attributes:
        sae: that the feature is of.
        other_run: where the counterparts are; None: in the same run.
        n_tokens: shared text; 0 where there is none.
        n_active: its tokens at which the feature fires.
        why_no_cofiring: why nothing is known of firing together.
        saes: by layer.
    """

    feature_id: FeatureId
    sae: CollectedSae
    known: KnownFeature
    other_run: str | None
    n_tokens: int
    n_active: int
    why_no_cofiring: str | None
    saes: tuple[MatchedSae, ...]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "feature_id": str(self.feature_id),
            "site": self.sae.site,
            "layer": self.sae.layer,
            **asdict(self.known),
            "other_run": self.other_run,
            "n_tokens": self.n_tokens,
            "n_active": self.n_active,
            "why_no_cofiring": self.why_no_cofiring,
            "saes": [
                {
                    "sae_id": each.sae.sae_id,
                    "site": each.sae.site,
                    "layer": each.sae.layer,
                    "why_no_cosine": each.why_no_cosine,
                    "counterparts": [_as_dict(it) for it in each.counterparts],
                }
                for each in self.saes
            ],
        }


def _as_dict(counterpart: Counterpart) -> dict[str, Any]:
    content = asdict(counterpart)
    known = content.pop("known")
    return {**content, "feature_id": str(counterpart.feature_id), **known}


def match_feature(
    run: Path | str, feature: str, other_run: Path | str | None = None, top: int = 1
) -> Match:
    """The counterparts of a feature in the other SAEs of its run, or in those of another run.

    Args:
        run: folder of the feature's run.
        feature: `model/source/index`, `source/index` or `index`.
        other_run: folder of another run, such as that of the instruction-tuned model.
        top: how many of each SAE by either measure.

    Raises:
        UserMistake: there is no such run or feature; the run has no other SAE; or the two runs
            have nothing by which features could be matched.
        StoreError: an older version published a run, and it cannot be brought up to date.
    """
    with ExitStack() as stack:
        _, own = stack.enter_context(published(Path(run)))
        require_current(own, str(run))
        feature_id = find_feature(own.connection, feature)
        (sae,) = find_saes(own.connection, [feature_id.sae_id])
        weights = _Weights(Path(run), sae, None if other_run is None else Path(other_run))
        if other_run is None:
            other = own
        else:
            _, other = stack.enter_context(published(Path(other_run)))
            require_current(other, str(other_run))
        wanted = _other_saes(other, None if other_run else sae, run)
        why_not = None if is_same_tokenizer(own, other) else "the runs have different tokenizers"
        with own.cursor() as of_own, other.cursor() as of_other:
            shared = None if why_not else share_text(of_own, feature_id, of_other)
            if shared is not None and not shared.n_tokens:
                shared, why_not = None, "the backgrounds of the two runs share no text"
            if why_not and weights.why_not:
                raise UserMistake(
                    "The two runs have nothing by which features could be matched.",
                    found=f"{why_not}; {weights.why_not}",
                    expected="models that write into one residual stream, or text in common",
                )
            known = read_known_features(of_own, sae.sae_id, [feature_id.feature])
            comparison = _Comparison(known[feature_id.feature], shared, top)
            found = [
                comparison.add(of_other, each, *weights.cosines(feature_id.feature, each))
                for each in wanted
            ]
    return Match(
        feature_id=feature_id,
        sae=sae,
        known=comparison.known,
        other_run=None if other_run is None else str(other_run),
        n_tokens=0 if shared is None else shared.n_tokens,
        n_active=0 if shared is None else shared.n_active,
        why_no_cofiring=why_not,
        saes=tuple(found),
    )


def _other_saes(
    other: Store, own: CollectedSae | None, run: Path | str
) -> tuple[CollectedSae, ...]:
    wanted = tuple(each for each in find_saes(other.connection, []) if each != own)
    if not wanted:
        raise UserMistake(
            "The run has one SAE only, so a feature has no counterparts in it.",
            where=str(run),
            found=own.sae_id if own else None,
            expected="SAEs of other layers or sites, or another run",
            mend="name another run with `--in`, or begin one with more [saes] paths",
        )
    return wanted


class _Weights:
    """The weights of two runs, an SAE at a time, as far as they are to be had."""

    def __init__(self, run: Path, sae: CollectedSae, other_run: Path | None) -> None:
        self._sae_of_feature = sae
        self._own: Sae | None = None
        self.why_not: str | None = None
        try:
            self._run = self._other = _loaded(run)
            if other_run is not None:
                self._other = _loaded(other_run)
                self.why_not = self._differing_shape()
        except _NoConfig:
            self.why_not = NO_CONFIG
        except ModelError as error:
            self.why_not = error.what

    def _differing_shape(self) -> str | None:
        from ..extract.decoder_spaces import differing_shape

        differing = differing_shape(self._run.model_config, self._other.model_config)
        return None if differing is None else f"the models share no space: {differing}"

    def cosines(self, feature: int, other: CollectedSae) -> tuple[np.ndarray | None, str | None]:
        """With each feature of another SAE; or why there are none."""
        if self.why_not is not None:
            return None, self.why_not
        from ..extract.decoder_spaces import cosines, needs_model

        try:
            if self._own is None:
                self._own = self._run.sae(self._sae_of_feature)
            loaded = self._other.sae(other)
            own_model, other_model = None, None
            if needs_model(self._own, loaded):
                own_model, other_model = self._run.model, self._other.model
            found = cosines(self._own, feature, loaded, own_model, other_model)
            return found.double().numpy(), None
        except (SaeError, ModelError) as error:
            return None, error.what


class _NoConfig(Exception):
    """A database lies alone, without the configuration of its run."""


def _loaded(run: Path) -> LoadedRun:
    from ..store.run_folder import RunFolder

    if not RunFolder(run).exists:
        raise _NoConfig
    return LoadedRun(run, kept_bytes=0)


@dataclass(frozen=True, slots=True)
class _Comparison:
    """The feature, and by what others are compared with it."""

    known: KnownFeature
    shared: SharedText | None
    top: int

    def add(
        self,
        connection: duckdb.DuckDBPyConnection,
        sae: CollectedSae,
        cosines: np.ndarray | None,
        why_no_cosine: str | None,
    ) -> MatchedSae:
        """What an SAE has of the feature."""
        together = None
        if self.shared is not None:
            together = count_together(connection, self.shared, sae.sae_id)
        chosen: list[int] = []
        if cosines is not None:
            chosen += largest(cosines, self.top)
        if together is not None:
            phi = together.phi
            chosen += [each for each in largest(phi, self.top) if phi[each] > 0]
        numbers = sorted(set(chosen))
        known = read_known_features(connection, sae.sae_id, numbers)
        found = [
            self._counterpart(FeatureId(sae.sae_id, n), known[n], cosines, together)
            for n in numbers
        ]
        found.sort(key=lambda each: (-each.nearness, each.feature_id.feature))
        return MatchedSae(sae, why_no_cosine, tuple(found))

    def _counterpart(
        self,
        feature_id: FeatureId,
        known: KnownFeature,
        cosines: np.ndarray | None,
        together: FiringTogether | None,
    ) -> Counterpart:
        n = feature_id.feature
        cosine = None if cosines is None else _finite(cosines[n])
        phi = None if together is None else _finite(together.phi[n])
        near = max(cosine or 0.0, phi or 0.0) >= ALIKE
        return Counterpart(
            feature_id=feature_id,
            cosine=cosine,
            phi=phi,
            jaccard=None if together is None else _finite(together.jaccard[n]),
            n_together=None if together is None else int(together.n_together[n]),
            known=known,
            labels_differ=near and says_otherwise(self.known.label, known.label),
        )


def largest(values: np.ndarray, k: int) -> list[int]:
    """The places of the k largest numbers, falling; equal ones by place. NaN is none of them."""
    order = np.argsort(-values, kind="stable")[:k]
    return [int(place) for place in order if math.isfinite(values[place])]


def says_otherwise(label: str | None, other: str | None) -> bool:
    """Whether there are two labels that differ in more than case and white space."""
    if label is None or other is None:
        return False
    return label.lower().split() != other.lower().split()


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
