"""Train the toy's sparse autoencoders and write them in Gemma Scope's layout.

Trained as BatchTopK (Bussmann et al. 2024, arXiv 2412.06410), which needs no sparsity coefficient,
then frozen into the JumpReLU that it estimates: one threshold, the same for every feature. All
scaling is folded into the weights, so at run time nothing is subtracted or divided.
"""

import logging
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Gemma2Model

BOS = 2
LAYER = 1
FEATURES = 1_024
TARGET_L0: Mapping[str, int] = {"res": 14, "mlp": 12, "att": 12}
SEQUENCE_LENGTH = 1_024
TOKENS_TO_LEARN_FROM = 1_200_000
TOKENS_FOR_L0 = 500_000

STEPS = 2_500
TOKENS_PER_STEP = 2_048
LEARNING_RATE = 1.5e-3
ROWS_RANKED = 256
"""The batch's k-th activation is read off this many of its rows: a ranking of all costs more than
the matrix products."""
STEPS_UNTIL_DEAD = 60
REVIVED_PER_TOKEN = 32
REVIVAL_SHARE = 1 / 16

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JumpReLU:
    """A sparse autoencoder as Gemma Scope stores it."""

    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor
    b_dec: Tensor
    threshold: Tensor

    def encode(self, x: Tensor) -> Tensor:
        """Give the features of activations, zero where not above the threshold."""
        pre = x @ self.W_enc + self.b_enc
        return pre * (pre > self.threshold)

    def decode(self, features: Tensor) -> Tensor:
        """Give the reconstruction."""
        return features @ self.W_dec + self.b_dec


@torch.inference_mode()
def collect_activations(model: Gemma2Model, documents: Sequence[Tensor]) -> dict[str, Tensor]:
    """Give the three sites' activations at every token in order, BOS fed but left out."""
    seen: dict[str, Tensor] = {}
    layer = model.get_submodule(f"layers.{LAYER}")
    norm = layer.get_submodule("post_feedforward_layernorm")
    projection = layer.get_submodule("self_attn.o_proj")
    hooks = [
        layer.register_forward_hook(lambda _module, _inputs, output: seen.update(res=output)),
        norm.register_forward_hook(lambda _module, _inputs, output: seen.update(mlp=output)),
        projection.register_forward_pre_hook(lambda _module, inputs: seen.update(att=inputs[0])),
    ]
    kept: dict[str, list[Tensor]] = {site: [] for site in TARGET_L0}
    try:
        for document in documents:
            for piece in torch.split(document, SEQUENCE_LENGTH - 1):
                model(input_ids=functional.pad(piece, (1, 0), value=BOS)[None], use_cache=False)
                for site, pieces in kept.items():
                    pieces.append(seen[site][0, 1:].clone())
    finally:
        for hook in hooks:
            hook.remove()
    return {site: torch.cat(pieces) for site, pieces in kept.items()}


class _BatchTopK(nn.Module):
    """The autoencoder while it learns, in units where the variance about the mean is one."""

    def __init__(self, mean: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        directions = torch.randn(FEATURES, len(mean), generator=generator)
        directions = functional.normalize(directions, dim=1)
        self.W_enc = nn.Parameter(directions.T.clone())
        self.W_dec = nn.Parameter(directions.clone())
        self.b_enc = nn.Parameter(-mean @ directions.T)
        self.b_dec = nn.Parameter(mean.clone())

    def loss(self, x: Tensor, l0: int, idle_steps: Tensor) -> tuple[Tensor, float]:
        """Give the loss and the threshold in use; count the steps each feature has been idle."""
        pre = functional.relu(x @ self.W_enc + self.b_enc)
        ranked = pre[:ROWS_RANKED].detach().flatten()
        threshold = ranked.topk(l0 * ROWS_RANKED, sorted=True).values[-1]
        active = pre * (pre > threshold)
        idle_steps += 1
        idle_steps[active.detach().any(0)] = 0
        directions = functional.normalize(self.W_dec, dim=1)
        missed = x - active @ directions - self.b_dec
        loss = missed.square().sum(1).mean()
        dead = torch.nonzero(idle_steps > STEPS_UNTIL_DEAD).squeeze(1)
        if len(dead):
            revival = self._revival_loss(pre[:, dead], missed.detach(), directions[dead])
            loss = loss + REVIVAL_SHARE * revival
        return loss, threshold.item()

    @staticmethod
    def _revival_loss(pre: Tensor, missed: Tensor, directions: Tensor) -> Tensor:
        """Let dead features explain what the living missed (Gao et al. 2024, appendix A.2)."""
        kept = pre.topk(min(REVIVED_PER_TOKEN, pre.shape[1]), dim=1)
        active = torch.zeros_like(pre).scatter(1, kept.indices, kept.values)
        return (missed - active @ directions).square().sum(1).mean()


def train_sae(x: Tensor, l0: int, seed: int, steps: int = STEPS) -> JumpReLU:
    """Train on activations and give the autoencoder for them as they are, unscaled."""
    generator = torch.Generator().manual_seed(seed)
    mean = x.mean(0)
    scale = (x - mean).square().sum(1).mean().sqrt().item()
    learner = _BatchTopK(mean / scale, generator)
    optimizer = torch.optim.Adam(learner.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99))
    idle_steps = torch.zeros(FEATURES, dtype=torch.long)
    threshold, began = 0.0, time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * _share_of_learning_rate(step / steps)
        batch = x[torch.randint(len(x), (TOKENS_PER_STEP,), generator=generator)] / scale
        loss, latest = learner.loss(batch, l0, idle_steps)
        threshold = latest if step == 0 else 0.99 * threshold + 0.01 * latest
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        if step % 250 == 0:
            dead = int((idle_steps > STEPS_UNTIL_DEAD).sum())
            seconds = time.monotonic() - began
            log.info("step %d loss %.4f dead %d, %.0f s", step, loss.item(), dead, seconds)
    return _freeze(learner, scale, threshold)


def _share_of_learning_rate(progress: float) -> float:
    warmup = min(1.0, progress / 0.02 + 0.01)
    return warmup * (
        1.0 if progress < 0.6 else 0.5 * (1 + math.cos(math.pi * (progress - 0.6) / 0.4))
    )


def _freeze(learner: _BatchTopK, scale: float, threshold: float) -> JumpReLU:
    with torch.no_grad():
        return JumpReLU(
            W_enc=learner.W_enc.detach().clone(),
            W_dec=functional.normalize(learner.W_dec, dim=1),
            b_enc=learner.b_enc * scale,
            b_dec=learner.b_dec * scale,
            threshold=torch.full((FEATURES,), threshold * scale),
        )


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How well an autoencoder stands for the activations it was measured on."""

    n_tokens: int
    mean_l0: float
    fvu: float
    alive_share: float


@torch.inference_mode()
def measure_fidelity(sae: JumpReLU, x: Tensor) -> Fidelity:
    """Measure L0, fraction of variance unexplained and the share of features that fire at all."""
    errors, fired = 0.0, torch.zeros(FEATURES, dtype=torch.long)
    for rows in torch.split(x, 8_192):
        features = sae.encode(rows)
        errors += (rows - sae.decode(features)).double().square().sum().item()
        fired += (features > 0).sum(0)
    variance = (x.double() - x.double().mean(0)).square().sum().item()
    return Fidelity(
        n_tokens=len(x),
        mean_l0=fired.sum().item() / len(x),
        fvu=errors / variance,
        alive_share=(fired > 0).double().mean().item(),
    )


def train_saes(
    model_folder: Path,
    learned: Sequence[Tensor],
    in_order: Sequence[Tensor],
    out: Path,
    seed: int,
    steps: int = STEPS,
) -> None:
    """Train one autoencoder per site on the learned documents and replace those under `out`.

    The L0 in a folder's name is measured on the first 500,000 tokens of the documents in order, the
    text a user begins with.
    """
    model = load_base_model(model_folder)
    activations = collect_activations(model, first_tokens(learned, TOKENS_TO_LEARN_FROM))
    prefix = collect_activations(model, first_tokens(in_order, TOKENS_FOR_L0))
    for number, site in enumerate(TARGET_L0):
        sae = train_sae(activations.pop(site), TARGET_L0[site], seed + number, steps)
        fidelity = measure_fidelity(sae, prefix.pop(site))
        log.info("%s: %s", site, fidelity)
        shutil.rmtree(out / site, ignore_errors=True)
        save_sae(sae, out, site, fidelity.mean_l0)


def load_base_model(folder: Path) -> Gemma2Model:
    """Load the toy up to the SAEs' layer, in float32."""
    model: Gemma2Model = Gemma2Model.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    model.layers = model.layers[: LAYER + 1]
    return model


def first_tokens(documents: Sequence[Tensor], n_tokens: int) -> list[Tensor]:
    """Give the documents that hold the first tokens, the last one cut."""
    kept: list[Tensor] = []
    for document in documents:
        if n_tokens <= 0:
            break
        kept.append(document[:n_tokens])
        n_tokens -= len(document)
    return kept


def save_sae(sae: JumpReLU, folder: Path, site: str, mean_l0: float) -> Path:
    """Write `site/layer_1/width_1k/average_l0_M/params.npz` and give its path.

    Weights are rounded to 11 bits of mantissa, which compresses them by half; decoder rows are of
    unit norm to that precision.
    """
    path = folder / site / f"layer_{LAYER}" / "width_1k" / f"average_l0_{round(mean_l0)}"
    path.mkdir(parents=True, exist_ok=True)
    arrays = {
        name: getattr(sae, name).numpy().astype(np.float16).astype(np.float32)
        for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
    }
    np.savez_compressed(path / "params.npz", **arrays)
    return path / "params.npz"


def load_sae(path: Path) -> JumpReLU:
    """Read a params.npz back."""
    with np.load(path) as arrays:
        return JumpReLU(**{name: torch.from_numpy(arrays[name]) for name in arrays.files})
