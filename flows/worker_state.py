"""What tasks share within a process: opened once from a description, by whichever task is first.

A description is a small value that can be sent to any process; its `open` gives what is too large
or too alive to be sent: a database, a model, a client. So a task is the same wherever it runs.
A process keeps one database and one model, and lets go of them when a task brings another
description, or when it is told to: within one process a newly published database is seen only
after the old one is closed. Nothing here knows what is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from threading import Lock, RLock
from typing import Any, Literal, Protocol, TypeVar, cast

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


Place = Literal["database", "model"]


class Description(Protocol[T_co]):
    """A value that says what to open; equal ones open the same."""

    @property
    def place(self) -> Place:
        """What it takes the place of."""
        ...

    def open(self) -> AbstractContextManager[T_co]:
        """Opens it, for as long as the block lasts."""
        ...


@dataclass(slots=True)
class _Opened:
    description: Description[Any]
    value: Any
    closing: ExitStack
    n_users: int = 0
    is_dropped: bool = False

    def close_if_idle(self) -> None:
        if self.is_dropped and not self.n_users:
            self.value = None
            self.closing.close()


@dataclass(slots=True)
class _Process:
    """What this process has open, and who in it wants to hear how far tasks are."""

    opened: dict[Place, _Opened] = field(default_factory=dict)
    opening: RLock = field(default_factory=RLock)
    listeners: dict[str, Callable[[int], None]] = field(default_factory=dict)
    listening: Lock = field(default_factory=Lock)


# Reached through functions of this module only: what is sent to a worker by its value would bring
# a copy of it.
_process = _Process()


@contextmanager
def opened(description: Description[T]) -> Iterator[T]:
    """What the description opens: what is open already, where the last task had the same one."""
    with _process.opening:
        found = _process.opened.get(description.place)
        if found is None or found.description != description:
            let_go(description.place)
            stack = ExitStack()
            found = _Opened(description, stack.enter_context(description.open()), stack)
            _process.opened[description.place] = found
        found.n_users += 1
        value = cast(T, found.value)
    try:
        yield value
    finally:
        with _process.opening:
            found.n_users -= 1
            found.close_if_idle()


def let_go(*places: Place) -> None:
    """Closes what this process has open there, or at all, as soon as no task uses it."""
    with _process.opening:
        for place in places or tuple(_process.opened):
            found = _process.opened.pop(place, None)
            if found is not None:
                found.is_dropped = True
                found.close_if_idle()


@contextmanager
def held_no_longer(*places: Place) -> Iterator[None]:
    """After the block this process holds nothing there, or at all, that a task in it opened."""
    try:
        yield
    finally:
        let_go(*places)


@contextmanager
def listening(name: str, advance: Callable[[int], None]) -> Iterator[None]:
    """Within the block `advance` hears what tasks in this process tell this name."""
    with _process.listening:
        _process.listeners[name] = advance
    try:
        yield
    finally:
        with _process.listening:
            del _process.listeners[name]


def tell(name: str, n: int = 1) -> None:
    """Tells whoever listens in this process that so many more are done."""
    with _process.listening:
        advance = _process.listeners.get(name)
    if advance is not None:
        advance(n)
