"""The SAEs of an estimate on paper: their shapes from names and from files that are here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig

from ..extract.gemma_shapes import published_shape
from ..extract.local_files import find_local_model, find_local_sae, read_sae_shapes
from ..extract.memory_needs import encoder_shape
from ..extract.models import model_name, require_supported
from ..extract.neurons import expected_l0, neuron_shapes
from ..extract.sae_patterns import NamedSae, match_saes, named_sae
from ..extract.sae_sources import locate_sae, neuron_source
from ..extract.sites import Site, SiteKind, site_width
from ..store.errors import ModelError, SaeError
from .collect_setup import sae_entries, toy_saes
from .config import Config


@dataclass(frozen=True, slots=True)
class PaperSae:
    """An SAE of which nothing but its shape is needed.

    Attributes:
        sae_id: as in feature ids.
        model: that it reads.
        shape: that model's configuration, or what of it is published.
        arrays: the shapes of its arrays, by name.
        l0: active features a token, where its name or file states that.
    """

    sae_id: str
    model: str
    shape: Any
    site: Site
    arrays: dict[str, tuple[int, ...]]
    l0: float | None

    @property
    def d_in(self) -> int:
        """Length of the vectors that it reads."""
        return encoder_shape(self.arrays)[0]

    @property
    def width(self) -> int:
        """Its features."""
        return encoder_shape(self.arrays)[1]


def paper_saes(config: Config, patterns: Sequence[str] = ()) -> list[PaperSae]:
    """The SAEs of a configuration, or instead those that patterns stand for, of any model.

    Raises:
        SaeError: one is neither of Gemma Scope nor on this machine, or a pattern matches none.
        ModelError: nothing is known here of a model's shape.
    """
    if patterns:
        found = {sae.path: sae for pattern in patterns for sae in match_saes(pattern)}
        return [_of_gemma_scope(sae, sae.model) for sae in found.values()]
    model = model_name(config.model.name)
    shape = _shape_of(config.model.name)
    entries = [(entry.path, entry.site, entry.layer) for entry in sae_entries(config)]
    if not entries:
        entries = [(str(file), None, None) for file in toy_saes()]
    return [_described(path, kind, layer, model, shape) for path, kind, layer in entries]


def _described(
    path: str, kind: SiteKind | None, layer: int | None, model: str, shape: Any
) -> PaperSae:
    if neurons := neuron_source(path, model, kind, layer):
        d = site_width(neurons.site, shape)
        l0 = expected_l0(2 * d)
        return PaperSae(neurons.sae_id, model, shape, neurons.site, neuron_shapes(d), l0)
    if named := named_sae(path):
        return _of_gemma_scope(named, model)
    file = find_local_sae(path)
    if file is None:
        raise SaeError(
            "Nothing is known on paper of this SAE.",
            where="[saes] paths",
            found=path,
            expected="an SAE of Gemma Scope, a layer's neurons, or a file on this machine",
            mend="copy its files here, or leave it out",
        )
    source = locate_sae(str(file), model, kind, layer)
    arrays = read_sae_shapes(file)
    return PaperSae(source.sae_id, model, shape, source.site, arrays, source.stated_l0)


def _of_gemma_scope(sae: NamedSae, model: str) -> PaperSae:
    shape = _shape_of(model)
    d = site_width(sae.site, shape)
    arrays = {"W_enc": (d, sae.width), "W_dec": (sae.width, d), "b_enc": (sae.width,)}
    arrays |= {"threshold": (sae.width,), "b_dec": (d,)}
    return PaperSae(sae.sae_id, model, shape, sae.site, arrays, sae.l0)


def _shape_of(name: str) -> Any:
    if shape := published_shape(model_name(name)):
        return shape
    folder = find_local_model(name)
    if folder is None:
        raise ModelError(
            "Nothing is known on paper of this model.",
            where="key `model.name`",
            found=name,
            expected="gemma-2-2b, gemma-2-9b, gemma-2-27b, their -it forms, or a folder here",
        )
    shape = AutoConfig.from_pretrained(folder)
    require_supported(name, shape)
    return shape
