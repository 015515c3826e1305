"""What a dashboard serves: which run, to whom, and what may be written."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, slots=True)
class Site:
    """One run, served.

    Attributes:
        run: its folder.
        hosts: the names under which it may be asked for, without port; what comes under another
            one comes from a page that has turned its own name to this machine. None: any, where
            a token is asked for.
        author: who writes labels and votes that name nobody.
        is_read_only: nothing may be written.
        with_model: the run's model may be loaded, so that features can be tried on it.
        token: what has to be shown once by whoever asks; None where only this machine can ask.
        form_secret: what forms of this process carry, so that no other site's form is taken.
    """

    run: Path
    hosts: frozenset[str] | None = LOOPBACK
    author: str | None = None
    is_read_only: bool = False
    with_model: bool = False
    token: str | None = None
    form_secret: str = field(default_factory=lambda: secrets.token_urlsafe(24))
