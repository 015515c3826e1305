"""What language models would be asked on paper: calls, tokens, dollars and hours, a feature each.

Calls and tokens a feature were measured (`tests/benchmarks/scoring_cost.py`, the README's table
"What scoring costs": windows of 64 tokens, as many of them as by default); other numbers of windows
scale them. What a screen asks and how many windows looks save is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

from ..evaluate.classic import N_WINDOWS
from ..label.pricing import Price
from ..store.steered_scores import INTERVENTION
from .config import Config
from .endpoint_settings import EndpointSection
from .estimate import ASSUMED_REPLY_TOKENS
from .estimate_ratings import tokens_per_question
from .score_settings import JudgeKind, JudgeSection, SecondOpinion


@dataclass(frozen=True, slots=True)
class PerFeature:
    """Calls for a feature, and the tokens that they read and write."""

    calls: float
    read: float
    written: float

    def times(self, share: float) -> PerFeature:
        """So many times as much."""
        return PerFeature(self.calls * share, self.read * share, self.written * share)


# For a label: the mean that `scopenote estimate` counts in 100 prompts of each kind on the toy
# (512 pieces of the library's source, three SAEs, windows of 64 tokens). A reply is assumed.
PROMPT_TOKENS = {
    "max_activations": 4_769,
    "highlighted": 4_137,
    "with_logits": 4_730,
    "output": 1_437,
}
# For a label that is scored, by the ledger.
RATED: dict[JudgeKind, PerFeature] = {
    "chat": PerFeature(94.6, 68_266, 23_058),
    "chat_sparse": PerFeature(6.0, 23_530, 480),
}
OPINIONS: dict[SecondOpinion, PerFeature] = {
    "detection": PerFeature(6.8, 5_127, 202),
    "fuzzing": PerFeature(6.8, 5_638, 202),
    "discrimination": PerFeature(14.9, 7_448, 60),
}
_USUAL = JudgeSection()


@dataclass(frozen=True, slots=True)
class Asked:
    """What one way of asking would take.

    Attributes:
        usd: None where the model's price is not known.
        hours: at the endpoint's limits; None for batches and for a model in this process.
        basis: what it was computed from.
    """

    what: str
    model: str
    n_labels: int
    n_calls: int
    prompt_tokens: int
    completion_tokens: int
    usd: Decimal | None
    hours: float | None
    basis: str


def estimate_asking(config: Config, n_features: int, seconds_per_call: float) -> tuple[Asked, ...]:
    """What labelling and scoring so many features would ask; nothing where no model is asked."""
    if not config.explain.prompted:
        return ()
    n = min(n_features, config.explain.features or n_features)
    return (
        *_writing(config, n, seconds_per_call),
        *_rating(config, n, seconds_per_call),
        *_intervening(config, n, seconds_per_call),
    )


def _writing(config: Config, n: int, seconds: float) -> Iterator[Asked]:
    explain = config.explain
    for explainer in explain.prompted:
        read = PROMPT_TOKENS[explainer]
        yield _asked(
            explainer,
            n * explain.candidates,
            PerFeature(1, read, ASSUMED_REPLY_TOKENS),
            explain.chat,
            seconds,
            f"{n:,} features × {explain.candidates} candidates; {read:,} tokens a prompt, measured "
            f"on the toy; {ASSUMED_REPLY_TOKENS} a reply, assumed",
            explain.chat.batch,
        )


def _rating(config: Config, n: int, seconds: float) -> Iterator[Asked]:
    judge = config.score.chat
    n_rivals = config.explain.candidates * len(config.explain.prompted)
    n_labels = n * (1 + (n_rivals if n_rivals > 1 else 0))
    windows = judge.active_windows + judge.silent_windows + N_WINDOWS
    share = windows / (_USUAL.active_windows + _USUAL.silent_windows + N_WINDOWS)
    chosen = f" ({n_rivals} candidates to choose from and the best)" if n_rivals > 1 else ""
    for kind in config.score.judges:
        if kind == "local":
            continue  # no call is made; the time that it takes is not known here
        each = _read_only(RATED["chat"]) if kind == "vllm" else RATED[kind]
        said = f"{n_labels:,} labels{chosen} on {windows} windows; {each.calls:g} calls, measured"
        said += f" for {round(windows / share)}" if share != 1 else ""
        yield _asked(f"scores by {kind}", n_labels, each.times(share), judge, seconds, said)
    opinion_share = judge.opinion_windows / _USUAL.opinion_windows
    for opinion in judge.second_opinions:
        each = OPINIONS[opinion].times(opinion_share)
        said = f"{n:,} labels, {each.calls:g} calls each, measured"
        yield _asked(opinion, n, each, judge, seconds, said)


def _intervening(config: Config, n: int, seconds: float) -> Iterator[Asked]:
    intervention = config.score.intervention
    n_labels = min(n, intervention.features)
    if config.score.asked_judges and n_labels and intervention.questions:
        each = PerFeature(1, tokens_per_question(), 3).times(intervention.questions)
        said = f"{n_labels:,} labels, {intervention.questions} calls each; outputs of usual length"
        yield _asked(INTERVENTION, n_labels, each, config.score.chat, seconds, said)


def _read_only(chat: PerFeature) -> PerFeature:
    """The answer is read as well, and one token is written for form's sake."""
    return PerFeature(chat.calls, chat.read + chat.written, chat.calls)


def _asked(
    what: str,
    n_labels: int,
    each: PerFeature,
    endpoint: EndpointSection,
    seconds: float,
    basis: str,
    in_batch: bool = False,
) -> Asked:
    assert endpoint.model is not None, "the configuration was validated"
    price: Price | None = endpoint.known_prices().get(endpoint.model)
    n_calls, read, written = (
        round(n_labels * amount) for amount in (each.calls, each.read, each.written)
    )
    hours: float | None
    hours, limit = _hours(endpoint, n_calls, read + written, seconds)
    if endpoint.local:
        hours, limit = None, "not known for a model in this process"
    priced = "; price not known" if price is None else f"; prices of {price.as_of}"
    return Asked(
        what=what,
        model=endpoint.model,
        n_labels=n_labels,
        n_calls=n_calls,
        prompt_tokens=read,
        completion_tokens=written,
        usd=None if price is None else price.cost(read, 0, written, in_batch),
        hours=None if in_batch else hours,
        basis=basis + priced + (", in batches" if in_batch else f"; time: {limit}"),
    )


def _hours(
    endpoint: EndpointSection, n_calls: int, n_tokens: int, seconds: float
) -> tuple[float, str]:
    """How long these calls take, and what makes them take so long."""
    by_limit = {
        f"{endpoint.concurrency} calls at once of {seconds:g} s (assumed)": (
            n_calls * seconds / endpoint.concurrency
        )
    }
    if endpoint.requests_per_minute is not None:
        said = f"{endpoint.requests_per_minute:,} requests a minute"
        by_limit[said] = n_calls / endpoint.requests_per_minute * 60
    if endpoint.tokens_per_minute is not None:
        said = f"{endpoint.tokens_per_minute:,} tokens a minute"
        by_limit[said] = n_tokens / endpoint.tokens_per_minute * 60
    limit = max(by_limit, key=by_limit.__getitem__)
    return by_limit[limit] / 3600, limit
