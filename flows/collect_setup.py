"""From a configuration to what the extract room works with: model, SAEs, corpus."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from ..extract.chat_text import chat_renderer
from ..extract.collect_job import CollectJob
from ..extract.corpus import CorpusSource, Document, RowCounts, read_documents
from ..extract.corpus_rows import ordered_names
from ..extract.machine_memory import total_memory_bytes
from ..extract.memory_needs import sketch_need
from ..extract.models import TOY, SubjectModel, load_model, model_name
from ..extract.neurons import (
    PREFIX_TOKENS,
    find_thresholds,
    thresholds_id,
    thresholds_table,
)
from ..extract.passes import (
    memory_for_passes,
    memory_of_device,
    plan_passes,
    released,
)
from ..extract.sae_patterns import is_pattern, match_saes
from ..extract.sae_sources import SaeSource, locate_sae
from ..extract.saes import Sae, load_sae
from ..extract.sketches import SketchSizes
from ..extract.windows import WindowShape, cut_chunks, take_prefix, tokenize_chunk
from ..extract.workers import threads_per_batch
from ..store.errors import ConfigurationError
from ..store.parts import read_part, write_part
from ..store.run_folder import RunFolder
from ..store.splits import SPLITS
from .config import Config, SaeEntry
from .parts_elsewhere import remote_parts, share_parts
from .progress import Progress


def settled_corpus(config: Config, folder: RunFolder) -> CorpusSource:
    """The text that the configuration names, the order of its files settled for good.

    Raises:
        CorpusError: it is not there, or a file of it that the run has read is gone.
    """
    source = corpus_source(config, folder)
    if source.path is not None and Path(source.path).is_dir():
        folder.write_corpus_files(ordered_names(source))
    return corpus_source(config, folder)


def corpus_source(config: Config, folder: RunFolder) -> CorpusSource:
    """The text that the configuration names; files that the run has read come first."""
    corpus = config.corpus
    return CorpusSource(
        path=corpus.path,
        dataset=corpus.dataset,
        dataset_config=corpus.dataset_config,
        dataset_split=corpus.dataset_split,
        revision=corpus.revision,
        standard_library=corpus.standard_library,
        text_field=corpus.text_field,
        text_unit=corpus.text_unit,
        chat=corpus.chat,
        known_files=folder.read_corpus_files(),
        max_bad_share=corpus.max_bad_share,
    )


def corpus_documents(
    source: CorpusSource, counts: RowCounts, model: SubjectModel
) -> Iterator[Document]:
    """The documents of that text, for this model; `counts` is kept up as they are read."""
    render = chat_renderer(model.tokenizer, model.source) if source.chat else None
    return read_documents(source, counts, render)


def window_shape(config: Config) -> WindowShape:
    """How documents are cut."""
    return WindowShape(
        window_tokens=config.collect.window_tokens,
        prefix_tokens=config.collect.prefix_tokens,
        sequence_tokens=config.collect.sequence_tokens,
        seed=config.collect.seed,
    )


def sae_sources(config: Config) -> list[SaeSource]:
    """The SAEs and neuron bases that the configuration names; the toy's SAEs where none.

    Raises:
        SaeError: one is not there, or does not say what it reads.
        ConfigurationError: two of them have the same id.
    """
    model = model_name(config.model.name)
    if not config.saes.paths and config.model.name == TOY:
        sources = [locate_sae(str(file), model) for file in toy_saes()]
    else:
        sources = [
            locate_sae(entry.path, model, entry.site, entry.layer) for entry in sae_entries(config)
        ]
    ids = [source.sae_id for source in sources]
    twice = sorted({sae_id for sae_id in ids if ids.count(sae_id) > 1})
    if twice:
        raise ConfigurationError(
            "Two SAEs have the same id.",
            where="[saes] paths",
            found="; ".join(
                f"{sae_id}: "
                + " and ".join(source.source for source in sources if source.sae_id == sae_id)
                for sae_id in twice
            ),
            expected="each SAE once",
            mend="remove one, or rename the folder that its id is made from",
        )
    return sources


def sae_entries(config: Config) -> list[SaeEntry]:
    """The SAEs that the configuration names, each pattern as the SAEs that it stands for.

    Raises:
        SaeError: a pattern stands for none that reads this model.
    """
    model = model_name(config.model.name)
    return [
        entry.model_copy(update={"path": path})
        for entry in config.saes.paths
        for path in (
            [sae.path for sae in match_saes(entry.path, model)]
            if is_pattern(entry.path)
            else [entry.path]
        )
    ]


def toy_saes() -> list[Path]:
    """The files of the toy's SAEs."""
    folder = Path(str(files("scopenote.extract.toy").joinpath("saes")))
    return sorted(folder.rglob("params.npz"))


def sketch_sizes(config: Config) -> SketchSizes:
    """How many windows are kept."""
    kept = [config.collect.kept(split) for split in SPLITS]
    return SketchSizes(
        top=(kept[0].top, kept[1].top, kept[2].top),
        sample=(kept[0].sample, kept[1].sample, kept[2].sample),
        background=(
            kept[0].background_windows,
            kept[1].background_windows,
            kept[2].background_windows,
        ),
    )


def load_collect_job(
    config: Config, sources: list[SaeSource], folder: RunFolder, progress: Progress
) -> CollectJob:
    """Loads the model, as deep as the SAEs need it, and the SAEs.

    The thresholds of neurons are worked out if they are not in the run's folder yet.
    """
    model = load_model(
        config.model.name,
        [source.site for source in sources],
        config.model.device,
        config.model.dtype,
    )
    sizes = sketch_sizes(config)
    sources = with_thresholds(config, sources, model, folder, progress)
    saes, passes = _load_saes(config, sources, model, sizes)
    return CollectJob(
        model=model,
        saes=saes,
        shape=window_shape(config),
        sizes=sizes,
        max_batch_tokens=config.model.max_batch_tokens,
        passes=passes,
    )


def with_thresholds(
    config: Config,
    sources: list[SaeSource],
    model: SubjectModel,
    folder: RunFolder,
    progress: Progress,
) -> list[SaeSource]:
    """The sources, each neuron basis with the table of its thresholds.

    What the run's parts lack, and those under its URL, is worked out. Of several processes that
    do so at once the first to finish is believed by all, as of any part.
    """
    if not any(source.is_neuron_basis for source in sources):
        return sources
    shape = window_shape(config)
    # Rows that cannot be used are judged when all are read.
    documents = corpus_documents(corpus_source(config, folder), RowCounts(), model)
    chunks = (
        tokenize_chunk(chunk, model.tokenizer, model.name, shape) for chunk in cut_chunks(documents)
    )
    prefix = take_prefix(chunks, PREFIX_TOKENS)
    batch_tokens = config.model.max_batch_tokens
    parts = {
        source.site: folder.parts / thresholds_id(model, source.site, prefix, shape, batch_tokens)
        for source in sources
        if source.is_neuron_basis
    }
    remote = remote_parts(config)
    if remote is not None:
        share_parts(remote, folder, [part.name for part in parts.values()])
    if missing := [site for site, part in parts.items() if not part.exists()]:
        total = sum(chunk.n_tokens for chunk in prefix)
        with progress.stage("neurons", total, "tokens") as stage:
            found = find_thresholds(model, missing, prefix, batch_tokens, stage.advance)
        for site in missing:
            manifest = {
                "layer": site.layer,
                "n_tokens": total,
                "device": str(model.device),
                "threads": threads_per_batch(model.device),
            }
            table = thresholds_table(found[site])
            write_part(folder.parts, parts[site].name, "neurons", {"thresholds": table}, manifest)
        if remote is not None:
            share_parts(remote, folder, [parts[site].name for site in missing], is_new=True)
    return [
        replace(source, path=read_part(parts[source.site]).file("thresholds"))
        if source.is_neuron_basis
        else source
        for source in sources
    ]


def _load_saes(
    config: Config, sources: list[SaeSource], model: SubjectModel, sizes: SketchSizes
) -> tuple[list[Sae], tuple[tuple[int, ...], ...]]:
    """All SAEs, checked, and the passes in which they fit; what does not is released again."""
    machine = memory_for_passes(config.collect.memory_gib, total_memory_bytes())
    device = memory_of_device(model.device)
    saes: list[Sae] = []
    needs: list[tuple[int, int]] = []
    for source in sources:
        sae = load_sae(source, model.config)
        needs.append((sae.n_bytes, sketch_need(sae.sae_id, sae.width, sizes).n_bytes))
        fits = len(plan_passes(needs, machine, device)) == 1
        saes.append(sae.to(model.device) if fits else released(sae))
    passes = plan_passes(needs, machine, device)
    if len(passes) > 1:
        saes = [released(sae) for sae in saes]
    return saes, passes
