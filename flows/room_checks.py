"""Whether a run fits this machine: memory and disk, worked out from its configuration.

Only what can be known here and now is said. A model or an SAE that would have to be downloaded
first is not at hand, and what depends on it is not known.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from ..extract.gemma_scope_index import resolve_short_name
from ..extract.local_files import (
    find_local_model,
    find_local_sae,
    missing_weights,
    read_sae_shapes,
)
from ..extract.memory_needs import (
    Need,
    background_need,
    batch_need,
    context_need,
    encoder_shape,
    model_need,
    sae_need,
    sketch_need,
)
from ..extract.models import choose_device, choose_dtype, model_name, require_supported
from ..extract.neurons import expected_l0, neuron_shapes
from ..extract.passes import SHARE_OF_MEMORY, memory_for_passes, plan_passes
from ..extract.sae_sources import SaeSource, locate_sae, mend_neuron_name, neuron_source
from ..extract.sites import site_width
from ..extract.workers import n_at_once
from ..store.errors import ModelError, SaeError, ScopenoteError
from .collect_setup import sae_entries, sketch_sizes, toy_saes
from .config import CHUNK_DOCUMENTS, Config
from .findings import Finding, Verdict
from .machine_checks import DeviceMemory, nearest_existing, read_devices
from .summary import bytes_in_words

# The demo took 1.65 GB at its peak, 0.2 GB of which stand in the other lines.
_PROGRAM = Need(
    "program", 1_450_000_000, "Python, its packages, DuckDB and text read ahead, as in the demo"
)
# While a database is published: the one that is written, the old and the new published one;
# and a part, with the one that it is merged into. The demo took a third of what this gives.
_COPIES = 5
_TIGHT = 0.8


@dataclass(frozen=True, slots=True)
class SaeAtHand:
    """An SAE that lies on this machine, as its file describes itself."""

    source: SaeSource
    shapes: dict[str, tuple[int, ...]]

    @property
    def width(self) -> int:
        """How many features it has."""
        return encoder_shape(self.shapes)[1]


@dataclass(slots=True)
class _Known:
    """What could be found out of a configuration's model and SAEs."""

    config: Any = None
    saes: list[SaeAtHand] = field(default_factory=list)
    n_unknown: int = 0


def check_room(
    config: Config, folder: Path, devices: Sequence[DeviceMemory] | None = None
) -> list[Finding]:
    """What the configuration's model, SAEs and sketches need, against what there is.

    Args:
        config: of a run.
        folder: where the run lies or would lie.
        devices: instead of those that torch finds.
    """
    known = _Known()
    findings = [_check_model(config, known), *_check_saes(config, known)]
    if known.config is not None:
        findings += _check_memory(config, known, read_devices() if devices is None else devices)
    if known.saes:
        findings += _check_disk(config, known, folder)
    return findings


# --- what is at hand ----------------------------------------------------------------------


def _check_model(config: Config, known: _Known) -> Finding:
    name = config.model.name
    try:
        folder = find_local_model(name)
        if folder is None:
            return _model_missing(name)
        whole = AutoConfig.from_pretrained(folder)
        require_supported(name, whole)
        known.config = whole
        missing = missing_weights(folder)
    except ModelError as error:
        return _failure("model", error)
    except (OSError, ValueError, StrictDataclassError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        mend = "download or copy the model again"
        return Finding("model", f"{name}: config.json: {said}", Verdict.FAIL, mend)
    if missing is not None:
        found = f"{name}: {missing} is not on this machine"
        return Finding("model", found, Verdict.NOT_AT_HAND, "the run will download it, or copy it")
    return Finding("model", f"{name}: on this machine, in {folder}", Verdict.OK)


def _model_missing(name: str) -> Finding:
    if name.startswith(("/", ".", "~")) or Path(name).exists():
        found = f"{name}: no config.json there"
        return Finding(
            "model", found, Verdict.FAIL, "correct [model] name, or copy the model there"
        )
    found = f"{name}: not on this machine, so what it needs is not known"
    return Finding("model", found, Verdict.NOT_AT_HAND, "the run will download it")


def _check_saes(config: Config, known: _Known) -> Iterator[Finding]:
    try:
        entries = [(entry.path, entry.site, entry.layer) for entry in sae_entries(config)]
    except SaeError as error:  # a pattern that stands for none
        known.n_unknown += 1
        yield _failure("SAE", error)
        return
    if not entries:
        entries = [(str(file), None, None) for file in toy_saes()]
    for path, kind, layer in entries:
        try:
            if neurons := neuron_source(path, model_name(config.model.name), kind, layer):
                yield _judge_neurons(neurons, known)
                continue
            file = find_local_sae(path)
            if file is None:
                known.n_unknown += 1
                yield _sae_missing(path)
                continue
            source = locate_sae(str(file), model_name(config.model.name), kind, layer)
            at_hand = SaeAtHand(source, read_sae_shapes(file))
            yield _judge_sae(at_hand, known)
        except SaeError as error:
            known.n_unknown += 1
            yield _failure("SAE", error)


def _judge_neurons(source: SaeSource, known: _Known) -> Finding:
    if known.config is None:
        known.n_unknown += 1
        found = f"{source.sae_id}: as wide as the model, which is not known"
        return Finding("SAE", found, Verdict.NOT_AT_HAND, "the run will download the model")
    d = site_width(source.site, known.config)
    return _judge_sae(SaeAtHand(source, neuron_shapes(d)), known)


def _sae_missing(path: str) -> Finding:
    is_local = path.startswith(("/", ".", "~")) or Path(path).exists()
    if is_local or (path.count("/") < 2 and resolve_short_name(path) is None):
        mend = mend_neuron_name(path) or "correct [saes] paths"
        return Finding("SAE", f"{path}: no SAE there", Verdict.FAIL, mend)
    found = f"{path}: not on this machine, so what it needs is not known"
    return Finding("SAE", found, Verdict.NOT_AT_HAND, "the run will download it")


def _judge_sae(sae: SaeAtHand, known: _Known) -> Finding:
    name = sae.source.sae_id
    try:
        d_in, width = encoder_shape(sae.shapes)
    except (KeyError, ValueError):
        arrays = ", ".join(sae.shapes) or "none"
        known.n_unknown += 1
        mend = "download or copy it again"
        return Finding("SAE", f"{name}: no encoder among its arrays ({arrays})", Verdict.FAIL, mend)
    site = sae.source.site
    found = f"{name}: {width:,} features of {d_in:,} numbers, reads {site}"
    if known.config is not None:
        needed = site_width(site, known.config)
        n_layers = known.config.num_hidden_layers
        mend = "is it for another model or site?"
        if site.layer >= n_layers:
            known.n_unknown += 1
            return Finding("SAE", f"{found}; the model has {n_layers} layers", Verdict.FAIL, mend)
        if d_in != needed:
            known.n_unknown += 1
            return Finding("SAE", f"{found}; the site has {needed:,}", Verdict.FAIL, mend)
    known.saes.append(sae)
    return Finding("SAE", found, Verdict.OK)


def _failure(name: str, error: ScopenoteError) -> Finding:
    found = ": ".join(filter(None, (error.where, error.what, error.found)))
    return Finding(name, found, Verdict.FAIL, error.mend)


# --- what it takes ------------------------------------------------------------------------


def _check_memory(
    config: Config, known: _Known, devices: Sequence[DeviceMemory]
) -> Iterator[Finding]:
    try:
        device = choose_device(config.model.device)
        dtype = choose_dtype(config.model.dtype, device)
    except ModelError as error:
        yield _failure("device", error)
        return
    sizes = sketch_sizes(config)
    # Losses are measured with the whole model.
    if known.n_unknown or config.collect.loss_increase:
        n_layers = known.config.num_hidden_layers
    else:
        n_layers = 1 + max(sae.source.site.layer for sae in known.saes)
    weights = model_need(known.config, n_layers, dtype.itemsize)
    batches = batch_need(
        known.config,
        [sae.source.site for sae in known.saes],
        n_at_once=n_at_once(device),
        batch_tokens=config.model.max_batch_tokens,
        number_bytes=dtype.itemsize,
        sequence_tokens=config.collect.sequence_tokens,
        has_square_scores=device.type != "cpu",
    )
    saes = [sae_need(f"SAE {sae.source.sae_id}", sae.shapes) for sae in known.saes]
    sketches = [
        sketch_need(f"sketches {sae.source.sae_id}", sae.width, sizes) for sae in known.saes
    ]
    for need in (_PROGRAM, weights, batches, *saes, *sketches):
        yield _line(need)
    by_name = {found.name: found for found in devices}
    cpu, gpu = by_name["cpu"], None if device.type == "cpu" else by_name.get(_with_number(device))
    passes = plan_passes(
        [(sae.n_bytes, sketch.n_bytes) for sae, sketch in zip(saes, sketches, strict=True)],
        memory_for_passes(config.collect.memory_gib, cpu.total_bytes),
        None if gpu is None else int(SHARE_OF_MEMORY * (_there(gpu) - weights.n_bytes)),
    )
    if len(passes) > 1:
        found = f"{len(saes)} SAEs do not fit together: each text goes through the model "
        mend = "more memory, fewer windows kept in [collect], or fewer SAEs in one run"
        yield Finding("passes", f"{found}{len(passes)} times", Verdict.WARNING, mend)
    at_once = [sum(saes[n].n_bytes for n in group) for group in passes]
    kept = [sum(sketches[n].n_bytes for n in group) for group in passes]
    if gpu is None:
        both = max((a + b for a, b in zip(at_once, kept, strict=True)), default=0)
        needed = _PROGRAM.n_bytes + weights.n_bytes + batches.n_bytes + both
        yield _judge_memory("memory", needed, cpu, known.n_unknown)
        return
    needed = weights.n_bytes + batches.n_bytes + max(at_once, default=0)
    yield _judge_memory(f"memory of {gpu.name}", needed, gpu, known.n_unknown)
    # What is loaded lies in the machine's memory until it is moved, one thing after another.
    loading = max(need.n_bytes for need in (weights, *saes))
    needed = _PROGRAM.n_bytes + loading + max(kept, default=0)
    yield _judge_memory("memory of the CPU", needed, cpu, known.n_unknown)


def _with_number(device: torch.device) -> str:
    return f"cuda:{device.index or 0}" if device.type == "cuda" else device.type


def _line(need: Need) -> Finding:
    found = f"about {bytes_in_words(need.n_bytes)}: {need.arithmetic}"
    return Finding(need.name, found, Verdict.OK)


def _there(device: DeviceMemory) -> int:
    return device.total_bytes if device.free_bytes is None else device.free_bytes


def _judge_memory(name: str, needed: int, device: DeviceMemory, n_unknown: int) -> Finding:
    total = bytes_in_words(device.total_bytes)
    found = f"about {bytes_in_words(needed)} needed, "
    found += f"{bytes_in_words(_there(device))} free of {total}" if device.free_bytes else total
    found += _unknown(n_unknown)
    mend = (
        "a smaller [model] max_batch_tokens, or smaller `top` and `sample` in [collect.explain], "
        "[collect.select] and [collect.score]"
    )
    if needed > device.total_bytes:
        return Finding(name, found, Verdict.FAIL, mend)
    if needed > _TIGHT * _there(device):
        return Finding(name, found, Verdict.WARNING, f"free memory first, or: {mend}")
    return Finding(name, found, Verdict.OK)


def _unknown(n_unknown: int) -> str:
    return f"; {n_unknown} SAEs that are not at hand come on top" if n_unknown else ""


def _check_disk(config: Config, known: _Known, folder: Path) -> Iterator[Finding]:
    sizes, collect = sketch_sizes(config), config.collect
    needs = []
    for sae in known.saes:
        name = sae.source.sae_id
        needs.append(context_need(f"contexts {name}", sae.width, sizes, _COPIES))
        l0 = expected_l0(sae.width) if sae.source.is_neuron_basis else sae.source.stated_l0
        if l0 is None:
            found = "its path states no L0, so what fires in the background is not known"
            yield Finding(f"background {name}", found, Verdict.NOT_AT_HAND)
            continue
        needs.append(
            background_need(f"background {name}", l0, sizes, collect.window_tokens, _COPIES)
        )
    yield from map(_line, needs)
    needed = sum(need.n_bytes for need in needs)
    part = sum(need.n_bytes // need.n_copies for need in needs)
    free = shutil.disk_usage(nearest_existing(folder)).free
    found = (
        f"about {bytes_in_words(needed)} needed, {bytes_in_words(free)} free; of more than "
        f"{collect.chunks_per_part * CHUNK_DOCUMENTS:,} documents, {bytes_in_words(part)} for each "
        f"further part as large until all text is read{_unknown(known.n_unknown)}"
    )
    if needed <= _TIGHT * free:
        yield Finding("disk", found, Verdict.OK)
        return
    verdict = Verdict.FAIL if needed > free else Verdict.WARNING
    mend = "choose a folder on another disk with `--out`, or keep fewer windows in [collect]"
    yield Finding("disk", found, verdict, mend)
