"""What a run's model and SAEs make of a text of one's own, with the labels of what fires.

    run = LoadedRun("demo")
    found = inspect_text(run, "The reliability of Wikipedia is very")

The first call loads the model and the SAEs; the ones after it find them loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import Float32, Int32

from ..store.known_features import (
    KnownFeature,
    Reconstruction,
    count_labels,
    find_saes,
    read_known_features,
    read_reconstructions,
)
from ..store.records import FeatureId
from ..store.tried_feature import CollectedSae
from ..store.unit_names import unit_name
from .compare_runs import require_current
from .loaded_run import LoadedRun

if TYPE_CHECKING:
    import duckdb

    from ..extract.inspection import Prompt, SaeReading
    from ..extract.logit_lens import LogitLens

NO_RECONSTRUCTION = "neurons reconstruct nothing"
NO_MEAN = "the run was collected before means were kept"


@dataclass(frozen=True, slots=True)
class ActiveFeature:
    """A feature that fires on a token."""

    feature_id: FeatureId
    activation: float
    known: KnownFeature

    @property
    def name(self) -> str:
        """What people call it within its SAE."""
        return unit_name(self.feature_id.sae_id, self.feature_id.feature)

    @property
    def share_of_peak(self) -> float | None:
        """The activation, of the feature's largest in the run; above 1 where it is larger here."""
        return self.activation / self.known.peak if self.known.peak > 0 else None


@dataclass(frozen=True, slots=True)
class InspectedToken:
    """A token as one SAE sees it.

    Attributes:
        unexplained: the share of ‖x − mean‖² that the reconstruction leaves; None where it has
            none, or none is defined.
        features: all that fire, the strongest first.
    """

    unexplained: float | None
    features: tuple[ActiveFeature, ...]


@dataclass(frozen=True, slots=True)
class InspectedSae:
    """A text as one SAE sees it.

    Attributes:
        unexplained: the share over all tokens of the text.
        why_unknown: why there is no such share.
        run_unexplained: the fraction of variance unexplained that was measured in the run.
    """

    sae: CollectedSae
    tokens: tuple[InspectedToken, ...]
    unexplained: float | None
    why_unknown: str | None
    run_unexplained: float | None

    def strongest(self, k: int) -> list[ActiveFeature]:
        """The k features that become strongest in the text, each where it is."""
        peaks: dict[FeatureId, ActiveFeature] = {}
        for token in self.tokens:
            for each in token.features:
                before = peaks.get(each.feature_id)
                if before is None or each.activation > before.activation:
                    peaks[each.feature_id] = each
        return sorted(peaks.values(), key=lambda it: (-it.activation, it.feature_id.feature))[:k]

    def activations(self, features: Sequence[int]) -> Float32[np.ndarray, "F T"]:
        """Of these features on every token; 0 where one is off."""
        row_of = {feature: row for row, feature in enumerate(features)}
        grid = np.zeros((len(row_of), len(self.tokens)), np.float32)
        for place, token in enumerate(self.tokens):
            for each in token.features:
                if each.feature_id.feature in row_of:
                    grid[row_of[each.feature_id.feature], place] = each.activation
        return grid


@dataclass(frozen=True, slots=True)
class LensToken:
    """A token that may come next."""

    text: str
    probability: float


@dataclass(frozen=True, slots=True)
class InspectedLens:
    """What each layer would have come next after each token; layers count from 0.

    Attributes:
        token_id: by falling probability.
        texts: of these tokens.
    """

    token_id: Int32[np.ndarray, "L T K"]
    probability: Float32[np.ndarray, "L T K"]
    texts: Mapping[int, str]

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return len(self.token_id)

    def next_tokens(self, layer: int, place: int) -> list[LensToken]:
        """The most probable ones after a token, counted from 0, by a layer."""
        ids, values = self.token_id[layer, place].tolist(), self.probability[layer, place].tolist()
        return [LensToken(self.texts[n], value) for n, value in zip(ids, values, strict=True)]

    def settled(self, place: int) -> int:
        """From which layer on the most probable token is that of the model itself."""
        best = self.token_id[:, place, 0]
        others = np.flatnonzero(best != best[-1])
        return int(others[-1]) + 1 if len(others) else 0


@dataclass(frozen=True, slots=True)
class Inspection:
    """A text, as a run's model and SAEs see it.

    Attributes:
        lens: None where the model keeps its unembedding in a head that is not loaded.
        n_labels: how many features of the run have a label.
    """

    model: str
    text: str
    prompt: Prompt
    saes: tuple[InspectedSae, ...]
    lens: InspectedLens | None
    n_labels: int

    def as_dict(self, top: int | None = None) -> dict[str, Any]:
        """For `--json`.

        Args:
            top: how many features of a token; None: all that fire.
        """
        return {
            "model": self.model,
            "text": self.text,
            "n_labels": self.n_labels,
            "tokens": [
                {"token_id": int(n), "text": text, "is_special": bool(special)}
                for n, text, special in zip(
                    self.prompt.token_ids, self.prompt.tokens, self.prompt.is_special, strict=True
                )
            ],
            "saes": [_sae_as_dict(each, top) for each in self.saes],
            "lens": None if self.lens is None else _lens_as_dict(self.lens),
        }


def inspect_text(run: LoadedRun, text: str, saes: Sequence[str] = ()) -> Inspection:
    """What fires on each token, what no feature sees of it, and what each layer predicts.

    Args:
        run: whose model reads the text.
        text: the prompt, at most as long as the model's context.
        saes: ids of SAEs of the run, or how they end; all by default.

    Raises:
        UserMistake: the text is empty or too long, the run has no such SAE or none at all, or its
            model or an SAE cannot be loaded any more.
        StoreError: an older version published the run, and it cannot be brought up to date.
    """
    from ..extract.inspection import inspect_prompt
    from ..extract.sites import Site, SiteKind

    with run.store() as store:
        require_current(store, str(run.folder.path))
        wanted = find_saes(store.connection, saes)
        done = read_reconstructions(store.connection)
        found = inspect_prompt(
            run.model,
            [Site(each.layer, cast(SiteKind, each.site)) for each in wanted],
            run.saes(wanted),
            {sae_id: each.mean for sae_id, each in done.items() if each.mean is not None},
            text,
            run.config.corpus.chat,
        )
        return Inspection(
            model=run.model.name,
            text=text,
            prompt=found.prompt,
            saes=tuple(
                _with_labels(store.connection, sae, reading, found.prompt, done.get(sae.sae_id))
                for sae, reading in zip(wanted, found.saes, strict=True)
            ),
            lens=None if found.lens is None else _with_texts(found.lens, run.model.tokenizer),
            n_labels=count_labels(store.connection),
        )


def _with_labels(
    connection: duckdb.DuckDBPyConnection,
    sae: CollectedSae,
    reading: SaeReading,
    prompt: Prompt,
    done: Reconstruction | None,
) -> InspectedSae:
    firings = reading.firings
    known = read_known_features(connection, sae.sae_id, np.unique(firings.feature).tolist())
    fired: list[list[ActiveFeature]] = [[] for _ in prompt.tokens]
    for feature, token, value in zip(
        firings.feature.tolist(), firings.token.tolist(), firings.value.tolist(), strict=True
    ):
        fired[token].append(ActiveFeature(FeatureId(sae.sae_id, feature), value, known[feature]))
    shares: list[float | None] = [None] * len(fired)
    whole, why = None, NO_MEAN if done else NO_RECONSTRUCTION
    if reading.unexplained is not None:
        shares = [
            None if special or not math.isfinite(share) else share
            for share, special in zip(
                reading.unexplained.by_token.tolist(), prompt.is_special, strict=True
            )
        ]
        whole, why = reading.unexplained.over(~prompt.is_special), ""
    return InspectedSae(
        sae=sae,
        tokens=tuple(map(InspectedToken, shares, map(tuple, fired))),
        unexplained=whole,
        why_unknown=why or None,
        run_unexplained=done.fvu if done else None,
    )


def _with_texts(lens: LogitLens, tokenizer: Any) -> InspectedLens:
    from ..extract.models import token_texts

    ids = np.unique(lens.token_id).tolist()
    texts = dict(zip(ids, token_texts(tokenizer, ids), strict=True))
    return InspectedLens(lens.token_id, lens.probability, texts)


def _sae_as_dict(sae: InspectedSae, top: int | None) -> dict[str, Any]:
    return {
        "sae_id": sae.sae.sae_id,
        "site": sae.sae.site,
        "layer": sae.sae.layer,
        "unexplained": sae.unexplained,
        "why_unknown": sae.why_unknown,
        "run_unexplained": sae.run_unexplained,
        "tokens": [
            {
                "unexplained": token.unexplained,
                "n_active": len(token.features),
                "features": [
                    {
                        "feature_id": str(each.feature_id),
                        "feature": each.feature_id.feature,
                        "activation": each.activation,
                        "share_of_peak": each.share_of_peak,
                        **asdict(each.known),
                    }
                    for each in token.features[:top]
                ],
            }
            for token in sae.tokens
        ],
    }


def _lens_as_dict(lens: InspectedLens) -> dict[str, Any]:
    places = range(lens.token_id.shape[1])
    return {
        "settled": [lens.settled(place) for place in places],
        "layers": [
            [[asdict(token) for token in lens.next_tokens(layer, place)] for place in places]
            for layer in range(lens.n_layers)
        ],
    }
