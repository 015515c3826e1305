"""Files under an fsspec URL: put, fetched, listed and removed, with patience and clear errors.

What may succeed a little later is tried again by tenacity; what a person has to mend is answered
in one message. Credentials are the business of whoever implements the URL's protocol, which
reads them from the environment; nothing here sees them. What the files mean is not known here.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import fsspec
from fsspec.implementations.local import LocalFileSystem
from tenacity import (
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    wait_random_exponential,
)

from .errors import ScopenoteError, StoreError, UserMistake

T = TypeVar("T")
_KEY = "[collect] parts_url"
_AT_ONCE = 8
_PASSING_ERRNOS = {
    errno.EAGAIN, errno.EBUSY, errno.EIO, errno.EPIPE, errno.ETIMEDOUT, errno.EHOSTUNREACH,
    errno.ENETUNREACH, getattr(errno, "EREMOTEIO", errno.EIO), getattr(errno, "ESTALE", errno.EIO),
}  # fmt: skip
# Errors that are none of Python's own, by name: the packages that raise them need not be there.
_STORES = {"adlfs", "aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google", "s3fs"}
_PASSING_NAMES = {
    "ClientConnectionError", "ClientPayloadError", "ConnectionError", "HTTPClientError",
    "IncompleteReadError", "ResponseParserError", "ServerTimeoutError",
}  # fmt: skip
_EXTRAS = {"s3": "s3", "s3a": "s3"}
# They need no folders made: those of objects have none, and would make a bucket instead.
_OBJECT_STORES = {"abfs", "abfss", "az", "file", "gcs", "gs", "local", "memory", "s3", "s3a"}


class NotWhole(Exception):
    """A file does not hold yet what it should; raised by those who understand it."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long something that fails is tried again.

    Attributes:
        attempts: at most, each with whatever retries the protocol's own package makes.
        total_seconds: after so long there is no further attempt.
        longest_wait_seconds: between two of them.
    """

    attempts: int = 6
    total_seconds: float = 300.0
    longest_wait_seconds: float = 30.0


class RemoteFolder:
    """A folder under an fsspec URL; the names of its files are relative to it, with slashes."""

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        """Opens it; nothing is sent.

        Args:
            url: such as `s3://bucket/prefix` or `file:///folder`.
            patience: with what fails.

        Raises:
            UserMistake: nobody knows such URLs, or a package is missing for them.
        """
        self.url = url.rstrip("/")
        self._patience = patience or Patience()
        try:
            self._files, root = fsspec.core.url_to_fs(self.url)
        except ImportError as error:
            raise _package_missing(url, error) from error
        except ValueError as error:
            raise UserMistake(
                "Parts cannot be kept under this URL.",
                where=_KEY,
                found=f"{url}: {error}",
                expected="s3://bucket/prefix, file:///folder, or another URL that fsspec knows",
            ) from error
        self._root = root.rstrip("/")
        self._has_folders = self.url.partition("://")[0] not in _OBJECT_STORES
        if isinstance(self._files, LocalFileSystem):
            self._files.auto_mkdir = True

    def check_writable(self) -> None:
        """Writes a small file and removes it, before hours are spent on what is to lie here.

        Raises:
            UserMistake: it may not be written, or there is no such place.
            StoreError: nobody answers.
        """
        probe = f".probe-{uuid4().hex[:8]}"
        try:
            self.write(probe, b"")
        except FileNotFoundError as error:
            raise UserMistake(
                "There is no such bucket or folder.",
                where=_KEY,
                found=f"{self.url}: {_said(error)}",
                mend="make it, or correct the URL",
            ) from error
        self.remove([probe])

    def sizes(self, inside: str = "") -> dict[str, int]:
        """The files there, in a folder or anywhere, with their sizes in bytes."""
        path = self._path(inside) if inside else self._root
        # Other machines write here too: what was listed before is not believed.
        self._files.invalidate_cache()
        try:
            found = self._try(self._files.find, path, detail=True)
        except FileNotFoundError:
            return {}
        start = len(self._root)
        return {name[start:].lstrip("/"): info["size"] for name, info in found.items()}

    def read(self, name: str, understand: Callable[[bytes], T]) -> T:
        """What a file says, read again where that makes no sense yet.

        Args:
            name: of the file.
            understand: its content.

        Raises:
            FileNotFoundError: there is none.
            NotWhole: it never made sense.
        """
        return self._try(lambda: understand(self._files.cat_file(self._path(name))))

    def read_all(self, names: Iterable[str], understand: Callable[[bytes], T]) -> list[T]:
        """What several files say, in their order."""
        with ThreadPoolExecutor(_AT_ONCE) as executor:
            return list(executor.map(lambda name: self.read(name, understand), names))

    def write(self, name: str, content: bytes) -> None:
        """Writes a file, whatever was there."""
        self._make_folder(name)
        self._try(self._files.pipe_file, self._path(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Writes a file that is not there, as one of many that may do so at once.

        Stores that can create exclusively let one of them do it; elsewhere the last of two that
        come within moments is the one that counts.

        Returns:
            False where another's file is there, with other content.
        """
        self._make_folder(name)
        try:
            self._try(self._files.pipe_file, self._path(name), content, mode="create")
        except FileExistsError:
            # Our own, where an answer was lost on the way and the same was sent again.
            return self.read(name, bytes) == content
        return True

    def put(self, files: Iterable[tuple[Path, str]]) -> None:
        """Uploads files under these names, whatever was there."""

        def put(pair: tuple[Path, str]) -> None:
            self._make_folder(pair[1])
            self._try(self._files.put_file, str(pair[0]), self._path(pair[1]))

        with ThreadPoolExecutor(_AT_ONCE) as executor:
            list(executor.map(put, files))

    def fetch(self, files: Iterable[tuple[str, Path]], check: Callable[[Path], None]) -> None:
        """Downloads files.

        Args:
            files: names, and where to.
            check: one that has come.

        Raises:
            FileNotFoundError: one is not there.
            NotWhole: one never came whole.
        """

        def fetch(pair: tuple[str, Path]) -> None:
            def attempt() -> None:
                self._files.get_file(self._path(pair[0]), str(pair[1]))
                check(pair[1])

            self._try(attempt)

        with ThreadPoolExecutor(_AT_ONCE) as executor:
            list(executor.map(fetch, files))

    def remove(self, names: Iterable[str]) -> None:
        """Removes files, also where they are gone already."""

        def remove(name: str) -> None:
            with suppress(FileNotFoundError):
                self._try(self._files.rm_file, self._path(name))

        with ThreadPoolExecutor(_AT_ONCE) as executor:
            list(executor.map(remove, names))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _make_folder(self, name: str) -> None:
        folder = name.rpartition("/")[0]
        if folder and self._has_folders:
            self._try(self._files.makedirs, self._path(folder), exist_ok=True)

    def _try(self, function: Callable[..., T], *args: Any, **options: Any) -> T:
        patience = self._patience
        retrying = Retrying(
            retry=retry_if_exception(_is_passing),
            stop=stop_after_attempt(patience.attempts) | stop_after_delay(patience.total_seconds),
            wait=wait_random_exponential(multiplier=0.5, max=patience.longest_wait_seconds),
            reraise=True,
        )
        try:
            return retrying(function, *args, **options)
        except (FileNotFoundError, FileExistsError, NotWhole):
            raise
        except Exception as error:
            answer = _answer(self.url, error)
            if answer is None:
                raise
            raise answer from error


def _is_passing(error: BaseException) -> bool:
    """Whether the same may succeed a little later."""
    if isinstance(error, TimeoutError | ConnectionError | NotWhole):
        return True
    if isinstance(error, OSError) and error.errno in _PASSING_ERRNOS:
        return True
    names = {kind.__name__ for kind in type(error).__mro__}
    return _is_of_a_store(error) and not names.isdisjoint(_PASSING_NAMES)


def _is_of_a_store(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in _STORES


def _answer(url: str, error: Exception) -> ScopenoteError | None:
    """What to say of an error, if it is one of the place under the URL."""
    found = f"{url}: {_said(error)}"
    if _is_of_a_store(error) and "Credential" in type(error).__name__:
        return UserMistake(
            "There are no credentials for the place of parts.",
            where=_KEY,
            found=found,
            mend="set them in the environment, for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    if isinstance(error, PermissionError) and error.errno is None:
        return UserMistake(
            "The place of parts refuses us.",
            where=_KEY,
            found=found,
            expected="permission to list, read, write and remove",
            mend="check the credentials in the environment, and what they allow",
        )
    if _is_passing(error):
        return StoreError(
            "The place of parts does not answer.",
            where=_KEY,
            found=found,
            mend="give the same command again once it does: what was finished is kept",
        )
    is_remote = isinstance(error, OSError) and error.errno in (None, errno.EINVAL, errno.ENOSYS)
    is_unfit = isinstance(error, NotImplementedError | ValueError)
    if _is_of_a_store(error) or is_remote or is_unfit:
        return UserMistake(
            "The place of parts cannot be used.",
            where=_KEY,
            found=found,
            expected="a URL under which files can be listed, read, written and removed",
        )
    return None


def _package_missing(url: str, error: ImportError) -> UserMistake:
    extra = _EXTRAS.get(url.partition("://")[0])
    return UserMistake(
        "A package is missing for parts under this URL.",
        where=_KEY,
        found=f"{url}: {_said(error)}",
        mend=f"pip install 'scopenote[{extra}]'" if extra else "install that package",
    )


def _said(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
