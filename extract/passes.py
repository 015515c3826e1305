"""Which SAEs are collected together, where not all of them fit into memory at once.

A pass is once through a part's text with some of the SAEs. How many there are changes no result.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch

from .collector import CollectedPart

if TYPE_CHECKING:
    from .saes import Sae

SHARE_OF_MEMORY = 0.6


def memory_for_passes(asked_gib: float | None, total_bytes: int) -> int:
    """Bytes that the SAEs of a pass and their sketches may take together.

    Args:
        asked_gib: what the user allows; None for a share of what there is.
        total_bytes: of the machine's memory.
    """
    return int(asked_gib * 2**30 if asked_gib else SHARE_OF_MEMORY * total_bytes)


def memory_of_device(device: torch.device) -> int | None:
    """Bytes that SAEs may take of a device beside the model; None where it is the machine's."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return int(free * SHARE_OF_MEMORY)


def plan_passes(
    needs: Sequence[tuple[int, int]], machine: int, device: int | None
) -> tuple[tuple[int, ...], ...]:
    """Groups of SAEs by number, as few as first-fit-decreasing finds.

    Args:
        needs: bytes of each SAE's weights and of its sketches.
        machine: bytes of the machine's memory that a group may take.
        device: bytes of the device's memory for weights; None where they lie in the machine's.

    Returns:
        Each SAE in one group; one that does not fit even alone is a group of its own.
    """
    by_size = sorted(range(len(needs)), key=lambda n: -sum(needs[n]))
    groups: list[list[int]] = []
    for number in by_size:
        for group in groups:
            weights = sum(needs[n][0] for n in (*group, number))
            sketches = sum(needs[n][1] for n in (*group, number))
            fits = (
                weights + sketches <= machine
                if device is None
                else weights <= device and sketches <= machine
            )
            if fits:
                group.append(number)
                break
        else:
            groups.append([number])
    return tuple(sorted(tuple(sorted(group)) for group in groups))


def released(sae: Sae) -> Sae:
    """The same SAE with nothing of its weights but their shapes."""
    return sae.to(torch.device("meta"))


def is_released(sae: Sae) -> bool:
    """Whether its weights have to be read again before it can encode."""
    return sae.encoder.device.type == "meta"


def on_disk(part: CollectedPart, folder: Path | None) -> CollectedPart:
    """The same part with its large tables in files without a name, read as they are needed."""
    tables = {
        name: _mapped(table, folder) if isinstance(table, pa.Table) and table.nbytes else table
        for name, table in part.tables.items()
    }
    return CollectedPart(tables, part.n_tokens, part.too_large)


def _mapped(table: pa.Table, folder: Path | None) -> pa.Table:
    with TemporaryDirectory(dir=folder, prefix=".pass-") as temporary:
        file = Path(temporary) / "table.arrow"
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        # The file's content stays for as long as it is mapped.
        return pa.ipc.open_file(pa.memory_map(str(file))).read_all()


def join_passes(parts: Sequence[CollectedPart], passes: Sequence[Sequence[int]]) -> CollectedPart:
    """One part of several passes over the same text; SAEs take their numbers of the whole job."""
    tables: dict[str, pa.Table | pa.RecordBatchReader] = {
        name: parts[0].tables[name] for name in ("pool", "totals", "chunks")
    }
    for part, group in zip(parts, passes, strict=True):
        for name in ("pool", "totals", "chunks"):
            assert part.tables[name].equals(tables[name]), "passes over the same text"
        for here, number in enumerate(group):
            for name in ("contexts", "background", "counts", "features"):
                tables[f"{name}-{number}"] = part.tables[f"{name}-{here}"]
    tables["fidelity"] = pa.concat_tables(
        _renumbered(part.tables["fidelity"], group)
        for part, group in zip(parts, passes, strict=True)
    )
    windows = pa.concat_tables(part.tables["windows"].read_all() for part in parts)
    _, first = np.unique(windows["occurrence"].to_numpy(), return_index=True)
    tables["windows"] = windows.take(pa.array(first))
    too_large = min((part.too_large for part in parts if part.too_large), default=None)
    return CollectedPart(tables, parts[0].n_tokens, too_large)


def _renumbered(fidelity: pa.Table, group: Sequence[int]) -> pa.Table:
    numbers = np.array(group, np.int32)[fidelity["sae"].to_numpy()]
    place = fidelity.schema.get_field_index("sae")
    return fidelity.set_column(place, "sae", pa.array(numbers, pa.int32()))
