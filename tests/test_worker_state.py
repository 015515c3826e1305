"""What a process holds open between tasks: opened once, shared, closed when another comes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import pytest
from scopenote.flows.worker_state import Place, held_no_longer, let_go, listening, opened, tell

events: list[str] = []


@dataclass(frozen=True)
class Database:
    name: str
    place: ClassVar[Place] = "database"

    @contextmanager
    def open(self) -> Iterator[str]:
        if self.name == "broken":
            raise OSError("no such thing")
        events.append(f"open {self.name}")
        try:
            yield self.name
        finally:
            events.append(f"close {self.name}")


@dataclass(frozen=True)
class Model(Database):
    place: ClassVar[Place] = "model"


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    events.clear()
    with held_no_longer():
        yield


def test_equal_descriptions_share_what_is_open() -> None:
    for _ in range(3):
        with opened(Database("a")) as value:
            assert value == "a"
    assert events == ["open a"]


def test_another_description_has_the_old_one_closed_before_it_is_opened() -> None:
    for name in ("a", "b", "a"):
        with opened(Database(name)):
            pass
    assert events == ["open a", "close a", "open b", "close b", "open a"]


def test_a_database_and_a_model_are_held_side_by_side() -> None:
    with opened(Model("m")), opened(Database("a")):
        pass
    with opened(Database("b")), opened(Model("m")):
        pass
    assert events == ["open m", "open a", "close a", "open b"]
    let_go("database")
    assert events[-1] == "close b"


def test_what_is_in_use_is_closed_when_the_last_has_done_with_it() -> None:
    with opened(Database("a")):
        let_go()
        assert events == ["open a"]
        with opened(Database("b")):
            pass
    assert events == ["open a", "open b", "close a"]


def test_many_threads_open_it_once() -> None:
    together = threading.Barrier(8)

    def use() -> str:
        together.wait(30)
        with opened(Database("a")) as value:
            together.wait(30)
            return value

    with ThreadPoolExecutor(8) as threads:
        found = [each.result() for each in [threads.submit(use) for _ in range(8)]]
    assert found == ["a"] * 8
    assert events == ["open a"]


def test_what_cannot_be_opened_is_tried_again() -> None:
    for _ in range(2):
        with pytest.raises(OSError, match="no such thing"), opened(Database("broken")):
            pass
    with opened(Database("a")):
        assert events == ["open a"]


def test_whoever_listens_hears_and_nobody_else_is_told() -> None:
    heard: list[int] = []
    tell("somebody", 3)
    with listening("somebody", heard.append):
        tell("somebody", 2)
        tell("another")
    tell("somebody")
    assert heard == [2]
