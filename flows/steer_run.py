"""Steering by the features of a run: from ids as people write them to texts and figures.

In a notebook:

    run = LoadedRun("demo")
    found = steer(run, "def read(self", {"1-res-1k/8": 100})
    print(found.steered[0].text)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..store.byte_pieces import join_bytes
from ..store.errors import UserMistake
from ..store.feature_page import find_feature
from ..store.tried_feature import TriedFeature, read_collected_saes, read_tried_feature
from .compare_runs import require_current
from .loaded_run import LoadedRun

if TYPE_CHECKING:
    import duckdb

    from ..extract.feature_changes import ChangeMode, ModelChange
    from ..extract.saes import Sae
    from ..extract.steering import NextToken
    from ..extract.steering_trial import PromptReading, Written


@dataclass(frozen=True, slots=True)
class SteeredBy:
    """A feature or neuron that is changed.

    Attributes:
        name: the feature's id, or `layer 20, neuron 1393`.
        mode: `add`, `clamp` or `ablate`; of a neuron `hold`.
        label: the text in force, if there is one.
        peak: the feature's largest activation in the run, if it was ever active.
    """

    name: str
    mode: str
    label: str | None = None
    peak: float | None = None


@dataclass(frozen=True, slots=True)
class SteeredText:
    """What the model wrote under some changes.

    Attributes:
        strength: what was tried here; None where each change has one of its own, or none.
        strengths: of each change; None of what is ablated. Empty without changes.
        text: what it wrote.
        tokens, token_ids: the same by tokens.
        has_ended: whether the model ended it before as many tokens were written as wanted.
        perplexity: of what was written under the model as it is; None where nothing was.
        next_tokens: the five most probable first tokens without changes and with these.
        readings: of each change, at each token of the prompt.
    """

    strength: float | None
    strengths: tuple[float | None, ...]
    text: str
    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    has_ended: bool
    perplexity: float | None
    next_tokens: tuple[NextToken, ...]
    readings: tuple[PromptReading, ...]


@dataclass(frozen=True, slots=True)
class Steering:
    """A prompt continued by a run's model, by itself and under changes.

    Attributes:
        prompt: its tokens' texts, without BOS.
        seed: of the draws; None where the most probable token was taken each time.
        with_bos: whether BOS was changed too.
        steered_by: what is changed.
        plain: without changes.
        steered: one for each strength that was tried.
    """

    prompt: tuple[str, ...]
    seed: int | None
    with_bos: bool
    steered_by: tuple[SteeredBy, ...]
    plain: SteeredText
    steered: tuple[SteeredText, ...]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def steer(
    run: LoadedRun,
    prompt: str,
    features: Mapping[str, float | None] | None = None,
    *,
    neurons: Mapping[int, float | None] | None = None,
    layer: int | None = None,
    mode: ChangeMode = "add",
    strengths: Sequence[float] = (),
    max_tokens: int = 30,
    seed: int | None = None,
    with_bos: bool = False,
) -> Steering:
    """Continues a prompt without and with features or neurons of a run's model changed.

    Args:
        run: whose model and SAEs it is by.
        prompt: text that stands after BOS.
        features: ids (`model/source/index`, `source/index`, `index`) and strengths, in units of
            the activation; None for each of `strengths` in turn, and where features are ablated.
        neurons: coordinates of what a layer's MLP adds to the residual stream, and the values
            that they are held at; None for each of `strengths` in turn.
        layer: of the neurons, from 0; by default that of the run's SAEs, if it is one.
        mode: *add* adds strength times the decoder row, *clamp* sets the activation to it and
            keeps the SAE's error, *ablate* sets it to 0.
        strengths: to be tried one after another.
        max_tokens: how many are written at most.
        seed: of the draws; None takes the most probable token each time.
        with_bos: whether BOS is changed too, as in numbers that some publish.

    Raises:
        UserMistake: a feature, neuron or strength is none of the run or the model, or the prompt
            is empty or too long.
    """
    named, held = dict(features or {}), dict(neurons or {})
    tried = _strengths((*named.values(), *held.values()), mode, strengths)
    with run.store() as store:
        require_current(store, str(run.folder.path))
        found = [_find(store.connection, written) for written in named]
        if held and layer is None:
            layer = _only_layer(store.connection)

    from ..extract.feature_changes import require_number
    from ..extract.steering_trial import try_changes

    for each in tried:
        for name, strength in zip((*named, *held), each, strict=True):
            require_number(strength or 0.0, str(name))
    # Once each: an SAE may take gigabytes.
    saes = {it.sae.sae_id: run.sae(it.sae) for it in found}
    features_of = [(saes[it.sae.sae_id], it.feature_id.feature) for it in found]
    made = [_changes(features_of, layer, list(held), mode, each) for each in tried]
    trial = try_changes(run.model, made, prompt, max_tokens, seed, with_bos)
    steered_by = [SteeredBy(str(it.feature_id), mode, it.label, it.peak) for it in found]
    steered_by += [SteeredBy(f"layer {layer}, neuron {neuron}", "hold") for neuron in held]
    swept: Sequence[float | None] = strengths or [None] * len(tried)
    tokenizer = run.model.tokenizer
    texts = [
        _as_text(tokenizer, written, strength, each, trial.plain)
        for written, strength, each in zip(trial.steered, swept, tried, strict=True)
    ]
    return Steering(
        prompt=trial.prompt,
        seed=seed,
        with_bos=with_bos,
        steered_by=tuple(steered_by),
        plain=_as_text(tokenizer, trial.plain, None, (), trial.plain),
        steered=tuple(texts),
    )


def _strengths(
    given: tuple[float | None, ...], mode: ChangeMode, strengths: Sequence[float]
) -> list[tuple[float | None, ...]]:
    """The strength of each change, for each text that is to be written.

    Raises:
        UserMistake: there are no changes, or no strengths, or some that nothing takes.
    """
    if not given:
        raise UserMistake(
            "Nothing is to be changed.", expected="a feature, `--feature ID`, or a neuron"
        )
    n_open = given.count(None)
    if mode == "ablate":
        if strengths or n_open < len(given):
            raise UserMistake("What is ablated is set to 0.", mend="leave out the strengths")
        return [given]
    if n_open and not strengths:
        raise UserMistake(
            "How strong is not said.",
            expected="one number for all (`--strength`, of neurons `--value`), several "
            "(`--sweep`), or one of its own for each (`--feature ID=100`)",
        )
    if strengths and not n_open:
        raise UserMistake(
            "Every change has a strength of its own, so that nothing takes another.",
            found=", ".join(f"{strength:g}" for strength in strengths),
            mend="leave out the one or the other",
        )
    if not n_open:
        return [given]
    return [tuple(all_ if one is None else one for one in given) for all_ in strengths]


def _find(connection: duckdb.DuckDBPyConnection, written: str) -> TriedFeature:
    return read_tried_feature(connection, find_feature(connection, written))


def _only_layer(connection: duckdb.DuckDBPyConnection) -> int:
    layers = sorted({sae.layer for sae in read_collected_saes(connection)})
    if len(layers) != 1:
        raise UserMistake(
            "It is not said which layer's neuron is meant.",
            found=f"SAEs of layers {', '.join(map(str, layers))}" if layers else "no SAE",
            mend="name it with `--layer`",
        )
    return layers[0]


def _changes(
    features: Sequence[tuple[Sae, int]],
    layer: int | None,
    neurons: Sequence[int],
    mode: ChangeMode,
    strengths: Sequence[float | None],
) -> list[ModelChange]:
    """What is changed at once; features come first."""
    from ..extract.feature_changes import FeatureChange, HeldNeuron

    values = [strength or 0.0 for strength in strengths]
    made: list[ModelChange] = [
        FeatureChange(sae, feature, mode, value)
        for (sae, feature), value in zip(features, values, strict=False)
    ]
    for neuron, value in zip(neurons, values[len(features) :], strict=True):
        assert layer is not None, "a neuron's layer is known by now"
        made.append(HeldNeuron(layer, neuron, value))
    return made


def _as_text(
    tokenizer: Any,
    written: Written,
    strength: float | None,
    strengths: tuple[float | None, ...],
    plain: Written,
) -> SteeredText:
    from ..extract.steering import next_tokens_of

    own = written.continuation
    return SteeredText(
        strength=strength,
        strengths=strengths,
        text="".join(join_bytes(own.tokens, [0.0] * len(own.tokens))[0]),
        tokens=own.tokens,
        token_ids=own.token_ids,
        has_ended=own.has_ended,
        perplexity=written.perplexity,
        next_tokens=next_tokens_of(tokenizer, plain.continuation.probabilities, own.probabilities),
        readings=written.readings,
    )
