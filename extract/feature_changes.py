"""Features and neurons changed within a forward pass, the rest of the model left as it is.

An SAE splits what it reconstructs into codes times decoder rows, a bias and an error. To set code
i from f to v and keep everything else, the error too, adds (v - f) times row i to the target: that
is what *clamp* and *ablate* (v = 0) do, and nothing is decoded for it. *Add* adds strength times
the row, whatever the code is. An attention SAE's row is added to the concatenated heads, so that it
reaches the residual stream through `o_proj` and the norm behind it; a transcoder's to what the MLP
writes, by the code of what it reads before. A neuron is a coordinate of the MLP's output behind its
norm, and is held at a value.

All changes at a site are worked out from what stood there before any of them; neurons are held
last. What the SAE encodes there afterwards is recorded: it need not be what was put in, because
rows of a decoder are no orthogonal directions, nor inverse to those of the encoder.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float

from ..store.errors import UserMistake
from .own_text import activations_of
from .saes import Sae
from .sites import Site, hook_site

ChangeMode = Literal["add", "clamp", "ablate"]
CHANGE_MODES: tuple[ChangeMode, ...] = get_args(ChangeMode)

# Of a vector that still means anything. Norms square it, attention multiplies it by weights, and
# the largest number of float32 and bfloat16 is 3e38.
_LONGEST = 1e15


@dataclass(frozen=True, slots=True)
class FeatureChange:
    """A feature changed at every token.

    Attributes:
        sae: on the model's device.
        feature: its number.
        mode: what is done.
        strength: in units of the feature's activation. Of *add* what is added, of *clamp* what
            the activation is set to; *ablate* has none.
    """

    sae: Sae
    feature: int
    mode: ChangeMode = "add"
    strength: float = 0.0

    def __post_init__(self) -> None:
        if self.mode not in CHANGE_MODES:
            raise UserMistake(
                "Features are not changed in this way.",
                found=str(self.mode),
                expected=", ".join(CHANGE_MODES),
            )
        require_number(self.strength, f"feature {self.feature}")
        if not 0 <= self.feature < self.sae.width:
            raise UserMistake(
                "The SAE has no feature of this number.",
                where=self.sae.sae_id,
                found=str(self.feature),
                expected=f"0 to {self.sae.width - 1:,}",
            )

    @property
    def site(self) -> Site:
        """What is changed."""
        return self.sae.target


@dataclass(frozen=True, slots=True)
class HeldNeuron:
    """A coordinate of what a layer's MLP adds to the residual stream, held at every token.

    Attributes:
        layer: from 0.
        neuron: the coordinate's number.
        value: what it is held at.
    """

    layer: int
    neuron: int
    value: float

    def __post_init__(self) -> None:
        require_number(self.value, f"neuron {self.neuron}")

    @property
    def site(self) -> Site:
        """What is changed."""
        return Site(self.layer, "mlp")


ModelChange = FeatureChange | HeldNeuron


@dataclass(slots=True)
class ReadBack:
    """What was there at a change's tokens before it and after, in the order they were read.

    Of a feature its activation, as its SAE encodes it; of a neuron the coordinate.

    Attributes:
        before: without this change and those beside it, but with those of earlier layers.
        after: with all of them; stays empty where the SAE does not read what it changes, as a
            transcoder.
    """

    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)


def require_number(value: float, where: str) -> None:
    """Refuses a strength that is no finite number.

    Raises:
        UserMistake: it is none.
    """
    if not math.isfinite(value):
        raise UserMistake(
            "A strength is a finite number.", where=where, found=str(value), expected="such as 100"
        )


def require_changes(config: Any, changes: Sequence[ModelChange]) -> None:
    """Refuses neurons that the model does not have, and what is changed twice.

    Args:
        config: the whole model's.
        changes: to be made at once.

    Raises:
        UserMistake: there are such.
    """
    for change in changes:
        if not isinstance(change, HeldNeuron):
            continue
        for number, most, name in (
            (change.layer, config.num_hidden_layers, "layer"),
            (change.neuron, config.hidden_size, "neuron"),
        ):
            if not 0 <= number < most:
                raise UserMistake(
                    f"The model has no {name} {number}.", expected=f"0 to {most - 1:,}"
                )
    names = [
        (change.layer, change.neuron)
        if isinstance(change, HeldNeuron)
        else (change.sae.sae_id, change.feature)
        for change in changes
    ]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserMistake(
            "Something is changed twice.",
            found="/".join(map(str, twice[0])),
            expected="each feature and each neuron once",
        )


@contextmanager
def changed_features(
    network: Any, changes: Sequence[ModelChange], read_back: Sequence[ReadBack] | None = None
) -> Iterator[None]:
    """Within the block every forward pass goes on with these changes, at all of its tokens.

    Args:
        network: the base model (`Gemma2Model` or `Gemma3TextModel`).
        changes: any number, at any sites.
        read_back: one for each change, where it is to be told what every pass reads.

    Raises:
        UserMistake: the network has no such neuron, or something is changed twice; in a pass, a
            vector becomes so long that the model cannot go on from it.
    """
    require_changes(network.config, changes)
    told = [ReadBack() for _ in changes] if read_back is None else read_back
    by_site: dict[Site, list[int]] = defaultdict(list)
    for number, change in enumerate(changes):
        by_site[change.site].append(number)
    with ExitStack() as stack:
        for site, numbers in by_site.items():
            of_site = _SiteChanges(
                [changes[number] for number in numbers], [told[number] for number in numbers]
            )
            # What a transcoder reads comes before its target in the same layer.
            for read_site in of_site.other_sites:
                handle = hook_site(network, read_site, of_site.reader(read_site))
                stack.callback(handle.remove)
            stack.callback(hook_site(network, site, of_site.change).remove)
        yield


class _SiteChanges:
    """All changes at one site."""

    def __init__(self, changes: Sequence[ModelChange], read_back: Sequence[ReadBack]) -> None:
        self._site = changes[0].site
        pairs = list(zip(changes, read_back, strict=True))
        features = [(it, read) for it, read in pairs if isinstance(it, FeatureChange)]
        # Those of one SAE are encoded and decoded together.
        features.sort(key=lambda pair: pair[0].sae.sae_id)
        of_sae = groupby(features, lambda pair: pair[0].sae.sae_id)
        self._by_sae = [list(same) for _, same in of_sae]
        self._held = [(it, read) for it, read in pairs if isinstance(it, HeldNeuron)]
        self._read: dict[Site, torch.Tensor] = {}

    @property
    def other_sites(self) -> list[Site]:
        """Sites that SAEs read without changing them."""
        saes = [same[0][0].sae for same in self._by_sae]
        return sorted({sae.site for sae in saes if sae.site != sae.target})

    def reader(self, site: Site) -> Any:
        """Keeps what stands at a site till the change is made."""

        def keep(x: torch.Tensor) -> None:
            self._read[site] = x.flatten(0, 1)

        return keep

    def change(self, target: Float[torch.Tensor, "B S D"]) -> Float[torch.Tensor, "B S D"]:
        """What stands in place of the site's vectors."""
        before = target.flatten(0, 1)
        shift = torch.zeros((), device=before.device)
        for same in self._by_sae:
            shift = shift + self._shift(same, before)
        # Added up in the SAE's precision, so that nothing is rounded twice.
        after = (before.to(shift.dtype) + shift).to(before.dtype) if self._by_sae else before
        after = self._hold(before, after)
        _require_usable(after, self._site)
        for same in self._by_sae:
            sae = same[0][0].sae
            if sae.site == sae.target:
                found = activations_of(sae, after, [it.feature for it, _ in same])
                for (_, read), values in zip(same, found.tolist(), strict=True):
                    read.after += values
        return after.reshape(target.shape)

    def _shift(
        self, same: Sequence[tuple[FeatureChange, ReadBack]], before: Float[torch.Tensor, "T D"]
    ) -> Float[torch.Tensor, "T D"]:
        """What the changes of one SAE's features add."""
        sae = same[0][0].sae
        x = before if sae.site == sae.target else self._read[sae.site]
        features = [it.feature for it, _ in same]
        f = activations_of(sae, x, features).to(sae.decoder)
        for (_, read), values in zip(same, f.tolist(), strict=True):
            read.before += values
        strengths = [0.0 if it.mode == "ablate" else it.strength for it, _ in same]
        amounts = torch.tensor(strengths, dtype=f.dtype, device=f.device)[:, None].expand_as(f)
        is_added = torch.tensor([it.mode == "add" for it, _ in same], device=f.device)
        amounts = torch.where(is_added[:, None], amounts, amounts - f)
        return amounts.T @ sae.decoder[features]

    def _hold(
        self, before: Float[torch.Tensor, "T D"], after: Float[torch.Tensor, "T D"]
    ) -> Float[torch.Tensor, "T D"]:
        if self._held:
            after = after.clone()
        for held, read in self._held:
            read.before += before[:, held.neuron].float().tolist()
            after[:, held.neuron] = held.value
            read.after += after[:, held.neuron].float().tolist()
        return after


def _require_usable(x: Float[torch.Tensor, "T D"], site: Site) -> None:
    norms = torch.linalg.vector_norm(x.float(), dim=-1)
    # What is no number is not below anything.
    if not bool((norms < _LONGEST).all()):
        raise UserMistake(
            "The model gives no numbers any more.",
            where=str(site),
            found=f"a vector of length {float(norms.max()):.1e}",
            expected=f"one below {_LONGEST:.0e}",
            mend="take a strength that is nearer to 0",
        )
