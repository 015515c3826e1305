"""The commands for what people write by hand: a label of their own, a vote on a label."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..store.errors import UserMistake
from .terminal import print_page, program
from .working import published

if TYPE_CHECKING:
    from ..store.records import FeatureId

Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]
Author = Annotated[
    str | None,
    typer.Option("--by", "--author", metavar="NAME", help="Who you are, if not the login name."),
]


class Choice(StrEnum):
    """The votes, as they are typed."""

    up = "up"
    down = "down"
    none = "none"


_VOTES = {Choice.up: 1, Choice.down: -1, Choice.none: 0}


def label(
    run: Run,
    feature: Annotated[
        str, typer.Argument(metavar="FEATURE", help="model/source/index, source/index or index.")
    ],
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="The label.")] = None,
    explanation: Annotated[
        str | None, typer.Option("--explanation", metavar="TEXT", help="What it rests on.")
    ] = None,
    author: Author = None,
    withdraw: Annotated[
        bool, typer.Option("--withdraw", help="Take back what you wrote for this feature.")
    ] = False,
) -> None:
    """Write a label of your own; a run may be at work."""
    if withdraw == (text is not None) or (withdraw and explanation is not None):
        raise UserMistake(
            "A label is either written or taken back.",
            found="`--withdraw` beside a text" if withdraw else "no text",
            expected="a text, or `--withdraw`",
            mend=f'`{program()} label RUN FEATURE "the text"`',
        )
    from ..store.run_folder import RunFolder
    from .by_hand import withdraw_labels, write_label

    folder = RunFolder.open_existing(run)
    if text is None:
        feature_id = withdraw_labels(folder, feature, author)
    else:
        feature_id = write_label(folder, feature, text, explanation, author).feature_id
    _print_labels(run, feature_id)


def vote(
    run: Run,
    label_id: Annotated[
        str, typer.Argument(metavar="LABEL_ID", help="A label's id, or how it begins.")
    ],
    choice: Annotated[
        Choice, typer.Argument(metavar="up|down|none", help="none takes a vote back.")
    ],
    author: Author = None,
) -> None:
    """Vote for or against a label; a run may be at work."""
    from ..store.run_folder import RunFolder
    from .by_hand import cast_vote

    feature_id = cast_vote(RunFolder.open_existing(run), label_id, _VOTES[choice], author)
    _print_labels(run, feature_id)


def _print_labels(run: Path, feature_id: FeatureId) -> None:
    from ..store.feature_labels import read_feature_labels
    from .label_rows import render_labels

    with published(run) as (_, store):
        labels = read_feature_labels(store.connection, feature_id)
    print_page(render_labels(feature_id, labels))
