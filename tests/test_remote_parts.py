"""Parts under a URL: seen whole or not at all, put and brought once, and spent."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations
from scopenote.store.errors import StoreError, UserMistake
from scopenote.store.parts import Part, read_part, write_part
from scopenote.store.remote_files import Patience, RemoteFolder
from scopenote.store.remote_parts import RemoteParts

TABLE = pa.table({"x": [1, 2, 3]})
NO_WAITING = Patience(longest_wait_seconds=0)


@pytest.fixture
def url() -> Iterator[str]:
    place = f"memory://{uuid4().hex}/parts"
    yield place
    fsspec.filesystem("memory").rm(place, recursive=True)


@pytest.fixture
def remote(url: str) -> RemoteParts:
    return at(url)


def at(url: str) -> RemoteParts:
    remote = RemoteParts(RemoteFolder(url, NO_WAITING))
    remote.check_writable()
    return remote


def some_part(parts: Path, table: pa.Table = TABLE, part_id: str = "collect-1") -> Part:
    manifest = {"identity": {"é": 1}, "chunks": [{"chunk": 0, "chunk_id": "c"}]}
    return write_part(parts, part_id, "collect", {"t": table, "u": TABLE}, manifest)


def files_under(url: str) -> list[str]:
    found = fsspec.filesystem("memory").find(url)
    return sorted(name.partition("/parts/")[2] for name in found)


class Flaky(MemoryFileSystem):
    """A store in memory that answers some calls with an error instead."""

    protocol = "flaky"
    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    errors: list[Exception] = []  # noqa: RUF012
    asked = 0

    def _ask(self) -> None:
        type(self).asked += 1
        if self.errors:
            raise self.errors.pop()

    def pipe_file(self, *args: Any, **options: Any) -> None:
        self._ask()
        super().pipe_file(*args, **options)

    def find(self, *args: Any, **options: Any) -> Any:
        self._ask()
        return super().find(*args, **options)


@pytest.fixture
def flaky() -> Iterator[RemoteFolder]:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    Flaky.errors, Flaky.asked = [], 0
    yield RemoteFolder("flaky://place", NO_WAITING)
    Flaky.store.clear()


# --- parts ------------------------------------------------------------------------------------


def test_a_part_comes_back_as_it_was_put(remote: RemoteParts, tmp_path: Path) -> None:
    part = some_part(tmp_path / "here")
    assert remote.put(part)
    (found,) = remote.find_all()
    assert (found.part_id, found.stage, found.is_spent) == ("collect-1", "collect", False)
    brought = remote.fetch(found, tmp_path / "there")
    assert brought.manifest == part.manifest
    assert sorted(file.name for file in brought.folder.iterdir()) == [
        "part.json",
        "t.parquet",
        "u.parquet",
    ]
    for file in part.folder.iterdir():
        assert (brought.folder / file.name).read_bytes() == file.read_bytes()
    assert remote.fetch(found, tmp_path / "there") == brought


def test_a_part_without_its_manifest_does_not_exist_and_is_put_again(
    url: str, remote: RemoteParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = some_part(tmp_path)

    def die(*_: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RemoteFolder, "create", die)
        remote.put(part)
    assert len(files_under(url)) == 2
    assert remote.find_all() == []
    assert remote.find("collect-1") is None
    # One table went up only in part.
    half = next(name for name in files_under(url) if "/t." in name)
    fsspec.filesystem("memory").pipe(f"{url}/{half}", b"half")
    assert remote.put(part)
    (found,) = remote.find_all()
    assert pq.read_table(remote.fetch(found, tmp_path / "there").file("t")).equals(TABLE)


def test_the_same_part_put_twice_is_there_once(
    url: str, remote: RemoteParts, tmp_path: Path
) -> None:
    part = some_part(tmp_path)
    assert remote.put(part)
    before = files_under(url)
    assert not remote.put(part)
    assert files_under(url) == before


def test_of_two_machines_that_put_a_part_at_once_one_wins_as_a_whole(
    url: str, remote: RemoteParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = some_part(tmp_path / "ours")
    theirs = some_part(tmp_path / "theirs", pa.table({"x": [4]}))
    create = RemoteFolder.create

    def be_late(folder: RemoteFolder, name: str, content: bytes) -> bool:
        with monkeypatch.context() as patch:
            patch.setattr(RemoteFolder, "create", create)
            assert at(url).put(theirs)
        return create(folder, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(RemoteFolder, "create", be_late)
        assert not remote.put(ours)
    (found,) = remote.find_all()
    brought = remote.fetch(found, tmp_path / "there")
    assert pq.read_table(brought.file("t")).equals(pa.table({"x": [4]}))
    # What the late one had put before is gone or belongs to nothing.
    assert set(found.manifest["files"]) == {"t.parquet", "u.parquet"}


def test_a_part_whose_file_was_damaged_is_refused_and_leaves_nothing(
    url: str, remote: RemoteParts, tmp_path: Path
) -> None:
    remote.put(some_part(tmp_path / "here"))
    table = next(name for name in files_under(url) if "/t." in name)
    (found,) = remote.find_all()
    for spoil in (
        lambda files: files.pipe(f"{url}/{table}", b"other"),
        lambda files: files.rm(f"{url}/{table}"),
    ):
        spoil(fsspec.filesystem("memory"))
        with pytest.raises(StoreError, match="remove its folder there") as caught:
            remote.fetch(found, tmp_path / "there")
        assert caught.value.where == f"{url}/collect-1"
        assert list((tmp_path / "there").iterdir()) == []


def test_a_damaged_manifest_is_named(url: str, remote: RemoteParts) -> None:
    fsspec.filesystem("memory").pipe(f"{url}/collect-1/part.json", b"{")
    with pytest.raises(StoreError, match=r"part\.json"):
        remote.find_all()


def test_what_else_lies_there_is_no_part(url: str, remote: RemoteParts) -> None:
    files = fsspec.filesystem("memory")
    for name in ("part.json", "notes.txt", "a/b/part.json"):
        files.pipe(f"{url}/{name}", b"mine")
    assert remote.find_all() == []


def test_a_spent_part_leaves_a_note_and_is_not_put_again(
    url: str, remote: RemoteParts, tmp_path: Path
) -> None:
    part = some_part(tmp_path)
    remote.put(part)
    remote.spend(remote.find_all())
    assert files_under(url) == ["collect-1/spent.json"]
    (found,) = remote.find_all()
    assert found.is_spent and not found.has_tables
    assert found.manifest["chunks"] == part.manifest["chunks"]
    assert not remote.put(part)
    assert remote.find("collect-1") is None


def test_spending_that_was_killed_is_finished_later(
    url: str, remote: RemoteParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote.put(some_part(tmp_path))

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RemoteFolder, "remove", die)
        remote.spend(remote.find_all())
    (found,) = remote.find_all()
    assert found.is_spent and found.has_tables
    remote.spend([found])
    assert files_under(url) == ["collect-1/spent.json"]


def test_a_folder_of_this_machine_is_a_place_too(tmp_path: Path) -> None:
    remote = at((tmp_path / "not yet" / "there").as_uri())
    part = some_part(tmp_path / "here")
    assert remote.put(part)
    (found,) = remote.find_all()
    assert remote.fetch(found, tmp_path / "brought").manifest == part.manifest
    remote.spend([found])
    assert [part.is_spent for part in remote.find_all()] == [True]


# --- trouble ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError("slow"),
        ConnectionResetError("reset"),
        OSError(errno.EBUSY, "SlowDown"),
        type("EndpointConnectionError", (Exception,), {"__module__": "botocore.exceptions"}),
    ],
    ids=str,
)
def test_what_may_pass_is_tried_again(flaky: RemoteFolder, error: Any) -> None:
    if isinstance(error, type):
        base = type("ConnectionError", (Exception,), {"__module__": "botocore.exceptions"})
        error = type(error.__name__, (base,), {"__module__": "botocore.exceptions"})("no route")
    Flaky.errors = [error] * 3
    flaky.write("a", b"x")
    assert Flaky.asked == 4
    assert flaky.read("a", bytes) == b"x"


def test_what_does_not_pass_ends_with_one_message(flaky: RemoteFolder) -> None:
    Flaky.errors = [TimeoutError("slow")] * 100
    with pytest.raises(StoreError, match="does not answer") as caught:
        flaky.write("a", b"x")
    assert Flaky.asked == Patience().attempts
    assert "what was finished is kept" in str(caught.value)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError("Access Denied"), "refuses us"),
        (
            type("NoCredentialsError", (Exception,), {"__module__": "botocore.exceptions"})("none"),
            "AWS_ACCESS_KEY_ID",
        ),
        (OSError(errno.EINVAL, "InvalidBucketName"), "cannot be used"),
        (NotImplementedError("read only"), "cannot be used"),
    ],
)
def test_what_the_user_has_to_mend_is_said_at_once(
    flaky: RemoteFolder, error: Exception, said: str
) -> None:
    Flaky.errors = [error]
    with pytest.raises(UserMistake, match=said):
        flaky.check_writable()
    assert Flaky.asked == 1


def test_an_error_of_ours_keeps_its_traceback(flaky: RemoteFolder) -> None:
    Flaky.errors = [KeyError("a defect")]
    with pytest.raises(KeyError):
        flaky.write("a", b"x")


def test_a_file_that_is_our_own_after_a_lost_answer_counts_as_created(flaky: RemoteFolder) -> None:
    assert flaky.create("a", b"ours")
    assert flaky.create("a", b"ours")
    assert not flaky.create("a", b"theirs")
    assert flaky.read("a", bytes) == b"ours"


def test_an_unknown_protocol_is_answered_with_what_would_do() -> None:
    with pytest.raises(UserMistake, match="s3://bucket/prefix"):
        RemoteFolder("nope://bucket/prefix")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {"class": "no_such_package.Files", "err": "Install s3fs to access S3"}
    monkeypatch.setitem(known_implementations, "s3a", missing)
    with pytest.raises(UserMistake, match=r"pip install 'scopenote\[s3\]'"):
        RemoteFolder("s3a://bucket/prefix")


def test_a_part_there_says_nothing_of_the_machine(remote: RemoteParts, tmp_path: Path) -> None:
    remote.put(some_part(tmp_path))
    assert str(tmp_path) not in json.dumps(remote.find_all()[0].manifest)
    assert read_part(tmp_path / "collect-1").part_id == "collect-1"
