"""Steps of a batch's life that more than one flow takes."""

from __future__ import annotations

from pathlib import Path

from ..label.batch_client import BatchClient, BatchRefused
from ..label.batch_files import upload_file
from ..label.provider_batch import ProviderBatch
from ..store.batch_record import NOT_COUNTED, end_batch, note_state
from ..store.database import open_work
from ..store.run_folder import RunFolder


def submit_recorded(
    folder: RunFolder, client: BatchClient, batch_id: str, may_exist: bool
) -> ProviderBatch:
    """Submits a batch that is on record, and records that the provider has it.

    Args:
        folder: the run, with the batch's files.
        client: of the batch's endpoint.
        batch_id: ours.
        may_exist: a process that died may have submitted it.

    Raises:
        BatchRefused: the provider does not take it; that is on record too.
        EndpointRefuses: the provider cannot be reached, or refuses the key or the credit.
    """
    upload = upload_file(folder.batches, batch_id)
    try:
        made = client.submit(batch_id, upload, may_exist)
    except BatchRefused as refusal:
        with open_work(folder.path) as work:
            end_batch(work, batch_id, "refused", reason=refusal.found, all_others=NOT_COUNTED)
        remove_files(folder.batches, batch_id)
        raise
    with open_work(folder.path) as work:
        note_state(work, batch_id, made.provider_id, made.state)
    upload.unlink(missing_ok=True)
    return made


def remove_files(folder: Path, batch_id: str) -> None:
    """Removes what lies here of a batch that has ended."""
    for path in folder.glob(f"*{batch_id}*"):
        path.unlink()
