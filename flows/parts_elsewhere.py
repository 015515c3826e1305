"""Parts that machines without a common folder leave under a URL, and what a run makes of them.

A shard puts each part there and keeps none. A coordinator fetches a few at a time, absorbs them,
and empties what it has absorbed; a note stays of each, also of what it collected itself, so
that shards know what is left to do.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict
from itertools import islice

from ..extract.collect_job import CollectJob
from ..extract.shards import Shard
from ..store.absorb import (
    absorbed_ids,
    collected_identity,
    refuse_conflicts,
    refuse_other_configuration,
)
from ..store.collected import chunks_by_part, read_collected
from ..store.database import open_work
from ..store.parts import Part, list_parts, read_part
from ..store.records import CollectedChunk
from ..store.remote_files import RemoteFolder
from ..store.remote_parts import RemotePart, RemoteParts
from ..store.run_folder import RunFolder
from .config import Config
from .progress import Progress

# They lie on this machine's disk until they are merged.
_PARTS_AT_ONCE = 16


def remote_parts(config: Config) -> RemoteParts | None:
    """Where parts lie beside the run's folder; None where they only lie there.

    Raises:
        UserMistake: nobody knows such URLs, or a package is missing for them.
    """
    url = config.collect.parts_url
    return None if url is None else RemoteParts(RemoteFolder(url))


def checked_remote_parts(config: Config) -> RemoteParts | None:
    """The same, after it was seen that parts can be put there.

    Raises:
        UserMistake: they cannot.
        StoreError: nobody answers.
    """
    remote = remote_parts(config)
    if remote is not None:
        remote.check_writable()
    return remote


def chunks_elsewhere(remote: RemoteParts, job: CollectJob) -> dict[int, CollectedChunk]:
    """The chunks of all parts there, spent ones too, by number.

    Raises:
        PartConflict: a part was collected under another configuration.
    """
    return {
        chunk["chunk"]: CollectedChunk(chunk["chunk_id"], chunk["n_documents"], chunk["n_tokens"])
        for part in _collected(remote, job)
        for chunk in part.manifest["chunks"]
    }


def put_left_parts(remote: RemoteParts, folder: RunFolder, shard: Shard) -> None:
    """Puts there what a process that collected this shard had finished, and died."""
    for part in list_parts(folder.parts):
        if part.stage == "collect" and all(shard.owns(c["chunk"]) for c in part.manifest["chunks"]):
            move_part(remote, part)


def move_part(remote: RemoteParts, part: Part) -> None:
    """Puts a part there; where it is there already, that one counts."""
    remote.put(part)
    shutil.rmtree(part.folder)


def share_parts(
    remote: RemoteParts, folder: RunFolder, part_ids: Iterable[str], is_new: bool = False
) -> None:
    """Has parts that all machines must have alike lie here as they lie there.

    Args:
        remote: there.
        folder: of the run.
        part_ids: of parts that may lie here, there, or nowhere.
        is_new: those here were finished just now, and give way to one that came first.
    """
    for part_id in part_ids:
        here = folder.parts / part_id
        if here.exists():
            if remote.put(read_part(here)) or not is_new:
                continue
            shutil.rmtree(here)
        if there := remote.find(part_id):
            remote.fetch(there, folder.parts)


def bring_parts(
    remote: RemoteParts,
    job: CollectJob,
    folder: RunFolder,
    absorb: Callable[[], None],
    progress: Progress,
) -> None:
    """Absorbs what lies there and is not absorbed yet, and removes it there.

    Args:
        remote: there.
        job: of the run.
        folder: of the run.
        absorb: what lies in its folder of parts.
        progress: where it is shown.

    Raises:
        PartConflict: a part was collected under another configuration, or cuts text that is
            absorbed already in another way.
    """
    there = _collected(remote, job)
    with open_work(folder.path) as work:
        absorbed, known = absorbed_ids(work), read_collected(work).chunks
        # A part all of whose text is here, collected by ourselves meanwhile, adds nothing.
        added = {
            part.part_id: part
            for part in there
            if part.part_id not in absorbed
            and any(_id_of(known, c["chunk"]) != c["chunk_id"] for c in part.manifest["chunks"])
        }
        new = [part for part in added.values() if not part.is_spent]
        refuse_conflicts(work, ((part.url, part.manifest) for part in new))
    remote.spend(part for part in there if part.part_id not in added and part.has_tables)
    with progress.stage("bring", len(new), "parts") as stage:
        waiting = iter(new)
        while group := list(islice(waiting, _PARTS_AT_ONCE)):
            for part in group:
                remote.fetch(part, folder.parts)
                stage.advance()
            absorb()
            remote.spend(group)
    if n_lost := len(added) - len(new):
        progress.say(
            f"collect: another run has absorbed and removed {n_lost} parts under {remote.url}: "
            "what they held is collected again here; remove their spent.json to have shards do so"
        )


def leave_notes(remote: RemoteParts, folder: RunFolder) -> None:
    """Says there what was absorbed without having been there, for shards that begin later."""
    there = {part.part_id for part in remote.find_all()}
    with open_work(folder.path) as work:
        absorbed = chunks_by_part(work)
        identity = collected_identity(work)
    for part_id in sorted(set(absorbed) - there):
        chunks = [{"chunk": number, **asdict(chunk)} for number, chunk in absorbed[part_id].items()]
        remote.note(part_id, {"stage": "collect", "identity": identity, "chunks": chunks})


def _collected(remote: RemoteParts, job: CollectJob) -> list[RemotePart]:
    ours = json.loads(json.dumps(job.identity))
    found = [part for part in remote.find_all() if part.stage == "collect"]
    for part in found:
        refuse_other_configuration(part.url, ours, part.manifest["identity"])
    return found


def _id_of(known: dict[int, CollectedChunk], number: int) -> str | None:
    chunk = known.get(number)
    return None if chunk is None else chunk.chunk_id
