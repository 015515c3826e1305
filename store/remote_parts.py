"""Parts under an fsspec URL, where machines that share no disk leave them for the coordinator.

Stores of objects cannot rename. So a part's tables are put there first, each under a name that
holds the hash of its content, and `part.json`, which lists them, last: what has no `part.json`
does not exist. Of several machines that put the same part at once one wins as a whole. A part
that the coordinator has absorbed is emptied: `spent.json` stays in its place and says which
text it held, so that no shard collects that again and the URL does not grow with the text.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import StoreError
from .parts import MANIFEST, Part, begin_part, finish_part, read_part
from .remote_files import NotWhole, RemoteFolder

_SPENT = "spent.json"
# Between listing and reading a part may be spent, which is seen by listing again.
_LISTINGS = 5


@dataclass(frozen=True, slots=True)
class RemotePart:
    """A part under a URL.

    Attributes:
        part_id: its name, unique by content.
        url: of its folder.
        manifest: what its writer said of it, and under `files` the hash of each of its files.
        is_spent: a coordinator has absorbed it, and its tables are gone or going.
        has_tables: some of its files are there beside what it says of itself.
    """

    part_id: str
    url: str
    manifest: dict[str, Any]
    is_spent: bool
    has_tables: bool

    @property
    def stage(self) -> str:
        """As of any part."""
        return str(self.manifest["stage"])


class RemoteParts:
    """All parts under a URL."""

    def __init__(self, folder: RemoteFolder) -> None:
        """Of a folder under a URL, which need not exist yet."""
        self._folder = folder

    @property
    def url(self) -> str:
        """Under which they lie."""
        return self._folder.url

    def check_writable(self) -> None:
        """Makes sure that parts can be put here.

        Raises:
            UserMistake: they cannot.
            StoreError: nobody answers.
        """
        self._folder.check_writable()

    def find_all(self) -> list[RemotePart]:
        """The parts that are there as a whole, and the spent ones, by name.

        Raises:
            StoreError: the manifest of one is damaged.
        """
        for _ in range(_LISTINGS):
            names = set(self._folder.sizes())
            try:
                return self._read(names)
            except FileNotFoundError:
                continue  # a coordinator has spent it meanwhile
        raise _damaged(self.url, FileNotFoundError("parts that are listed and not there"))

    def find(self, part_id: str) -> RemotePart | None:
        """The part of this name, unless it is spent or there is none."""
        try:
            found = self._read(set(self._folder.sizes(part_id)))
        except FileNotFoundError:
            return None
        return next((part for part in found if not part.is_spent), None)

    def put(self, part: Part) -> bool:
        """Puts a part here, unless it is here already.

        Returns:
            False where another machine's part of this name came first; that one counts.
        """
        there = self._folder.sizes(part.part_id)
        if f"{part.part_id}/{MANIFEST}" in there or f"{part.part_id}/{_SPENT}" in there:
            return False
        local = {file.name: file for file in sorted(part.folder.iterdir()) if file.name != MANIFEST}
        hashes = {name: _hash(file) for name, file in local.items()}
        remote = {name: _remote_name(part.part_id, name, hashes[name]) for name in local}
        self._folder.put(
            (file, remote[name])
            for name, file in local.items()
            # What an upload that was killed has left need not go up again.
            if there.get(remote[name]) != file.stat().st_size
        )
        content = json.dumps({**part.manifest, "files": hashes}, indent=1, ensure_ascii=False)
        is_ours = self._folder.create(f"{part.part_id}/{MANIFEST}", content.encode())
        if is_ours:
            # Tables of others who were at it, or were killed at it, belong to nothing now.
            others = set(self._folder.sizes(part.part_id)) - {*remote.values()}
            self._folder.remove(others - {f"{part.part_id}/{MANIFEST}"})
        return is_ours

    def fetch(self, part: RemotePart, parts: Path) -> Part:
        """Brings a part into a folder of parts; there as here it is seen as a whole or not at all.

        Raises:
            StoreError: a file of it is missing or damaged.
        """
        target = parts / part.part_id
        if (target / MANIFEST).exists():
            return read_part(target)
        hashes: dict[str, str] = part.manifest["files"]
        unfinished = begin_part(parts)
        expected = {unfinished / name: hashes[name] for name in hashes}

        def check(file: Path) -> None:
            if _hash(file) != expected[file]:
                raise NotWhole(f"{file.name} has another content than was put there")

        try:
            self._folder.fetch(
                ((_remote_name(part.part_id, f.name, hashed), f) for f, hashed in expected.items()),
                check,
            )
        except (FileNotFoundError, NotWhole) as error:
            shutil.rmtree(unfinished)
            raise _damaged(part.url, error) from error
        known = ("part_id", "stage", "files")
        manifest = {key: value for key, value in part.manifest.items() if key not in known}
        finish_part(unfinished, target, part.stage, manifest)
        return read_part(target)

    def note(self, part_id: str, manifest: Mapping[str, Any]) -> None:
        """Says of a part that never lay here that its text is absorbed."""
        content = json.dumps({"part_id": part_id, **manifest}, ensure_ascii=False)
        self._folder.write(f"{part_id}/{_SPENT}", content.encode())

    def spend(self, absorbed: Iterable[RemotePart]) -> None:
        """Removes the tables of parts that a coordinator has absorbed; a note of each stays."""
        for part in absorbed:
            if not part.is_spent:
                kept = {key: value for key, value in part.manifest.items() if key != "files"}
                self.note(part.part_id, kept)
            left = set(self._folder.sizes(part.part_id)) - {f"{part.part_id}/{_SPENT}"}
            # First what makes it a part, so that nobody begins to fetch it.
            self._folder.remove(left & {f"{part.part_id}/{MANIFEST}"})
            self._folder.remove(left)

    def _read(self, names: set[str]) -> list[RemotePart]:
        """The parts among these files."""
        n_files = Counter(name.partition("/")[0] for name in names)
        manifests = {
            part_id: _SPENT if f"{part_id}/{_SPENT}" in names else MANIFEST
            for part_id in sorted(n_files)
            if not names.isdisjoint((f"{part_id}/{_SPENT}", f"{part_id}/{MANIFEST}"))
        }
        files = [f"{part_id}/{file}" for part_id, file in manifests.items()]
        try:
            found = self._folder.read_all(files, _understand)
        except NotWhole as error:
            raise _damaged(self.url, error) from error
        return [
            RemotePart(
                part_id=part_id,
                url=f"{self.url}/{part_id}",
                manifest=manifest,
                is_spent=file == _SPENT,
                has_tables=n_files[part_id] > 1,
            )
            for (part_id, file), manifest in zip(manifests.items(), found, strict=True)
        ]


def _understand(content: bytes) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads(content)
        if manifest["stage"] and manifest["part_id"]:
            return manifest
    except (ValueError, KeyError, TypeError) as error:
        raise NotWhole(f"{MANIFEST}: {error}") from error
    raise NotWhole(f"{MANIFEST} says nothing")


def _remote_name(part_id: str, name: str, content_hash: str) -> str:
    stem, dot, kind = name.rpartition(".")
    return f"{part_id}/{stem}.{content_hash}{dot}{kind}"


def _hash(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _damaged(url: str, error: Exception) -> StoreError:
    return StoreError(
        "A part under the URL cannot be read.",
        where=url,
        found=str(error),
        mend="remove its folder there; what it held will be collected again",
    )
