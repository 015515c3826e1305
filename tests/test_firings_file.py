from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from scopenote.extract.firings_file import FiringsFile
from scopenote.store.background import FIRING_ARRAYS, WindowFirings


def window(number: int) -> WindowFirings:
    draw = np.random.default_rng(number)
    length = draw.integers(1, 5, draw.integers(1, 9)).astype(np.uint16)
    return WindowFirings(
        number,
        np.arange(len(length), dtype=np.int32),
        length,
        draw.integers(0, 64, length.sum()).astype(np.uint8),
        draw.random(length.sum(), np.float32),
    )


def same(one: WindowFirings, other: WindowFirings) -> bool:
    columns = [(getattr(one, name), getattr(other, name)) for name in FIRING_ARRAYS]
    return one.occurrence == other.occurrence and all(
        a.dtype == b.dtype and np.array_equal(a, b) for a, b in columns
    )


def test_what_was_added_is_read_also_after_the_file_was_made_small(tmp_path: Path) -> None:
    file = FiringsFile(tmp_path)
    places = {number: file.add(window(number)) for number in range(100)}
    kept = {(0, number): [places[number]] for number in range(0, 100, 7)}
    before = file.n_bytes
    file.compact(kept)
    live = sum(stored.n_bytes for (stored,) in kept.values())
    assert before > 2 * live and file.n_bytes == live
    places = {0: file.add(window(1000))}
    for (_, number), (stored,) in kept.items():
        assert same(file.read(stored), window(number))
    assert same(file.read(places[0]), window(1000))


def test_a_file_of_which_most_is_kept_stays(tmp_path: Path) -> None:
    file = FiringsFile(tmp_path)
    kept = {(0, number): [file.add(window(number))] for number in range(10)}
    before = dict(kept)
    file.compact(kept)
    assert kept == before


def test_nothing_of_it_is_left_in_the_folder(tmp_path: Path) -> None:
    file = FiringsFile(tmp_path)
    file.add(window(0))
    file.close()
    assert os.listdir(tmp_path) == []
