"""What people write by hand: labels of their own, and votes on labels. No run is in its way.

It goes into the run's inbox, where readers see it at once; the run that is at work, or else the
next, takes it into the tables.
"""

from __future__ import annotations

import getpass
from dataclasses import replace
from datetime import datetime, timedelta

import duckdb

from ..label.label_reply import (
    MAX_LABEL_CHARACTERS,
    MAX_TEXT_CHARACTERS,
    clean_text,
    shows_nothing,
)
from ..store.database import now
from ..store.errors import UserMistake
from ..store.feature_page import find_feature
from ..store.inbox import Vote, WrittenLabel, write_to_inbox
from ..store.labels import find_label_id, read_human_labels
from ..store.records import FeatureId, Label
from ..store.run_folder import RunFolder
from .working import published

WITHDRAWN = "withdrawn by its author"
_EXPLAINER = "human"
_VERSION = "1"
_MAX_AUTHOR_CHARACTERS = 100
_LEAST = timedelta(microseconds=1)


def write_label(
    folder: RunFolder,
    feature: str,
    text: str,
    explanation: str | None = None,
    author: str | None = None,
    saw_score: bool | None = None,
) -> Label:
    """Writes a person's label for a feature; it is then the one in force.

    Args:
        folder: of the run.
        feature: as people write it.
        text: the label; terminal escapes and what cannot be seen are left out of it.
        explanation: what it rests on.
        author: by default the login name.
        saw_score: whether the author had looked at contexts of `score`; None where not known.

    Raises:
        UserMistake: no such feature; nothing to be seen in a text, or too much.
        StoreError: the disk refuses it.
    """
    shown = _shown("label", text, MAX_LABEL_CHARACTERS)
    because = None
    if explanation is not None:
        because = _shown("explanation", explanation, MAX_TEXT_CHARACTERS)
    who = author_name(author)
    with published(folder.path) as (_, store):
        feature_id = find_feature(store.connection, feature)
        written_at = _after_all_labels(store.connection, feature_id)
    label = Label(
        feature_id=feature_id,
        text=shown,
        explanation=because,
        explainer=_EXPLAINER,
        prompt_version=_VERSION,
        window_ids=(),
        source="human",
        author=who,
    )
    write_to_inbox(folder.inbox, labels=[WrittenLabel.of(label, written_at, saw_score)])
    return label


def withdraw_labels(folder: RunFolder, feature: str, author: str | None = None) -> FeatureId:
    """Takes back what an author wrote for a feature: the rows stay, and none is in force again.

    Args:
        folder: of the run.
        feature: as people write it.
        author: by default the login name.

    Raises:
        UserMistake: no such feature, or no label of this author for it.
        StoreError: the disk refuses it.
    """
    who = author_name(author)
    with published(folder.path) as (_, store):
        feature_id = find_feature(store.connection, feature)
        standing = [
            each
            for each in read_human_labels(store.connection, feature_id)
            if each.status == "done"
        ]
        written_at = _after_all_labels(store.connection, feature_id)
    own = [
        replace(each, status="withdrawn", reason=WITHDRAWN, created_at=written_at)
        for each in standing
        if each.author == who
    ]
    if not own:
        others = sorted({each.author or "–" for each in standing})
        raise UserMistake(
            "There is no label of yours to take back.",
            where=str(feature_id),
            found=f"labels by {', '.join(others)}" if others else "no label by a person",
            expected=f"a label by {who}",
            mend="name the author with `--author`" if others else None,
        )
    write_to_inbox(folder.inbox, labels=own)
    return feature_id


def cast_vote(folder: RunFolder, label_id: str, vote: int, author: str | None = None) -> FeatureId:
    """Votes on a label, and says of which feature: the latest of an author's votes on it counts.

    Args:
        folder: of the run.
        label_id: of the label, or how it begins.
        vote: 1 for it, -1 against it, 0 to take an earlier vote back.
        author: by default the login name.

    Raises:
        UserMistake: no such label, or several that begin so.
        StoreError: the disk refuses it.
    """
    who = author_name(author)
    with published(folder.path) as (_, store):
        voted_on = find_label_id(store.connection, label_id)
        (found,) = store.connection.execute(
            """
            SELECT sae_id, feature, (
                SELECT max(voted_at) FROM votes WHERE label_id = $id AND author = $author
            )
            FROM labels WHERE label_id = $id
            """,
            {"id": voted_on, "author": who},
        ).fetchall()
    sae_id, number, latest = found
    write_to_inbox(folder.inbox, votes=[Vote(voted_on, who, vote, _after(latest))])
    return FeatureId(sae_id, number)


def _after_all_labels(connection: duckdb.DuckDBPyConnection, feature_id: FeatureId) -> datetime:
    (latest,) = connection.execute(
        "SELECT max(created_at) FROM labels WHERE source = 'human' AND sae_id = ? AND feature = ?",
        [feature_id.sae_id, feature_id.feature],
    ).fetchall()
    return _after(latest[0])


def _after(latest: datetime | None) -> datetime:
    """Now, or just after what is there: clocks of several machines differ, and the last counts."""
    return now() if latest is None else max(now(), latest + _LEAST)


def author_name(author: str | None) -> str:
    """The name under which somebody writes, cleaned; by default the login name.

    Raises:
        UserMistake: it is not known, shows nothing, or is too long.
    """
    if author is None:
        try:
            author = getpass.getuser()
        except (OSError, KeyError) as error:  # no such user on this machine, as in containers
            raise UserMistake(
                "It is not known who you are.",
                found="no login name",
                expected="a name",
                mend="name yourself with `--author`",
            ) from error
    return _shown("author", author, _MAX_AUTHOR_CHARACTERS)


def _shown(what: str, text: str, most: int) -> str:
    """The text as it is kept, on one line.

    Raises:
        UserMistake: nothing of it can be seen, or it is too long.
    """
    cleaned = clean_text(text)
    if shows_nothing(cleaned):
        raise UserMistake(
            f"The {what} shows nothing.",
            found=repr(text) if text else "no text",
            expected="a letter, digit or sign that can be seen",
        )
    if len(cleaned) > most:
        raise UserMistake(
            f"The {what} is too long.",
            found=f"{len(cleaned):,} characters",
            expected=f"at most {most:,}",
        )
    return cleaned
