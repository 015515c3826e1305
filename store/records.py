"""The values that pass between rooms: features, windows, samples, labels, scores and calls.

Single things are frozen dataclasses; what comes by the thousand is held in arrays, one row a
window. Shape letters: W windows, T tokens in a window, P windows of the background pool,
K kept windows of a feature, V vocabulary.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float32, Float64, Int32, Int64, UInt64

from .splits import Split
from .unit_names import unit_name

ContextKind = Literal["top", "sample"]
LabelSource = Literal["auto", "human", "imported"]
Status = Literal["done", "failed"]
# Of a label whose author takes it back: `withdrawn`.
LabelStatus = Literal["done", "failed", "withdrawn"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, order=True)
class FeatureId:
    """A feature, written `{model}/{source}/{index}` as Neuronpedia does.

    In a neuron basis the index is written `1393+` or `1393-`, as `unit_names.py` says.
    """

    sae_id: str
    feature: int

    def __str__(self) -> str:
        return f"{self.sae_id}/{unit_name(self.sae_id, self.feature)}"


@dataclass(frozen=True, slots=True)
class Windows:
    """Stretches of text, one row a window, padded on the right.

    Attributes:
        window_id: names of the occurrences.
        token_hash: the sampling hash of the exact token ids.
        document: a number that is the document's own, the same wherever it is read.
        token_ids: padded with -1.
        copies: how many occurrences this row stands for.
    """

    window_id: UInt64[np.ndarray, " W"]
    token_hash: UInt64[np.ndarray, " W"]
    document: Int64[np.ndarray, " W"]
    token_ids: Int32[np.ndarray, "W T"]
    copies: Int64[np.ndarray, " W"]

    def __len__(self) -> int:
        return len(self.window_id)

    @property
    def is_token(self) -> Bool[np.ndarray, "W T"]:
        """True where there is a token, False where there is padding."""
        return self.token_ids >= 0

    @classmethod
    def joined(cls, parts: Sequence[Windows]) -> Windows:
        """The windows of all parts, one after another."""
        return cls(
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("window_id", "token_hash", "document", "token_ids", "copies")
            )
        )

    def take(self, rows: Array) -> Windows:
        """The windows at these row numbers (or where this mask is true)."""
        return Windows(
            self.window_id[rows],
            self.token_hash[rows],
            self.document[rows],
            self.token_ids[rows],
            self.copies[rows],
        )


@dataclass(frozen=True, slots=True)
class Stratum:
    """Windows that stand for a known number of windows of the population.

    Attributes:
        windows: the sampled windows.
        activations: the feature's true activation at each token, 0 at padding.
        population_windows: how many windows, copies counted, the stratum has in the split.
    """

    windows: Windows
    activations: Float32[np.ndarray, "W T"]
    population_windows: int

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def weights(self) -> Float64[np.ndarray, " W"]:
        """How many windows of the population each row stands for; they sum to the total."""
        copies = self.windows.copies.astype(np.float64)
        total = copies.sum()
        return copies * (self.population_windows / total) if total else copies


@dataclass(frozen=True, slots=True)
class FeatureContexts:
    """All that is kept of one feature in one split.

    Attributes:
        feature_id: which feature.
        split: the split all windows are from.
        active: the uniform sample of the windows in which the feature fires.
        silent: background windows in which it never fires (activations all zero).
        top: the windows with the highest peaks, best first (a sample of nothing; its
            `population_windows` is their own number).
        n_windows, n_active_windows, n_tokens, n_active: exact counts of the whole split.
    """

    feature_id: FeatureId
    split: Split
    active: Stratum
    silent: Stratum
    top: Stratum
    n_windows: int
    n_active_windows: int
    n_tokens: int
    n_active: int


@dataclass(frozen=True, slots=True)
class Label:
    """A label proposed for a feature, or the record that none could be made.

    Attributes:
        window_ids: the windows it was written from, in the order in which they were shown.
        n_dropped_contexts: how many more would have been shown if the model took longer prompts;
            None where no model was asked.
        generation: how often the feature had been labelled before on contexts that have changed.
        why: it was made; None where it is the only one there could be.
    """

    feature_id: FeatureId
    text: str | None
    explanation: str | None
    explainer: str
    prompt_version: str
    window_ids: tuple[int, ...]
    model: str | None = None
    request_hash: str | None = None
    draw: int = 0
    source: LabelSource = "auto"
    author: str | None = None
    status: LabelStatus = "done"
    reason: str | None = None
    n_dropped_contexts: int | None = None
    generation: int = 0
    why: str | None = None

    @property
    def label_id(self) -> str:
        """A hash of feature, explainer, prompt version, contexts shown and draw (the contract).

        Where a model was asked, of its name too: several may label the same features. A human or
        imported label has no contexts behind it: its author and text stand in.
        """
        parts: list[Any] = [str(self.feature_id), self.explainer, self.prompt_version]
        parts += [sorted(self.window_ids), self.draw]
        if self.model is not None:
            parts.append(self.model)
        if self.source != "auto":
            parts += [self.source, self.author, self.text]
        return content_hash(parts)


@dataclass(frozen=True, slots=True)
class CollectedChunk:
    """A chunk of the corpus that is collected already.

    Attributes:
        n_documents: fewer than others have where the corpus ended with it; it stays so when
            the corpus grows.
    """

    chunk_id: str
    n_documents: int
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Score:
    """One number for a label, or NULL with the reason why it is undefined."""

    label_id: str
    scorer: str
    simulator: str
    metric: str
    split: Split
    value: float | None
    reason: str | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    null_value: float | None = None
    lift: float | None = None
    lift_ci_low: float | None = None
    lift_ci_high: float | None = None
    lift_reason: str | None = None
    n_windows: int = 0
    n_tokens: int = 0
    design: dict[str, Any] = field(default_factory=dict)
    contexts_hash: str = ""


@dataclass(frozen=True, slots=True)
class Simulation:
    """Predicted activations of one window under one label, or why there are none.

    Attributes:
        scorer: what the prediction was made for: `simulation`, or with another feature's label
            `shuffled_label`, or `screen`.
        captured_mass: mean share of the model's probability that lay on ratings; None where that
            is not known.
    """

    label_id: str
    simulator: str
    window_id: int
    predicted: Float32[np.ndarray, " T"] | None
    status: Status = "done"
    reason: str | None = None
    scorer: str = "simulation"
    captured_mass: float | None = None


# The column for dollars is DECIMAL(38, 18): below these bounds no sum of calls overflows it.
USD_DECIMALS = 18
_TOO_MANY_USD = 10**13
_TOO_MANY_TOKENS = 10**12


@dataclass(frozen=True, slots=True)
class Call:
    """A request to a language model, and what came of it: a reply, an error, or both.

    It has no place for a key. What neither JSON nor the database can hold is replaced at once, so
    that a call read back equals the one written: half a surrogate pair becomes "�", a number
    that is not finite its name (`float` reads it). So derive what you derive from `reply` here.

    Attributes:
        request_hash: of all that decides the reply, the draw included.
        purpose: what it was made for, in a word, such as `explain`.
        model: as it was asked for.
        request: JSON-like, as it was sent: `messages` and what else decides the reply.
        n_static: how many of the first messages other requests share; stored once for all.
        reply: JSON-like, as it arrived, of the logprobs those that are to be kept; None: none did.
        prompt_tokens, cached_tokens, completion_tokens: as the endpoint counted, the cached
            among the prompt's; None where it did not say.
        usd: what it cost; 0 where it is known to be free, None where that is not known.
        seconds: from the first attempt to the end of the last.
        attempts: how often it was sent.
        error: why there is no reply, or none that can be used.
        created_at: when it ended, with its zone.
        draw: which of several replies to the same request this is, from 0.

    Raises:
        ValueError: neither reply nor error, or a number that no call has.
    """

    request_hash: str
    purpose: str
    model: str
    request: Mapping[str, Any]
    n_static: int
    reply: Any
    prompt_tokens: int | None
    cached_tokens: int | None
    completion_tokens: int | None
    usd: Decimal | None
    seconds: float
    attempts: int
    error: str | None
    created_at: datetime
    draw: int = 0

    def __post_init__(self) -> None:
        for name in ("purpose", "model", "request", "reply", "error"):
            object.__setattr__(self, name, _storable(getattr(self, name)))
        if self.reply is None and self.error is None:
            raise ValueError(f"call {self.request_hash} has neither a reply nor an error")
        for tokens in (self.prompt_tokens, self.cached_tokens, self.completion_tokens):
            if tokens is not None and not 0 <= tokens < _TOO_MANY_TOKENS:
                raise ValueError(f"call {self.request_hash} has {tokens} tokens")
        if self.usd is not None and not _is_storable_usd(self.usd):
            raise ValueError(f"call {self.request_hash} costs {self.usd} dollars")
        if self.created_at.tzinfo is None:
            raise ValueError(f"call {self.request_hash} ended at a time without a zone")


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """A request to a language model as the record keeps it, before anything came of it.

    Attributes are those of `Call`.
    """

    request_hash: str
    request: Mapping[str, Any]
    n_static: int
    draw: int = 0

    @property
    def model(self) -> str:
        """The model's name as it is asked for."""
        return str(self.request["model"])


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        if value.isascii():
            return value
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {_storable(key): _storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(item) for item in value]
    return value


def _is_storable_usd(usd: Decimal) -> bool:
    exponent = usd.as_tuple().exponent
    # Of what is no number the exponent is a letter.
    return isinstance(exponent, int) and exponent >= -USD_DECIMALS and 0 <= usd < _TOO_MANY_USD


def content_hash(value: Any) -> str:
    """A hash of a JSON-like value: 16 hexadecimal digits."""
    content = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class ScoreChange:
    """A difference of scores, now less before.

    Attributes:
        low, high: its interval; None with too few features for one.
        n: features behind it; for medians, of the state that has fewer.
    """

    value: float
    low: float | None
    high: float | None
    n: int
