"""Single files from the Hugging Face hub, and what to do where it does not give them."""

from __future__ import annotations

import errno
from pathlib import Path

from ..store.errors import SaeError

HUB = "https://huggingface.co"


class NoSuchHubFile(SaeError):
    """The repository is there and open, but lacks the file."""


def download(repository: str, file: str) -> Path:
    """A file of a repository, from the hub's cache on this machine or from the hub.

    Raises:
        NoSuchHubFile: the repository lacks it.
        SaeError: the hub does not give it, and why: the repository is gated, is private or does
            not exist, refuses the token, or cannot be reached.
        OSError: the disk is full.
    """
    import huggingface_hub
    from huggingface_hub import errors

    page = f"{HUB}/{repository}"
    try:
        return Path(huggingface_hub.hf_hub_download(repository, file))
    # What a repository answers, before the connection and the disk, whose errors are its bases.
    except errors.GatedRepoError as error:
        what = "is not open to you"
        mend = f"accept its terms at {page}, then set HF_TOKEN to a token of that account"
        raise _not_given(SaeError, repository, file, what, mend, error) from error
    except errors.RepositoryNotFoundError as error:
        what = "does not exist, or is private"
        mend = (
            f"correct [saes] paths; if {page} is private, set HF_TOKEN to a token that may read it"
        )
        raise _not_given(SaeError, repository, file, what, mend, error) from error
    except errors.RemoteEntryNotFoundError as error:
        what, mend = "has no such file", f"see its files at {page}/tree/main"
        raise _not_given(NoSuchHubFile, repository, file, what, mend, error) from error
    # HTTPError is the HTTP library's own, which the hub's errors carry without declaring it.
    except (OSError, ValueError, errors.HTTPError) as error:  # type: ignore[attr-defined]
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        if _status(error) in (401, 403):
            what = "refuses your token"
            mend = f"set HF_TOKEN to a valid one, of an account that may read {page}"
        else:
            what, mend = "cannot be reached", "check the connection, or download the file by hand"
        raise _not_given(SaeError, repository, file, what, mend, error) from error


def _status(error: BaseException | None) -> int | None:
    """The HTTP status behind an error; the client wraps what it got instead of an answer."""
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            return int(response.status_code)
        error = error.__cause__
    return None


def _not_given(
    kind: type[SaeError], repository: str, file: str, what: str, mend: str, error: Exception
) -> SaeError:
    said = str(error).strip().splitlines()
    return kind(
        f"The SAE is not on this machine, and the hub's repository {repository} {what}.",
        where=f"[saes] paths, {file} in {repository}",
        found=said[0] if said else type(error).__name__,
        expected="a local file or its folder, or a file that the hub gives",
        mend=mend,
    )
