from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scopenote.store import parts as storing
from scopenote.store.errors import StoreError
from scopenote.store.parts import list_parts, read_part, remove_unfinished, write_part

TABLE = pa.table({"x": [1, 2, 3]})


def test_a_part_reads_back_as_it_was_written(tmp_path: Path) -> None:
    part = write_part(tmp_path, "collect-1", "collect", {"t": TABLE}, {"identity": {"a": 1}})
    assert read_part(part.folder) == part
    assert (part.part_id, part.stage) == ("collect-1", "collect")
    assert part.manifest["identity"] == {"a": 1}
    assert pq.read_table(part.file("t")).equals(TABLE)


def test_a_writer_that_dies_leaves_nothing_that_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(storing, "finish_part", die)
    with pytest.raises(KeyboardInterrupt):
        write_part(tmp_path, "collect-1", "collect", {"t": TABLE}, {})
    assert list(list_parts(tmp_path)) == []
    assert list(tmp_path.iterdir()) != []
    remove_unfinished(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_same_part_written_twice_is_there_once(tmp_path: Path) -> None:
    first = write_part(tmp_path, "a", "explain", {"t": TABLE}, {})
    written = first.file("t").stat().st_mtime_ns
    second = write_part(tmp_path, "a", "explain", {"t": TABLE}, {})
    assert second == first
    assert second.file("t").stat().st_mtime_ns == written


def test_two_writers_of_one_part_both_end_well(tmp_path: Path) -> None:
    one, other = storing.begin_part(tmp_path), storing.begin_part(tmp_path)
    storing.finish_part(one, tmp_path / "a", "explain", {})
    storing.finish_part(other, tmp_path / "a", "explain", {})
    assert [part.part_id for part in list_parts(tmp_path)] == ["a"]


def test_a_part_with_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    part = write_part(tmp_path, "a", "explain", {"t": TABLE}, {})
    (part.folder / "part.json").write_text("{")
    with pytest.raises(StoreError, match="remove the folder"):
        list(list_parts(tmp_path))
