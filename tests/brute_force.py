"""The slow obvious twin of collecting: every activation kept, everything sorted in full.

It works on a made-up model whose activations are small whole numbers, so that arithmetic is
exact in any order and ties abound, and which depends on the token before, so that copies of a
window differ.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from scopenote.extract.collect_job import CollectJob
from scopenote.extract.firing_passes import HISTOGRAM_EDGES
from scopenote.extract.models import SubjectModel
from scopenote.extract.saes import Sae, SaeSource
from scopenote.extract.sites import Site
from scopenote.extract.sketches import SketchSizes
from scopenote.extract.windows import Chunk, WindowShape
from scopenote.store.splits import SPLITS, split_of, token_hash, window_id

SITE = Site(1, "res")
N_VOCABULARY, D = 12, 5


class LetterTokenizer:
    """Letters a to h are tokens 4 to 11; the first four ids are special."""

    bos_token_id, pad_token_id, all_special_ids = 2, 0, (0, 1, 2, 3)

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(c) - ord("a") + 4 for c in text] for text in texts]}


@dataclass
class WholeNumberModel:
    """Each token's vector is a row of one table plus the row before it of another."""

    own: np.ndarray
    before: np.ndarray
    name: str = "whole-number-model"
    content_hash: str = "0"
    source: str = "made up"
    tokenizer: Any = field(default_factory=LetterTokenizer)
    network: Any = field(default_factory=lambda: SimpleNamespace(dtype=torch.float32))
    reader: Any = field(default_factory=lambda: SimpleNamespace(cancelled=Event()))
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def read_sites(
        self, input_ids: torch.Tensor, sites: list[Site], position_ids: torch.Tensor | None = None
    ) -> dict[Site, torch.Tensor]:
        ids = input_ids.numpy()
        vectors = self.own[ids]
        vectors[:, 1:] += self.before[ids[:, :-1]]
        return {site: torch.from_numpy(vectors).to(self.network.dtype) for site in sites}


def make_job(
    seed: int,
    n_features: tuple[int, ...],
    shape: WindowShape,
    sizes: SketchSizes,
    dtype: torch.dtype = torch.float32,
) -> CollectJob:
    """A job in which every number is whole, so that no order of additions changes a sum.

    In bfloat16 the model's numbers are such as it has, and what SAEs make of them is not.
    """
    rng = np.random.default_rng(seed)

    def whole(*dims: int) -> np.ndarray:
        return rng.integers(-2, 3, dims).astype(np.float32)

    # BOS has an enormous vector, as in Gemma: it must never be recorded.
    own, before = whole(N_VOCABULARY, D), whole(N_VOCABULARY, D)
    own[2] = 1000
    before[2] = 0
    if dtype == torch.bfloat16:
        own, before = 37 * own, 37 * before
    model = WholeNumberModel(own, before, network=SimpleNamespace(dtype=dtype))
    saes = []
    for number, width in enumerate(n_features):
        source = SaeSource(f"whole-number-model/1-res-{number}", None, SITE, None, "made up")
        saes.append(
            Sae(
                source,
                torch.from_numpy(whole(width, D)),
                torch.from_numpy(whole(width)),
                torch.from_numpy(rng.integers(0, 4, width).astype(np.float32)),
                torch.from_numpy(whole(width, D)),
                torch.from_numpy(whole(D)),
                content_hash=str(number),
            )
        )
    return CollectJob(model, saes, shape, sizes, max_batch_tokens=24)


@dataclass
class Occurrence:
    """One window where it stands, with all activations."""

    split: int
    token_hash: int
    place: tuple[int, int]
    window_id: int
    doc_id: str
    token_ids: list[int]
    prefix: list[int]
    activations: list[np.ndarray]


def list_occurrences(job: CollectJob, chunks: list[Chunk]) -> list[Occurrence]:
    model: SubjectModel = job.model
    found = []
    documents = [document for chunk in chunks for document in chunk.documents]
    content = (job.shape.sequence_tokens - 1) // job.shape.window_tokens * job.shape.window_tokens
    for number, document in enumerate(documents):
        ids = model.tokenizer([document.text])["input_ids"][0]
        for begin in range(0, len(ids), content):
            sequence = ids[begin : begin + content]
            x = model.read_sites(torch.tensor([[2, *sequence]]), [SITE])[SITE][0, 1:]
            dense = [sae.encode(x).numpy() for sae in job.saes]
            for start in range(0, len(sequence), job.shape.window_tokens):
                window = sequence[start : start + job.shape.window_tokens]
                exact = np.array(window, np.int32)
                found.append(
                    Occurrence(
                        SPLITS.index(split_of(document.doc_id)),
                        token_hash(exact, job.shape.seed),
                        (number, begin + start),
                        window_id(model.name, document.doc_id, begin + start, exact),
                        document.doc_id,
                        window,
                        sequence[max(0, start - job.shape.prefix_tokens) : start],
                        [f[start : start + len(window)] for f in dense],
                    )
                )
    return found


def expected_tables(job: CollectJob, chunks: list[Chunk]) -> dict[str, list[tuple[Any, ...]]]:
    """The rows of `windows`, `contexts`, `background`, `feature_splits` and `features`."""
    everything = list_occurrences(job, chunks)
    banned: set[int] = set()
    rows: dict[str, list[tuple[Any, ...]]] = {
        name: [] for name in ("windows", "contexts", "background", "feature_splits", "features")
    }
    for split, name in enumerate(SPLITS):
        here = [o for o in everything if o.split == split]
        pool, copies = _pool(here, banned, job.sizes, split)
        kept: dict[tuple[int, int], Occurrence] = {o.place: o for o in pool.values()}
        for number, sae in enumerate(job.saes):
            for feature in range(sae.width):
                active = [o for o in here if o.activations[number][:, feature].max() > 0]
                chosen = _contexts(active, number, feature, banned, job.sizes, split)
                total = sum(n for _, kind, _, n in chosen if kind == "sample")
                for occurrence, kind, rank, n_copies in chosen:
                    kept[occurrence.place] = occurrence
                    is_sample = kind == "sample"
                    rows["contexts"].append(
                        (
                            sae.sae_id, feature, name, kind, rank, occurrence.window_id,
                            *_fired(occurrence, number, feature),
                            n_copies / total * len(active) if is_sample else None,
                            n_copies if is_sample else None,
                        )
                    )  # fmt: skip
                for key, window in pool.items():
                    firing = [o for o in active if o.token_hash == key]
                    if firing:
                        first = min(firing, key=lambda o: o.place)
                        fired = _fired(first, number, feature)[1:]
                        rows["background"].append(
                            (sae.sae_id, feature, window.window_id, *fired, name)
                        )
                values = [o.activations[number][:, feature] for o in here]
                flat = np.concatenate([*values, np.empty(0)]).astype(np.float64)
                rows["feature_splits"].append(
                    (
                        sae.sae_id, feature, name, len(here), len(active), len(flat),
                        int((flat > 0).sum()), flat.sum(), (flat**2).sum(),
                    )
                )  # fmt: skip
        for place, o in kept.items():
            in_pool = o.token_hash in pool and pool[o.token_hash].place == place
            rows["windows"].append(
                (
                    o.window_id, o.doc_id, name, place[1], o.token_ids, o.prefix,
                    copies[o.token_hash] if in_pool else None, in_pool,
                )
            )  # fmt: skip
        banned |= {o.token_hash for o in kept.values()}
    for number, sae in enumerate(job.saes):
        for feature in range(sae.width):
            flat = np.concatenate([o.activations[number][:, feature] for o in everything])
            fired = flat[flat > 0]
            bins = np.searchsorted(HISTOGRAM_EDGES, fired, side="right") - 1
            counts = np.bincount(np.maximum(bins, 0), minlength=len(HISTOGRAM_EDGES)).tolist()
            rows["features"].append(
                (
                    sae.sae_id, feature, len(fired), len(fired) / len(flat),
                    float(fired.max()) if len(fired) else 0.0,
                    float(fired.astype(np.float64).mean()) if len(fired) else None,
                    counts if len(fired) else None,
                )
            )  # fmt: skip
    return rows


def _reserve(size: int) -> int:
    return size + max(4, size // 4) if size else 0


def _pool(
    here: list[Occurrence], banned: set[int], sizes: SketchSizes, split: int
) -> tuple[dict[int, Occurrence], dict[int, int]]:
    size = sizes.background[split]
    in_sketch = sorted({o.token_hash for o in here})[: _reserve(size)]
    allowed = [key for key in in_sketch if key not in banned][:size]
    first = {
        key: min((o for o in here if o.token_hash == key), key=lambda o: o.place) for key in allowed
    }
    return first, {key: sum(o.token_hash == key for o in here) for key in allowed}


def _contexts(
    active: list[Occurrence],
    number: int,
    feature: int,
    banned: set[int],
    sizes: SketchSizes,
    split: int,
) -> list[tuple[Occurrence, str, int, int]]:
    copies: dict[int, list[Occurrence]] = {}
    for occurrence in active:
        copies.setdefault(occurrence.token_hash, []).append(occurrence)

    def peak(o: Occurrence) -> float:
        return float(o.activations[number][:, feature].max())

    best = [min(same, key=lambda o: (-peak(o), o.place)) for same in copies.values()]
    top = sorted(best, key=lambda o: (-peak(o), o.place))[: _reserve(sizes.top[split])]
    top = [o for o in top if o.token_hash not in banned][: sizes.top[split]]
    sample = sorted(copies)[: _reserve(sizes.sample[split])]
    sample = [key for key in sample if key not in banned][: sizes.sample[split]]
    return [(o, "top", rank, 0) for rank, o in enumerate(top, 1)] + [
        (min(copies[key], key=lambda o: o.place), "sample", rank, len(copies[key]))
        for rank, key in enumerate(sample, 1)
    ]


def _fired(
    occurrence: Occurrence, number: int, feature: int
) -> tuple[float, list[int], list[float]]:
    values = occurrence.activations[number][:, feature]
    positions = np.flatnonzero(values)
    return float(values.max()), positions.tolist(), values[positions].tolist()
