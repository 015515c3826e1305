"""The command that has a run's model write under changed features or neurons."""

from __future__ import annotations

import math
import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..store.errors import UserMistake
from .terminal import print_json, print_page, program

# More than that would fill screens, and most models' contexts.
_MOST_TOKENS = 2000


class Mode(StrEnum):
    """What is done to a feature, as it is typed."""

    add = "add"
    clamp = "clamp"
    ablate = "ablate"


def steer(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the model goes on from.")],
    feature: Annotated[
        list[str] | None,
        typer.Option(
            "--feature",
            metavar="ID[=S]",
            help="A feature, perhaps with a strength of its own; may be repeated.",
        ),
    ] = None,
    strength: Annotated[
        str | None,
        typer.Option(
            "--strength", metavar="S", help="For all features, in units of their activation."
        ),
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            "--sweep", metavar="S,S,…", help="Several strengths instead, tried in turn: -100,0,100."
        ),
    ] = None,
    mode: Annotated[
        Mode | None,
        typer.Option(
            "--mode",
            help="add: strength times the decoder row, the default; clamp: set the activation, "
            "the rest of the token as it is; ablate: set it to 0.",
        ),
    ] = None,
    neuron: Annotated[
        list[str] | None,
        typer.Option(
            "--neuron",
            metavar="N[=V]",
            help="A coordinate of the MLP's output, to be held at a value; may be repeated.",
        ),
    ] = None,
    value: Annotated[
        str | None, typer.Option("--value", metavar="V", help="For all neurons.")
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option("--layer", min=0, help="Of the neurons, if the run's SAEs are of several."),
    ] = None,
    max_tokens: Annotated[
        int,
        typer.Option("--max-tokens", min=1, max=_MOST_TOKENS, help="How many are written at most."),
    ] = 30,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            min=0,
            max=2**63 - 1,
            help="Draw the tokens by it; otherwise the most probable is taken each time.",
        ),
    ] = None,
    with_bos: Annotated[
        bool, typer.Option("--with-bos", help="Change BOS too, as in some published numbers.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """What the model writes with a feature turned up, set or off."""
    features = _with_numbers("--feature", feature or [])
    neurons = {
        _neuron(name): number for name, number in _with_numbers("--neuron", neuron or []).items()
    }
    strengths = _strengths(strength, sweep)
    if not features and not neurons:
        raise UserMistake(
            "It is not said what to steer by.",
            expected="`--feature ID`, or `--neuron N`",
            mend=f"`{program()} steer {shlex.quote(str(run))} {shlex.quote(prompt)} --feature ID "
            "--strength 100`",
        )
    if mode is Mode.add and not features:
        raise UserMistake(
            "A neuron is held at a value, not added to.", mend="leave out `--mode add`"
        )
    if value is not None:
        held = _number("--value", value)
        neurons = {name: held if number is None else number for name, number in neurons.items()}
    if value is not None and not neurons:
        raise UserMistake("`--value` belongs to `--neuron`.", mend="`--strength` is for features")

    from .loaded_run import LoadedRun
    from .steer_page import render_steering
    from .steer_run import steer as steer_by

    found = steer_by(
        LoadedRun(run),
        prompt,
        features,
        neurons=neurons,
        layer=layer,
        mode=(mode or Mode.add).value,
        strengths=strengths,
        max_tokens=max_tokens,
        seed=seed,
        with_bos=with_bos,
    )
    if json:
        print_json(found.as_dict())
    else:
        print_page(render_steering(found))


def _strengths(strength: str | None, sweep: str | None) -> list[float]:
    if strength is None:
        return [] if sweep is None else [_number("--sweep", one) for one in sweep.split(",")]
    if sweep is not None:
        raise UserMistake(
            "Either one strength is tried, or several.",
            found="`--strength` and `--sweep`",
            mend="leave out the one or the other",
        )
    return [_number("--strength", strength)]


def _with_numbers(option: str, written: list[str]) -> dict[str, float | None]:
    """Names, each with the number behind its `=`, if it has one."""
    found: dict[str, float | None] = {}
    for one in written:
        # A name may have such a sign itself, but not behind its last slash.
        path, slash, last = one.rpartition("/")
        index, has_number, number = last.partition("=")
        name = f"{path}{slash}{index}".strip()
        if name in found:
            raise UserMistake("Something is changed twice.", where=option, found=name)
        found[name] = _number(f"{option} {name}", number) if has_number else None
    return found


def _number(option: str, written: str) -> float:
    try:
        # As people write it, and as a page shows it.
        number = float(written.strip().replace("−", "-"))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserMistake(
            "This is not a number to steer by.",
            where=option,
            found=written or "nothing",
            expected="a finite number, such as 100 or -2.5",
        )
    return number


def _neuron(name: str) -> int:
    if name.isascii() and name.isdecimal():
        return int(name)
    raise UserMistake(
        "This is not a neuron.",
        where="--neuron",
        found=name,
        expected="the number of a coordinate of the MLP's output, such as 1393",
        mend="one side of it, of a run that has neurons, is a feature: "
        "`--feature 20-mlp-neurons/1393+`",
    )
