"""Uploading an exported data set to the hub, with a token that is the user's own affair."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..store.errors import StoreError, UserMistake

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_OPTION = "--push-to-hub"


def prepare_repository(name: str) -> HfApi:
    """Makes the repository, private, if there is none yet: before hours are spent on what it gets.

    Args:
        name: of the repository, `owner/name`.

    Raises:
        UserMistake: there is no token, it may not write there, or this is no name.
        StoreError: the hub does not answer.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        raise UserMistake(
            "The hub is switched off.",
            where=_OPTION,
            found="HF_HUB_OFFLINE",
            mend="unset HF_HUB_OFFLINE",
        )
    if get_token() is None:
        raise UserMistake(
            "There is no token to upload with.",
            where=_OPTION,
            expected="a token with permission to write",
            mend="type `hf auth login`, or set HF_TOKEN",
        )
    api = HfApi(library_name="scopenote")
    with _HubErrors(name, "The hub does not answer; nothing was exported."):
        api.create_repo(name, repo_type="dataset", private=True, exist_ok=True)
    return api


def push_dataset(api: HfApi, name: str, folder: Path, revision: str) -> str:
    """Uploads a folder as one commit, and says where it can be seen.

    Args:
        api: of `prepare_repository`.
        name: of the repository.
        folder: an export.
        revision: of the run's database, for the commit's message.

    Raises:
        UserMistake: the token may not write there.
        StoreError: the hub does not answer; the export stays where it is.
    """
    with _HubErrors(name, "The data set could not be uploaded; the export is where it was put."):
        commit = api.upload_folder(
            repo_id=name,
            repo_type="dataset",
            folder_path=folder,
            commit_message=f"Labels of Scopenote's run at {revision}",
        )
    return str(commit.repo_url)


class _HubErrors:
    """Says plainly what the hub refused."""

    def __init__(self, name: str, unanswered: str) -> None:
        self._name = name
        self._unanswered = unanswered

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        if isinstance(error, HFValidationError):
            raise UserMistake(
                "This is not the name of a repository.",
                where=_OPTION,
                found=self._name,
                expected="owner/name",
            ) from error
        if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403, 404):
            raise UserMistake(
                "The hub does not let this token write there.",
                where=self._name,
                found=f"status {error.response.status_code}",
                expected="a token with permission to write to it",
                mend="type `hf auth login`, or set HF_TOKEN",
            ) from error
        if isinstance(error, HfHubHTTPError | httpx2.HTTPError | ConnectionError | TimeoutError):
            raise StoreError(
                self._unanswered,
                where=self._name,
                found=(str(error) or type(error).__name__).splitlines()[0],
                mend="try again later",
            ) from error
