"""Neurons through the whole job, killed and in shards."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
import scopenote

from .pipeline_runs import (
    collect_three_shards,
    command,
    run,
    tables,
    wait_for_work,
    write_configuration,
)


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
def test_neurons_come_out_the_same_killed_or_sharded(tmp_path: Path) -> None:
    config = write_configuration(tmp_path)
    neurons = config.with_name("neurons.toml")
    paths = next(line for line in config.read_text().splitlines() if "paths" in line)
    asked = config.read_text().replace(paths, 'paths = ["1-mlp-neurons"]')
    neurons.write_text(asked.replace("[collect]", "[collect]\nloss_increase = true"))
    folders = [tmp_path / name for name in ("alone", "killed", "sharded")]
    alone, killed, sharded = folders
    # The first is killed while it takes percentiles, the second while it collects.
    for seconds in (0.5, 8):
        process = subprocess.Popen(command("run", neurons, "--out", killed), stderr=subprocess.PIPE)
        wait_for_work(killed, process)
        time.sleep(seconds)
        process.kill()
        process.communicate()
    collect_three_shards(sharded, neurons)
    for folder in folders:
        finished = run("run", neurons, "--out", folder)
        assert finished.returncode == 0, finished.stderr
        assert len(list((folder / "parts").glob("neurons-*"))) == 1
    assert tables(alone)["labels"][0] == 256
    assert tables(killed) == tables(alone)
    assert tables(sharded) == tables(alone)
    with scopenote.open(alone) as store:
        n_scored, fvu, own, spliced = store.sql(
            """
            SELECT count(score), any_value(fvu), any_value(loss), any_value(loss_spliced)
            FROM current_labels JOIN saes USING (sae_id)
            """
        ).fetchall()[0]
    assert n_scored > 200
    assert 1 < own < spliced
    # Neurons are no reconstruction, and need not be one.
    assert fvu > 1
