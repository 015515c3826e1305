"""A run of the toy with made-up rows, whose model and SAEs are loaded as those collected."""

from __future__ import annotations

from pathlib import Path

from scopenote.extract.models import TOY, model_path
from scopenote.extract.saes import load_sae
from scopenote.flows.collect_setup import sae_sources
from scopenote.flows.config import demo_config
from scopenote.store.run_folder import RunFolder
from transformers import AutoConfig

from .made_up_run import make_database

ATT = "toy-gemma-2/1-att-1k"


def make_toy_run(folder: Path) -> Path:
    """The folder of a run of the toy's own SAEs.

    What stands about their features is made up, and of attention's there is nothing but one that
    was never active.
    """
    run = RunFolder(folder).create()
    config = demo_config()
    run.write_config(config.to_toml())
    sizes = AutoConfig.from_pretrained(model_path(TOY))
    with make_database(run.database) as database:
        named = "INSERT INTO saes (sae_id, model, site, layer) VALUES ($1, 'toy-gemma-2', 'att', 1)"
        database.execute(named, [ATT])
        database.execute(
            "INSERT INTO features (sae_id, feature, n_active) VALUES ($1, 0, 0)", [ATT]
        )
        for source in sae_sources(config):
            sae = load_sae(source, sizes)
            database.execute(
                "UPDATE saes SET content_hash = $1, width = $2 WHERE sae_id = $3",
                [sae.content_hash, sae.width, source.sae_id],
            )
    return run.path
