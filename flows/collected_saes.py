"""The model and the SAEs of a run, loaded again to be tried, with the weights as collected."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..store.errors import SaeError
from ..store.parts import list_parts
from ..store.run_folder import RunFolder
from ..store.tried_feature import CollectedSae
from .config import Config

if TYPE_CHECKING:
    from ..extract.models import SubjectModel
    from ..extract.sae_sources import SaeSource
    from ..extract.saes import Sae


def load_whole_model(config: Config) -> SubjectModel:
    """The run's model with all its layers, which writing needs; reading may stop earlier.

    Raises:
        ModelError: it cannot be loaded.
    """
    from ..extract.models import load_model

    return load_model(config.model.name, [], config.model.device, config.model.dtype)


def load_collected_sae(
    collected: CollectedSae, config: Config, folder: RunFolder, model: SubjectModel
) -> Sae:
    """The SAE with the weights that were collected, on the CPU.

    Args:
        collected: which.
        config: of the run.
        folder: of the run, where the thresholds of neurons lie.
        model: whose site it reads.

    Raises:
        SaeError: the configuration names it no more, or its weights are others now.
    """
    return load_sae_alone(collected, config, folder, model.config)


def load_sae_alone(
    collected: CollectedSae, config: Config, folder: RunFolder, model_config: Any
) -> Sae:
    """The same without a model at hand, by the model's configuration."""
    from ..extract.collect_job import changed_sae
    from ..extract.saes import load_sae

    found = []
    for source in _sources(collected, config, folder):
        sae = load_sae(source, model_config)
        if sae.content_hash == collected.content_hash:
            return sae
        found.append(sae)
    raise changed_sae(found, collected.sae_id, collected.content_hash)


def _sources(collected: CollectedSae, config: Config, folder: RunFolder) -> Iterator[SaeSource]:
    """Where the SAE may lie; several are the thresholds of a layer's neurons."""
    from .collect_setup import sae_sources

    sae_id = collected.sae_id
    # The others need not be looked for, which on the hub takes a while each.
    named = tuple(entry for entry in config.saes.paths if entry.path == collected.source)
    if named:
        saes = config.saes.model_copy(update={"paths": named})
        config = config.model_copy(update={"saes": saes})
    of_id = [source for source in sae_sources(config) if source.sae_id == sae_id]
    if not of_id:
        raise SaeError(
            "The run's configuration names no such SAE.",
            where="[saes] paths",
            found=", ".join(entry.path for entry in config.saes.paths) or "the SAEs of the toy",
            expected=sae_id,
        )
    (source,) = of_id
    if not source.is_neuron_basis:
        yield source
        return
    # Which of them is this run's, their content says; the text need not be read again.
    for part in list_parts(folder.parts):
        if part.stage == "neurons" and part.manifest.get("layer") == source.site.layer:
            yield replace(source, path=part.file("thresholds"))
