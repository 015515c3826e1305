"""Shards that share nothing but a URL, and the run that brings their parts together."""

from __future__ import annotations

import io
import json
import logging
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from scopenote.extract import windows
from scopenote.extract.neurons import find_thresholds
from scopenote.extract.shards import Shard
from scopenote.extract.sites import Site
from scopenote.flows import collect_contexts as flow
from scopenote.flows import collect_setup, parts_elsewhere
from scopenote.flows.collect_contexts import collect_contexts, collect_part, collect_shard
from scopenote.flows.config import Config, load_config
from scopenote.flows.progress import Progress
from scopenote.flows.working import configured_run
from scopenote.store.errors import ConfigurationError, PartConflict, UserMistake
from scopenote.store.remote_files import RemoteFolder
from scopenote.store.run_folder import RunFolder

from .pipeline_runs import command, tables
from .tiny_gemma import save_tiny_gemma, save_tiny_sae

# Labels and scores come later.
COLLECTED = [
    "saes", "features", "feature_splits", "windows", "contexts", "background", "pieces", "chunks",
]  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration with a layer's neurons and an SAE, and a corpus of eight chunks."""
    folder = tmp_path_factory.mktemp("tiny")
    model = save_tiny_gemma(folder / "tiny-gemma-2")
    paths = json.dumps(["1-mlp-neurons", str(save_tiny_sae(folder, "mlp", 1, 24, 16))])
    rng = np.random.default_rng(0)
    letters = list("abcdefghij the ing,.")
    rows = [{"text": "".join(rng.choice(letters, 80))} for _ in range(30)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = folder / "config.toml"
    config.write_text(
        f"""
        [model]
        name = "{model}"
        device = "cpu"
        [saes]
        paths = {paths}
        [corpus]
        path = "corpus.jsonl"
        [collect]
        chunks_per_part = 2
        neighbours = false
        logit_effects = false
        """
    )
    return config


@pytest.fixture
def as_plain_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "CHUNK_DOCUMENTS", 4)
    monkeypatch.setattr(collect_setup, "PREFIX_TOKENS", 500)
    monkeypatch.setattr(flow, "collect_part", collect_part.fn)
    monkeypatch.setattr(flow, "as_is", lambda value: value)


@pytest.fixture
def url() -> Iterator[str]:
    place = f"memory://{uuid4().hex}/parts"
    yield place
    fsspec.filesystem("memory").rm(place, recursive=True)


def with_url(config: Path, url: str | None) -> Config:
    settings = load_config(config)
    collect = settings.collect.model_copy(update={"parts_url": url})
    return settings.model_copy(update={"collect": collect})


def collect(config: Config, folder: Path, shard: str | None = None) -> str:
    """What was said meanwhile."""
    said, run = io.StringIO(), RunFolder(folder).create()
    progress = Progress(said, animate=False)
    if shard is None:
        report = collect_contexts.fn(config, run, progress, allow_mismatch=True)
    else:
        report = collect_shard.fn(config, run, Shard.parse(shard), progress, allow_mismatch=True)
    return said.getvalue() + "\n".join(report.remarks())


def found_in(folder: Path) -> dict[str, tuple[int, int]]:
    found = tables(folder)
    return {table: found[table] for table in COLLECTED}


def files_under(url: str) -> list[str]:
    found = fsspec.filesystem("memory").find(url)
    return sorted(name.partition("/parts/")[2] for name in found)


@pytest.mark.slow
@pytest.mark.usefixtures("as_plain_functions")
def test_shards_that_share_only_a_url_make_the_tables_of_one_run(
    tiny: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_elsewhere, "_PARTS_AT_ONCE", 1)
    collect(with_url(tiny, None), tmp_path / "alone")
    config = with_url(tiny, url)
    said = [collect(config, tmp_path / number, f"{number}/2") for number in ("1", "2")]
    assert all(f"lies in {url}" in each for each in said)
    # Nothing but the thresholds of neurons, which are needed again, is kept on a shard's disk.
    for number in ("1", "2"):
        kept = [part.name for part in (tmp_path / number / "parts").iterdir()]
        assert len(kept) == 1 and kept[0].startswith("neurons-")
    assert "another run" not in collect(config, tmp_path / "together")
    assert found_in(tmp_path / "together") == found_in(tmp_path / "alone")
    # Notes alone stay, and the thresholds.
    left = files_under(url)
    assert sum(name.startswith("neurons-") for name in left) == 2
    rest = [name for name in left if not name.startswith("neurons-")]
    assert rest and all(name.endswith("/spent.json") for name in rest)


@pytest.mark.slow
@pytest.mark.usefixtures("as_plain_functions")
def test_a_shard_does_not_collect_what_lies_there_already(
    tiny: Path, url: str, tmp_path: Path
) -> None:
    config = with_url(tiny, url)
    collect(config, tmp_path / "first", "1/2")
    # On another machine, after the first one is gone.
    shutil.rmtree(tmp_path / "first")
    assert "nothing to do" in collect(config, tmp_path / "second", "1/2")
    collect(config, tmp_path / "together")
    assert "nothing to do" in collect(config, tmp_path / "third", "1/2")
    assert "nothing to do" in collect(config, tmp_path / "third", "2/2")


@pytest.mark.usefixtures("as_plain_functions")
def test_a_part_that_was_finished_and_not_put_is_put_by_the_next_start(
    tiny: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_url(tiny, url)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(flow, "move_part", die)
        collect(config, tmp_path / "run", "1/2")
    (left,) = (tmp_path / "run" / "parts").glob("collect-*")
    assert not [name for name in files_under(url) if name.startswith("collect-")]
    said = collect(config, tmp_path / "run", "1/2")
    assert f"{left.name}/part.json" in files_under(url)
    assert not left.exists()
    assert "already" in said


@pytest.mark.long
@pytest.mark.usefixtures("as_plain_functions")
def test_absorbing_that_was_killed_before_it_removed_parts_ends_in_the_same_tables(
    tiny: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_url(tiny, url)
    collect(with_url(tiny, None), tmp_path / "alone")
    collect(config, tmp_path / "shard", "1/2")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(parts_elsewhere.RemoteParts, "spend", lambda *_: None)
        patch.setattr(flow, "collect_part", die)
        collect(config, tmp_path / "together")
    assert [name for name in files_under(url) if "contexts-0." in name]
    collect(config, tmp_path / "together")
    assert found_in(tmp_path / "together") == found_in(tmp_path / "alone")
    assert not [name for name in files_under(url) if "contexts-0." in name]


@pytest.mark.long
@pytest.mark.usefixtures("as_plain_functions")
def test_text_that_the_coordinator_collected_meanwhile_is_no_conflict(
    tiny: Path, url: str, tmp_path: Path
) -> None:
    collect(with_url(tiny, None), tmp_path / "together")
    before = found_in(tmp_path / "together")
    config = with_url(tiny, url)
    collect(config, tmp_path / "shard", "1/2")
    # There is more to do, so that it looks there.
    more = tiny.with_name("more.jsonl")
    text = (tiny.with_name("corpus.jsonl")).read_text()
    more.write_text(text + "\n" + json.dumps({"text": "some more of it"}))
    corpus = config.corpus.model_copy(update={"path": str(more)})
    collect(config.model_copy(update={"corpus": corpus}), tmp_path / "together")
    after = found_in(tmp_path / "together")
    assert after["chunks"][0] == before["chunks"][0] + 1
    assert not [name for name in files_under(url) if "contexts-0." in name]


@pytest.mark.usefixtures("as_plain_functions")
def test_parts_of_another_configuration_are_refused_before_anything_is_fetched(
    tiny: Path, url: str, tmp_path: Path
) -> None:
    config = with_url(tiny, url)
    collect(config, tmp_path / "shard", "1/2")
    other = config.model_copy(
        update={"collect": config.collect.model_copy(update={"window_tokens": 32})}
    )
    for shard in (None, "2/2"):
        with pytest.raises(PartConflict, match="window_tokens = 64") as caught:
            collect(other, tmp_path / "other", shard)
        assert caught.value.where.startswith(url)
    assert not list((tmp_path / "other" / "parts").glob("collect-*"))


@pytest.mark.long
@pytest.mark.usefixtures("as_plain_functions")
def test_what_another_run_has_absorbed_is_collected_again_and_said(
    tiny: Path, url: str, tmp_path: Path
) -> None:
    config = with_url(tiny, url)
    collect(config, tmp_path / "shard", "1/2")
    collect(config, tmp_path / "one")
    assert "another run has absorbed" in collect(config, tmp_path / "other")
    assert found_in(tmp_path / "other") == found_in(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.usefixtures("as_plain_functions")
def test_the_first_thresholds_are_believed_by_machines_that_begin_at_once(
    tiny: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_url(tiny, url)
    collect(config, tmp_path / "first", "1/2")
    find = parts_elsewhere.RemoteParts.find
    n_rounded_apart = []

    def see_nothing_yet(*_: object) -> None:
        monkeypatch.setattr(parts_elsewhere.RemoteParts, "find", find)

    def round_apart(*arguments: Any) -> dict[Site, Any]:
        found = find_thresholds(*arguments)
        n_rounded_apart.append(len(found))
        return {site: values * np.float32(1.0001) for site, values in found.items()}

    monkeypatch.setattr(parts_elsewhere.RemoteParts, "find", see_nothing_yet)
    monkeypatch.setattr(collect_setup, "find_thresholds", round_apart)
    collect(config, tmp_path / "second", "2/2")
    assert n_rounded_apart == [1]
    first, second = (
        next((tmp_path / run / "parts").glob("neurons-*/thresholds.parquet")).read_bytes()
        for run in ("first", "second")
    )
    assert first == second
    assert "another" not in collect(config, tmp_path / "together")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("shared/parts", "a URL such as s3://bucket/prefix"),
        ("s3://", "a URL such as s3://bucket/prefix"),
        ("s3://KEY:secret@bucket/parts", "credentials are read from the environment"),
    ],
)
def test_a_url_without_a_place_or_with_a_secret_is_refused(
    tiny: Path, tmp_path: Path, url: str, said: str
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(tiny.read_text().replace("[collect]", f'[collect]\nparts_url = "{url}"'))
    with pytest.raises(ConfigurationError, match=said) as caught:
        load_config(config)
    assert "parts_url" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_run_may_move_to_another_url_and_remembers_it(tiny: Path, tmp_path: Path) -> None:
    asked = tiny.with_name("with_url.toml")
    for url in ("memory://one/parts", "memory://other/parts"):
        asked.write_text(tiny.read_text().replace("[collect]", f'[collect]\nparts_url = "{url}"'))
        configured_run(tmp_path / "run", asked)
        config, _ = configured_run(tmp_path / "run", None)
        assert config.collect.parts_url == url


# --- a real server ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3() -> Iterator[None]:
    """A bucket `scopenote` on a server on loopback, found through the environment."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "a-key-that-must-stand-nowhere",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").mkdir("scopenote")
        yield
    server.stop()


def on_s3(config: Path, place: str) -> Path:
    file = config.with_name(f"{place.replace('/', '-')}.toml")
    text = config.read_text().replace("[collect]", f'[collect]\nparts_url = "s3://{place}"')
    file.write_text(text)
    return file


@pytest.mark.long
@pytest.mark.usefixtures("s3", "prefect_server")
def test_two_processes_that_share_a_bucket_make_the_tables_of_one(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tiny.with_name("small.toml")
    text = tiny.read_text().replace("chunks_per_part = 2", "chunks_per_part = 1")
    small.write_text(text.replace("corpus.jsonl", "long.jsonl"))
    rows = tiny.with_name("corpus.jsonl").read_text().splitlines() * 25
    tiny.with_name("long.jsonl").write_text("\n".join(rows[:700]))
    config = on_s3(small, "scopenote/some/prefix")
    shards = [
        subprocess.Popen(
            command(
                *("collect", tmp_path / number, "--config", config),
                *("--shard", f"{number}/2", "--allow-mismatch"),
            ),
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in ("1", "2")
    ]
    for shard in shards:
        _, said = shard.communicate(timeout=300)
        assert shard.returncode == 0, said
        assert "lies in s3://scopenote/some/prefix" in said
    # An upload that was killed: the tables of a part without its part.json.
    files = fsspec.filesystem("s3")
    (whole, *_) = files.glob("scopenote/some/prefix/*/part.json")
    folder = whole.removesuffix("/part.json")
    for name in files.find(folder):
        if name != whole:
            half = name.replace("collect-", "collect-9")
            files.pipe_file(half, files.cat_file(name)[:100])
    monkeypatch.setattr(flow, "collect_part", collect_part.fn)
    monkeypatch.setattr(flow, "as_is", lambda value: value)
    collect(load_config(small), tmp_path / "alone")
    collect(load_config(config), tmp_path / "together")
    assert found_in(tmp_path / "together") == found_in(tmp_path / "alone")
    left = [name for name in files.find("scopenote/some/prefix") if "/neurons-" not in name]
    assert sum(name.endswith("/spent.json") for name in left) == 3
    assert all(name.endswith("/spent.json") or "/collect-9" in name for name in left)
    for file in (tmp_path / "1").rglob("*.toml"):
        assert "a-key-that-must-stand-nowhere" not in file.read_text()


@pytest.mark.long
@pytest.mark.usefixtures("s3")
def test_a_bucket_that_is_not_there_and_missing_credentials_are_the_users_to_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RemoteFolder("s3://scopenote/parts").check_writable()
    with pytest.raises(UserMistake, match="There is no such bucket or folder"):
        RemoteFolder("s3://no-such-bucket/parts").check_writable()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    # Otherwise it would go on with those that it has.
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(UserMistake, match="AWS_ACCESS_KEY_ID"):
        RemoteFolder("s3://scopenote/parts").check_writable()
