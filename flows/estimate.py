"""What labelling would cost, before anything is spent: the real prompts of a sample, counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from itertools import groupby
from typing import Any

import duckdb
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..label.pricing import FREE, Price, in_dollars
from ..label.prompted import PROMPTED, PromptedExplainer
from ..label.prompts import RenderedPrompt
from ..store.database import Store
from .estimate_ratings import RatingEstimate, estimate_ratings
from .explain_settings import ExplainSection
from .feature_prompts import PromptSource
from .label_plan import LabelPlan, plan_labels
from .score_settings import ScoreSection

SAMPLE = 100
# Features that are read together, with those between them.
_NEAR = 32
# What a reply has where none came yet: three short texts in JSON.
ASSUMED_REPLY_TOKENS = 150


@dataclass(frozen=True, slots=True)
class ExplainerEstimate:
    """What one explainer's labels would take.

    Attributes:
        n_features: features that it has not labelled.
        n_sampled: of how many of them the prompts were rendered.
        n_calls: about how many calls, a repair of a bad reply left out; features without a
            prompt need none.
        prompt_tokens: about how many, rather too many.
        completion_tokens: about how many.
        usd: at the model's price without any cache; None where that is not known.
        usd_at_most: were every reply as long as it may be.
    """

    explainer: str
    n_features: int
    n_sampled: int
    n_calls: int
    prompt_tokens: int
    completion_tokens: int
    usd: Decimal | None
    usd_at_most: Decimal | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the labels that are missing would take.

    Attributes:
        model: that would write labels; None where no explainer asks one.
        reply_tokens: what a reply is taken to have.
        n_replies: of how many replies that is the mean; 0: it is assumed.
        in_batch: the dollars are those of batches.
        ratings: what having the labels rated would take, a row for each way of asking.
    """

    model: str | None
    reply_tokens: int
    n_replies: int
    explainers: tuple[ExplainerEstimate, ...]
    price: Price | None
    in_batch: bool = False
    ratings: tuple[RatingEstimate, ...] = ()

    @property
    def n_calls(self) -> int:
        """All calls."""
        return sum(each.n_calls for each in self._all)

    @property
    def usd(self) -> Decimal | None:
        """All dollars; None where the model's price is not known."""
        return _sum([each.usd for each in self._all])

    @property
    def usd_at_most(self) -> Decimal | None:
        """All dollars, were every reply as long as it may be."""
        return _sum([each.usd_at_most for each in self._all])

    @property
    def models(self) -> tuple[str, ...]:
        """Those that would be asked."""
        named = (self.model, *(each.model for each in self.ratings))
        return tuple(dict.fromkeys(name for name in named if name is not None))

    @property
    def _all(self) -> Sequence[ExplainerEstimate | RatingEstimate]:
        return (*self.explainers, *self.ratings)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        content = asdict(self)
        return {**content, "n_calls": self.n_calls, "usd": self.usd}


def estimate_labels(
    store: Store, settings: ExplainSection, scoring: ScoreSection | None = None
) -> Estimate:
    """What the explainers that ask a model would take for all that they have not labelled.

    Args:
        store: the published database.
        settings: how labels are written.
        scoring: how they are scored; None to leave that out.
    """
    if not settings.prompted:
        return _of_ratings(store, scoring)
    asking = settings.asking()
    price = settings.chat.known_prices().get(asking.model)
    n_replies, reply_tokens = _replies_so_far(store.connection, asking.model)
    source = PromptSource.of(store)
    plan = plan_labels(store, settings, lambda: source)
    estimates = [
        _estimate(source, PROMPTED[name], plan, settings, price, reply_tokens)
        for name in settings.prompted
    ]
    ratings: tuple[RatingEstimate, ...] = ()
    if scoring is not None:
        to_come = [each.n_calls for each in estimates]
        ratings = estimate_ratings(store, scoring, to_come, settings.candidates)
    return Estimate(
        model=asking.model,
        reply_tokens=reply_tokens,
        n_replies=n_replies,
        explainers=tuple(estimates),
        price=price,
        in_batch=settings.chat.batch,
        ratings=ratings,
    )


def _of_ratings(store: Store, scoring: ScoreSection | None) -> Estimate:
    """What rating labels would take where none is to be written by a model: those of others."""
    price: Price | None = None
    ratings: tuple[RatingEstimate, ...] = ()
    if scoring is not None and scoring.chat.model is not None:
        price = scoring.chat.known_prices().get(scoring.chat.model)
        ratings = estimate_ratings(store, scoring, [], candidates=1)
    return Estimate(None, 0, 0, (), price, ratings=ratings)


def render_estimate(estimate: Estimate) -> RenderableType:
    """The page of `scopenote estimate`."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("for", overflow="fold")
    for column in ("features", "calls", "tokens read", "written", "dollars", "at most"):
        table.add_column(column, justify="right", no_wrap=True)
    for each in estimate.explainers:
        table.add_row(
            Text(each.explainer, style="cyan"),
            f"{each.n_features:,}",
            f"{each.n_calls:,}",
            f"{each.prompt_tokens:,}",
            f"{each.completion_tokens:,}",
            _dollars(each.usd),
            _dollars(each.usd_at_most),
        )
    for row in estimate.ratings:
        table.add_row(
            Text(row.what, style="cyan"),
            f"{row.n_labels:,} labels" if row.n_labels else "",
            f"{row.n_calls:,}",
            f"{row.prompt_tokens:,}",
            f"{row.completion_tokens:,}",
            _dollars(row.usd),
            _dollars(row.usd_at_most),
        )
    n_sampled = sum(each.n_sampled for each in estimate.explainers)
    basis = (
        f"the mean of {estimate.n_replies:,} replies"
        if estimate.n_replies
        else "assumed, as there is no reply to go by"
    )
    in_batch = ", in a batch" if estimate.in_batch else ""
    if estimate.price is None:
        section = "score" if estimate.model is None else "explain"
        price = (
            f"The model's price is not known: name a table of your own in `{section}.chat.prices`."
        )
    elif estimate.price == FREE:
        price = "The model runs on this machine, which nobody charges for."
    else:
        price = (
            f"Prices of {estimate.price.as_of}{in_batch}, without what the provider may take off "
            "for its cache."
        )
    if estimate.model is None:
        basis = "From windows as they would be sent."
    else:
        basis = (
            f"From {n_sampled:,} prompts as they would be sent; {estimate.reply_tokens:,} tokens "
            f"a reply, {basis}."
        )
    calls = f": {estimate.n_calls:,} calls, about {_dollars(estimate.usd)}"
    if not estimate.models:
        return Text("No label is left to be rated.")
    return Group(
        Text.assemble("Asking ", (" and ".join(estimate.models), "bold"), calls),
        "",
        table,
        "",
        Text(f"{basis} {price}", style="dim"),
    )


def _estimate(
    source: PromptSource,
    explainer: PromptedExplainer,
    plan: LabelPlan,
    settings: ExplainSection,
    price: Price | None,
    reply_tokens: int,
) -> ExplainerEstimate:
    asking = settings.asking()
    missing: dict[str, list[int]] = {}
    for _, name, by_sae in plan.groups():
        for sae_id, features in by_sae.items() if name == explainer.name else ():
            missing[sae_id] = sorted([*missing.get(sae_id, []), *features])
    n_features = sum(map(len, missing.values()))
    sampled = _spread(missing, SAMPLE)
    sizes: list[int] = []
    with source.store.cursor() as connection:
        for (sae_id, _), near in groupby(sampled, key=lambda each: (each[0], each[1] // _NEAR)):
            features = [feature for _, feature in near]
            for _, rendered in source.render(connection, explainer, sae_id, features):
                prompt = asking.fitted(rendered)
                if isinstance(prompt, RenderedPrompt):
                    sizes.append(prompt.estimated_tokens)
    share = settings.candidates * n_features / max(1, len(sampled))
    n_calls = round(len(sizes) * share)
    prompt_tokens = round(sum(sizes) * share)
    written = n_calls * reply_tokens
    longest = n_calls * settings.chat.max_reply_tokens
    in_batch = settings.chat.batch
    return ExplainerEstimate(
        explainer=explainer.name,
        n_features=n_features,
        n_sampled=len(sampled),
        n_calls=n_calls,
        prompt_tokens=prompt_tokens,
        completion_tokens=written,
        usd=None if price is None else price.cost(prompt_tokens, 0, written, in_batch),
        usd_at_most=None if price is None else price.cost(prompt_tokens, 0, longest, in_batch),
    )


def _spread(missing: Mapping[str, Sequence[int]], n: int) -> list[tuple[str, int]]:
    """At most n of the features, evenly over all of them."""
    every = [(sae_id, feature) for sae_id, features in missing.items() for feature in features]
    n = min(n, len(every))
    return [every[(2 * number + 1) * len(every) // (2 * n)] for number in range(n)]


def _replies_so_far(connection: duckdb.DuckDBPyConnection, model: str) -> tuple[int, int]:
    rows = connection.execute(
        """
        SELECT count(completion_tokens), avg(completion_tokens) FROM calls
        WHERE purpose = 'explain' AND model = $model AND reply IS NOT NULL
        """,
        {"model": model},
    ).fetchall()
    n, mean = rows[0]
    return (n, round(mean)) if n else (0, ASSUMED_REPLY_TOKENS)


def _sum(amounts: Sequence[Decimal | None]) -> Decimal | None:
    known = [amount for amount in amounts if amount is not None]
    return sum(known, Decimal(0)) if len(known) == len(amounts) else None


def _dollars(usd: Decimal | None) -> str:
    return "unknown" if usd is None else in_dollars(usd)
