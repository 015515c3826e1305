"""What a job would take, on paper: from a configuration alone, for any number of SAEs.

Nothing is downloaded and nothing is measured here. Every figure comes with what it was computed
from; constants that were measured, and those that are assumed, are named where they stand.
What it leaves out: reading and tokenizing text, which collecting does beside the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any

from ..extract.memory_needs import count_parameters, model_need, sae_need, sketch_need
from ..extract.passes import SHARE_OF_MEMORY, memory_for_passes, plan_passes
from ..store.errors import UserMistake
from .collect_setup import sketch_sizes
from .config import Config
from .estimate_asking import Asked, estimate_asking
from .estimate_disk import estimate_disk
from .paper_saes import PaperSae
from .paper_words import Line, bytes_said, hours_said, rounded

# NVIDIA H100 SXM, data sheet: bfloat16 on tensor cores without sparsity, and float32. SAEs are
# computed in float32. The share of both that is reached is assumed.
GPU = "H100"
BFLOAT16_FLOPS, FLOAT32_FLOPS, SHARE_OF_PEAK = 989e12, 67e12, 0.3
_BFLOAT16_BYTES = 2


@dataclass(frozen=True, slots=True)
class Machines:
    """What the work is spread over; the defaults are assumptions.

    Attributes:
        n: machines, each with one GPU.
        tokens_per_second: measured on one of them, in one pass; None to work it out.
        gpu_gib: memory of a GPU.
        memory_gib: memory of a machine.
        seconds_per_call: that a language model takes for a reply.
    """

    n: int = 1
    tokens_per_second: float | None = None
    gpu_gib: float = 80.0
    memory_gib: float = 512.0
    seconds_per_call: float = 2.0


@dataclass(frozen=True, slots=True)
class PaperEstimate:
    """What a job would take.

    Attributes:
        tokens: of the corpus.
        lines: figures, each with what it was computed from.
        asked: what language models would be asked, a row for each way.
    """

    tokens: int
    lines: tuple[Line, ...]
    asked: tuple[Asked, ...]

    def amount(self, name: str) -> float | None:
        """The figure of this name."""
        return next(line.amount for line in self.lines if line.name == name)

    @property
    def usd(self) -> Decimal | None:
        """All dollars; None where a price is not known."""
        known = [row.usd for row in self.asked if row.usd is not None]
        return sum(known, Decimal(0)) if len(known) == len(self.asked) else None

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "usd": self.usd}


def estimate_at_scale(
    config: Config, saes: Sequence[PaperSae], tokens: int | None, machines: Machines
) -> PaperEstimate:
    """What labelling all features of these SAEs would take.

    Args:
        config: of a run, which says how labels are written and scored.
        saes: of any models; those of each are collected in a run of their own.
        tokens: of the corpus; by default as the configuration says.
        machines: that do it.

    Raises:
        UserMistake: nobody says how large the corpus is.
    """
    tokens = tokens or config.corpus.max_tokens
    if tokens is None:
        raise UserMistake(
            "How much text there is decides the estimate, and nothing says it.",
            where="key `corpus.max_tokens`",
            mend="add `--tokens`, such as `--tokens 10000000`",
        )
    n_features = sum(sae.width for sae in saes)
    models = sorted({sae.model for sae in saes})
    reading = _reading(config, saes, tokens, machines)
    asked = estimate_asking(config, n_features, machines.seconds_per_call)
    lines = [
        Line("SAEs", len(saes), "", f"named by the configuration, of {' and '.join(models)}"),
        Line("features", n_features, "", "their widths; those that never fire are not known here"),
        *reading,
        *estimate_disk(config, saes, tokens, n_features if asked else 0),
    ]
    hours = next(line.amount for line in reading if line.name == "collecting")
    known = [row.hours for row in asked if row.hours is not None]
    basis = f"collecting {hours_said(hours)}, then asking {hours_said(sum(known))}, in turn"
    if len(known) < len(asked):
        basis += "; batches, each answered within a day, are not in it"
    lines.append(Line("wall time", hours + sum(known), "hours", basis))
    return PaperEstimate(tokens, tuple(lines), asked)


def _reading(
    config: Config, saes: Sequence[PaperSae], tokens: int, machines: Machines
) -> list[Line]:
    """Passes, and the hours that they take."""
    operations, describing, n_passes, needs = 0.0, 0.0, 0, []
    for model in sorted({sae.model for sae in saes}):
        of_model = [sae for sae in saes if sae.model == model]
        shape = of_model[0].shape
        n_layers = 1 + max(sae.site.layer for sae in of_model)
        passes, said = _plan(config, of_model, n_layers, machines)
        n_passes += passes
        needs.append(f"{model}: {said}")
        forward = _forward_operations(shape, n_layers, config.collect.sequence_tokens)
        encoders = sum(2 * sae.d_in * sae.width for sae in of_model)
        operations += passes * forward / BFLOAT16_FLOPS + encoders / FLOAT32_FLOPS
        describing += sum(_describing_operations(config, sae) for sae in of_model) / FLOAT32_FLOPS
    if machines.tokens_per_second is None:
        hours = tokens * operations / SHARE_OF_PEAK / 3600
        basis = (
            f"{rounded(tokens)} tokens × operations by shape; {SHARE_OF_PEAK:.0%} (assumed) of an "
            f"{GPU}'s {BFLOAT16_FLOPS / 1e12:.0f} TFLOP/s in bfloat16 for the model and "
            f"{FLOAT32_FLOPS / 1e12:.0f} in float32 for SAEs (data sheet)"
        )
    else:
        hours = tokens * n_passes / machines.tokens_per_second / 3600
        basis = (
            f"{rounded(tokens)} tokens × {n_passes:,} passes / {machines.tokens_per_second:,g} "
            "tokens a second, as given"
        )
    describing_hours = describing / SHARE_OF_PEAK / 3600
    every = (hours + describing_hours) / machines.n
    return [
        Line("passes over the text", n_passes, "", "; ".join(needs)),
        Line("GPU time, text", hours, "hours", basis),
        Line(
            "GPU time, output tokens and neighbours",
            describing_hours,
            "hours",
            "all pairs of a feature with tokens of the vocabulary and other features, in float32",
        ),
        Line(
            "collecting",
            every,
            "hours",
            f"both, by {machines.n:,} GPUs" if machines.n > 1 else "both, by one GPU",
        ),
    ]


def _plan(
    config: Config, saes: Sequence[PaperSae], n_layers: int, machines: Machines
) -> tuple[int, str]:
    sizes = sketch_sizes(config)
    weights = model_need(saes[0].shape, n_layers, _BFLOAT16_BYTES)
    device = int(SHARE_OF_MEMORY * (machines.gpu_gib * 2**30 - weights.n_bytes))
    memory = memory_for_passes(config.collect.memory_gib, int(machines.memory_gib * 2**30))
    needs = [
        (
            sae_need(sae.sae_id, sae.arrays).n_bytes,
            sketch_need(sae.sae_id, sae.width, sizes).n_bytes,
        )
        for sae in saes
    ]
    n_passes = len(plan_passes(needs, memory, device))
    said = (
        f"{bytes_said(sum(need[0] for need in needs))} of SAEs by {bytes_said(device)} of a GPU "
        f"({SHARE_OF_MEMORY:.0%} of what {n_layers} layers leave of {machines.gpu_gib:g} GiB), "
        f"{bytes_said(sum(need[1] for need in needs))} of sketches by {bytes_said(memory)} "
        f"of memory: {n_passes:,}"
    )
    too_large = sum(need[0] > device or need[1] > memory for need in needs)
    return n_passes, said + (f"; {too_large} do not fit even alone" if too_large else "")


def _forward_operations(shape: Any, n_layers: int, sequence_tokens: int) -> float:
    """For one token: two a weight, and attention over half of the longest sequence."""
    weights = count_parameters(shape, n_layers) - count_parameters(shape, 0)
    seen = sequence_tokens / 2
    attention = 2 * seen * shape.num_attention_heads * shape.head_dim * n_layers
    return float(2 * (weights + attention))


def _describing_operations(config: Config, sae: PaperSae) -> float:
    tokens: int = sae.shape.vocab_size * config.collect.logit_effects
    features = sae.width * config.collect.neighbours
    return 2.0 * sae.d_in * sae.width * (tokens + features)
