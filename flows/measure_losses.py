"""After collecting, where it is asked for: what each SAE's reconstruction costs the model.

The model is loaded whole, which collecting never does, and the SAEs one after the other. What
was measured once stays measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..extract.collect_job import changed_sae, require_same_chunk
from ..extract.corpus import RowCounts
from ..extract.models import SubjectModel, load_model
from ..extract.next_token_loss import (
    LOSS_TOKENS,
    LossText,
    loss_text,
    own_loss,
    spliced_loss,
    zeroed_loss,
)
from ..extract.sae_sources import SaeSource
from ..extract.saes import Sae, load_sae
from ..extract.sites import Site
from ..extract.windows import TokenizedChunk, cut_chunks, tokenize_chunk
from ..store.database import open_work
from ..store.losses import (
    MissingLosses,
    SaeLosses,
    first_chunks,
    missing_losses,
    write_losses,
)
from ..store.records import CollectedChunk
from ..store.run_folder import RunFolder
from .batches import as_is
from .collect_setup import corpus_documents, corpus_source, window_shape, with_thresholds
from .config import Config
from .progress import Progress, Stage
from .task_policy import retried_task

NO_HEAD = "losses are unknown: the model keeps its unembedding in a head that is not loaded"


@dataclass(frozen=True, slots=True)
class MeasuredLosses:
    """What was done.

    Attributes:
        has_changed: whether the database has.
        notes: what a person should know, a sentence each.
    """

    has_changed: bool = False
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class LossBench:
    """The model and the text that losses are measured on, and what needs measuring only once."""

    model: SubjectModel
    text: LossText
    stage: Stage
    own: float | None = None
    zeroed: dict[Site, float | None] = field(default_factory=dict)


def measure_losses(
    config: Config, folder: RunFolder, sources: list[SaeSource], progress: Progress
) -> MeasuredLosses:
    """Measures what is missing, if the configuration asks for it, and writes it.

    Args:
        config: of the run; `collect.loss_increase` says whether it is wanted.
        folder: of the run, with its corpus collected.
        sources: of its SAEs.
        progress: where it is shown.

    Raises:
        ModelError: the model cannot be loaded whole, or the device has no room for a sequence.
        SaeError: an SAE's file is no longer the one that the run was collected with.
        CorpusError: the text is no longer what was collected.
    """
    if not config.collect.loss_increase:
        return MeasuredLosses()
    with open_work(folder.path) as work:
        missing = missing_losses(work, LOSS_TOKENS)
        chunks = first_chunks(work, LOSS_TOKENS)
    if not missing:
        return MeasuredLosses()
    model = load_model(config.model.name, [], config.model.device, config.model.dtype)
    sources = with_thresholds(config, sources, model, folder, progress)
    text = loss_text(
        _first_text(config, folder, model, chunks), model, config.model.max_batch_tokens
    )
    found = []
    ids = {each.sae_id for each in missing}
    targets = {source.site.target for source in sources if source.sae_id in ids}
    n_passes = 1 + len(targets) + len(missing)
    with progress.stage("loss", text.n_predictions * n_passes, "tokens") as stage:
        bench = LossBench(model, text, stage)
        for each in missing:
            losses = measure_sae(as_is(bench), as_is(_load(sources, each, model)))
            with open_work(folder.path) as work:
                write_losses(work, each, LOSS_TOKENS, losses)
            found.append(losses)
    return MeasuredLosses(True, (_note(found),))


@retried_task("measure-loss")
def measure_sae(bench: LossBench, sae: Sae) -> SaeLosses:
    """Measures one SAE's losses; the model's own and each site's zeros only the first time."""
    model, text, n = bench.model, bench.text, bench.text.n_predictions
    if bench.own is None:
        bench.own = own_loss(model, text)
        bench.stage.advance(n)
    if sae.target not in bench.zeroed:
        bench.zeroed[sae.target] = zeroed_loss(model, text, sae.target)
        bench.stage.advance(n)
    spliced = spliced_loss(model, text, sae)
    bench.stage.advance(n)
    return SaeLosses(bench.own, spliced, bench.zeroed[sae.target], n)


def _first_text(
    config: Config, folder: RunFolder, model: SubjectModel, chunks: Sequence[CollectedChunk]
) -> Iterator[TokenizedChunk]:
    """The corpus's first chunks, which must be those that were collected."""
    documents = corpus_documents(corpus_source(config, folder), RowCounts(), model)
    cut = cut_chunks(documents, dict(enumerate(chunks)))
    for stored, chunk in zip(chunks, cut, strict=False):
        require_same_chunk(chunk, stored)
        yield tokenize_chunk(chunk, model.tokenizer, model.name, window_shape(config))


def _load(sources: Sequence[SaeSource], missing: MissingLosses, model: SubjectModel) -> Sae:
    found = []
    for source in sources:
        if source.sae_id == missing.sae_id:
            sae = load_sae(source, model.config)
            if sae.content_hash == missing.weights:
                return sae.to(model.device)
            found.append(sae)
    raise changed_sae(found, missing.sae_id, missing.weights)


def _note(found: Sequence[SaeLosses]) -> str:
    own = found[0].own
    increases = [
        each.spliced - each.own
        for each in found
        if each.own is not None and each.spliced is not None
    ]
    if own is None or not increases:
        return NO_HEAD if found[0].n_tokens else "losses are undefined: the text predicts no token"
    low, high = (f"{value:+.4f}".replace("-", "−") for value in (min(increases), max(increases)))
    with_saes = low if len(found) == 1 else f"{low} to {high}"
    return (
        f"the model's next-token loss is {own:.4f} nats over {found[0].n_tokens:,} tokens, "
        f"{with_saes} with an SAE's reconstruction spliced in"
    )
