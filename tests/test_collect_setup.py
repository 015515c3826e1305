"""From a configuration to the SAEs of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from scopenote.flows.collect_setup import sae_sources
from scopenote.flows.config import Config, CorpusSection, ModelSection, SaeEntry, SaesSection
from scopenote.store.errors import ConfigurationError


def config_of(folder: Path, model: str, *paths: str) -> Config:
    for path in paths:
        (folder / path).mkdir(parents=True)
        (folder / path / "params.npz").touch()
    entries = tuple(SaeEntry(path=str(folder / path)) for path in paths)
    return Config(
        model=ModelSection(name=model),
        saes=SaesSection(paths=entries),
        corpus=CorpusSection(standard_library=True),
    )


def test_one_model_may_be_read_by_the_saes_of_both_its_forms(tmp_path: Path) -> None:
    saes = {"it": 121, "pt": 75}  # the canonical ones
    paths = [
        f"gemma-scope-9b-{form}-res/layer_9/width_131k/average_l0_{l0}" for form, l0 in saes.items()
    ]
    sources = sae_sources(config_of(tmp_path, "google/gemma-2-9b-it", *paths))
    assert [source.sae_id for source in sources] == [
        "gemma-2-9b-it/9-gemmascope-res-131k",
        "gemma-2-9b-it/9-gemmascope-res-131k-pt",
    ]


def test_two_saes_of_one_id_are_refused_with_both_paths(tmp_path: Path) -> None:
    paths = [f"{folder}/res/layer_1/width_1k/average_l0_9" for folder in ("mine", "other")]
    paths.append("res/layer_2/width_1k/average_l0_9")
    with pytest.raises(ConfigurationError) as refused:
        sae_sources(config_of(tmp_path, "tiny", *paths))
    one, other = (tmp_path / path for path in paths[:2])
    assert refused.value.found == f"tiny/1-res-1k: {one} and {other}"
