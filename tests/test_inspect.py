"""`scopenote inspect`: as it is typed, as a notebook calls it, and as it looks."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import duckdb
import numpy as np
import pytest
from rich.console import Console
from scopenote.extract.inspection import Prompt
from scopenote.extract.own_text import read_own_text
from scopenote.flows.by_hand import write_label
from scopenote.flows.cli import main
from scopenote.flows.collect_setup import window_shape
from scopenote.flows.config import demo_config
from scopenote.flows.inspect_page import default_top, render_inspection
from scopenote.flows.inspect_plot import draw_inspection
from scopenote.flows.inspect_text import (
    ActiveFeature,
    InspectedLens,
    InspectedSae,
    InspectedToken,
    Inspection,
    inspect_text,
)
from scopenote.flows.loaded_run import LoadedRun
from scopenote.store.errors import SaeError, StoreError, UserMistake
from scopenote.store.known_features import KnownFeature, find_saes
from scopenote.store.records import FeatureId
from scopenote.store.run_folder import RunFolder
from scopenote.store.schema import MIGRATIONS, SCHEMA_VERSION
from scopenote.store.tried_feature import CollectedSae, read_collected_saes

from .made_up_run import make_database

pytestmark = pytest.mark.slow  # together they take seconds that the default run lacks

TEXT = "def read(self, path):\n    return open(path)"
RES = "toy-gemma-2/1-res-1k"
MINE = "where a method's arguments begin [red]\x1b[31m"
Command = Callable[..., tuple[int, str, str]]


# --- how it looks, without a model ----------------------------------------------------------


def made_up(
    n_tokens: int = 10, *, labels: bool = True, unexplained: bool = True, n_layers: int = 26
) -> Inspection:
    """Of hostile tokens and labels, with features numbered as in a wide SAE."""
    texts = [" reliability", "\x1b[31m", " [red]", "\n", " 日本語", "<0xE2>", "‮", " of", "("]
    tokens = tuple((texts * (n_tokens // len(texts) + 1))[:n_tokens])
    special = np.zeros(n_tokens, np.bool_)
    special[n_tokens // 2] = True
    sae_id = "gemma-2-2b/20-gemmascope-res-16k"
    label = "words [bold] that a very long label goes on about \x1b[2J for too long a while"

    def fired(place: int) -> tuple[ActiveFeature, ...]:
        if special[place]:
            return ()
        known = KnownFeature(label if labels else None, 0.413, None, 0.3, 0.5, 0.01, 40.0)
        return tuple(
            ActiveFeature(FeatureId(sae_id, 16_000 + 7 * place + n), 31.25 / (n + 1), known)
            for n in range(5)
        )

    share = 0.125 if unexplained else None
    sae = InspectedSae(
        CollectedSae(sae_id, "res", 20, None, "h"),
        tuple(
            InspectedToken(None if special[place] else share, fired(place))
            for place in range(n_tokens)
        ),
        share,
        None if unexplained else "neurons reconstruct nothing",
        0.21 if unexplained else None,
    )
    draw = np.random.default_rng(0)
    ids = draw.integers(0, len(texts), (n_layers, n_tokens, 5)).astype(np.int32)
    probability = np.sort(draw.uniform(0, 0.2, (n_layers, n_tokens, 5)))[..., ::-1]
    lens = InspectedLens(ids, probability.astype(np.float32), dict(enumerate(texts)))
    prompt = Prompt(np.arange(n_tokens, dtype=np.int32), tokens, special)
    return Inspection("gemma-2-2b", "".join(tokens), prompt, (sae,), lens, 3 if labels else 0)


def page(found: Inspection, width: int, top: int | None = None) -> str:
    console = Console(file=StringIO(), width=width, highlight=False)
    console.print(render_inspection(found, top), crop=False)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("n_tokens", [10, 50])
@pytest.mark.parametrize("labels", [True, False])
def test_a_page_fits_its_width_and_shows_every_figure_whole(
    width: int, n_tokens: int, labels: bool
) -> None:
    shown = page(made_up(n_tokens, labels=labels), width)
    assert max(map(len, shown.splitlines())) <= width
    rows = [line for line in shown.splitlines() if re.search(r"31\.25 +78%", line)]
    assert len(rows) == n_tokens - 1
    assert all("16" in row and "12%" in row for row in rows)
    assert all(("0.41" in row) == labels for row in rows)
    assert not re.search(r"\d…", shown)


def test_text_of_a_corpus_stays_text_on_a_page() -> None:
    shown = page(made_up(18), 200)
    assert "\x1b" not in shown and "‮" not in shown
    assert "␛[31m" in shown and "[red]" in shown and "[bold]" in shown


def test_short_texts_have_three_features_a_token_and_long_ones_one() -> None:
    assert (default_top(20), default_top(21)) == (3, 1)
    assert page(made_up(20), 120).count("0.41") == 3 * 19
    assert page(made_up(21), 120).count("0.41") == 20
    assert page(made_up(21), 120, top=4).count("0.41") == 4 * 20


def test_what_there_is_not_is_said() -> None:
    shown = page(made_up(5, labels=False, unexplained=False), 100)
    assert "no labels yet" in shown and "scopenote explain RUN" in shown
    assert "neurons reconstruct nothing" in shown
    assert "score" not in shown.replace("scopenote", "")
    without = made_up(5)
    untied = Inspection("m", without.text, without.prompt, without.saes, None, 1)
    assert "No logit lens" in page(untied, 100)


def test_a_prediction_has_settled_where_no_later_layer_says_otherwise() -> None:
    best = np.array([[1, 2, 2, 1], [3, 2, 1, 2], [3, 2, 2, 3]], np.int32)
    lens = InspectedLens(best[..., None], np.ones((3, 4, 1), np.float32), {})
    assert [lens.settled(place) for place in range(4)] == [1, 0, 2, 2]


def test_the_strongest_features_of_a_text_are_those_that_become_strongest() -> None:
    def active(feature: int, value: float) -> ActiveFeature:
        known = KnownFeature(None, None, None, None, None, 0.1, 2.0)
        return ActiveFeature(FeatureId(RES, feature), value, known)

    tokens = (
        InspectedToken(None, (active(5, 2.0), active(1, 1.0))),
        InspectedToken(None, (active(1, 4.0), active(9, 3.0))),
    )
    sae = InspectedSae(CollectedSae(RES, "res", 1, None, "h"), tokens, None, None, None)
    strongest = sae.strongest(2)
    assert [(each.feature_id.feature, each.activation) for each in strongest] == [(1, 4.0), (9, 3)]
    np.testing.assert_array_equal(sae.activations([1, 9]), [[1, 4], [0, 3]])


def test_a_picture_names_features_tokens_and_predictions(tmp_path: Path) -> None:
    found = made_up(9, n_layers=4)
    assert draw_inspection(found, tmp_path / "a.svg") == [f"drawn: {tmp_path / 'a.svg'}"]
    drawn = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert "words [bold] that a very long label g…" in drawn
    # What the font lacks is a box.
    assert "layer 3" in drawn and " reliability" in drawn and "□[31m" in drawn
    assert "\x1b" not in drawn
    draw_inspection(found, tmp_path / "b.svg")
    assert (tmp_path / "b.svg").read_text(encoding="utf-8") == drawn
    draw_inspection(found, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_a_long_text_names_no_tokens(tmp_path: Path) -> None:
    draw_inspection(made_up(81, n_layers=3), tmp_path / "a.svg")
    drawn = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert "reliability" not in drawn and "layer 2" in drawn


def test_a_picture_of_many_saes_says_how_many_it_has(tmp_path: Path) -> None:
    one = made_up(3, n_layers=2)
    many = Inspection("m", one.text, one.prompt, one.saes * 8, one.lens, 1)
    said = draw_inspection(many, tmp_path / "a.png")
    assert "the picture has 6 of 8 SAEs" in said[1]


def test_a_picture_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(StoreError, match="cannot be written"):
        draw_inspection(made_up(3), tmp_path / "a.png")


# --- with the toy ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labelled(collected: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run in which a person has written a label for the feature strongest at `(`."""
    path = tmp_path_factory.mktemp("inspected") / "run"
    shutil.copytree(collected, path)
    folder = RunFolder(path)
    write_label(folder, strongest_at_bracket(folder), MINE, author="me")
    return folder


def strongest_at_bracket(folder: RunFolder) -> str:
    found = inspect_text(LoadedRun(folder.path), TEXT, [RES])
    place = found.prompt.tokens.index("(")
    return str(found.saes[0].tokens[place].features[0].feature_id)


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setattr(sys, "argv", ["scopenote", "inspect", *map(str, words)])
        with pytest.raises(SystemExit) as ending:
            main()
        output = capsys.readouterr()
        assert isinstance(ending.value.code, int)
        return ending.value.code, output.out, output.err

    return run


@pytest.mark.slow
def test_a_notebook_gets_what_collecting_would_record(labelled: RunFolder) -> None:
    run = LoadedRun(labelled.path)
    found = inspect_text(run, TEXT)
    assert [each.sae.site for each in found.saes] == ["att", "mlp", "res"]
    for sae in found.saes:
        loaded = run.sae(sae.sae)
        every = range(loaded.width)
        own = read_own_text(run.model, loaded, every, TEXT, window_shape(run.config))
        np.testing.assert_allclose(sae.activations(every), own.activations, rtol=1e-4, atol=1e-4)
        assert sae.unexplained is not None and sae.run_unexplained is not None
        assert 0 < sae.unexplained < 1
        assert all(0 < (token.unexplained or 0) < 2 for token in sae.tokens)


@pytest.mark.slow
def test_what_is_loaded_stays_loaded_and_labels_are_read_anew(labelled: RunFolder) -> None:
    run = LoadedRun(labelled.path)
    first = inspect_text(run, TEXT, [RES])
    model, sae = run.model, run.sae(first.saes[0].sae)
    written = write_label(labelled, str(first.saes[0].tokens[0].features[0].feature_id), "new")
    again = inspect_text(run, TEXT, [RES])
    assert run.model is model and run.sae(again.saes[0].sae) is sae
    feature = again.saes[0].tokens[0].features[0]
    assert feature.feature_id == written.feature_id and feature.known.label == "new"


@pytest.mark.slow
def test_of_saes_only_as_many_stay_in_memory_as_may(collected: Path) -> None:
    run = LoadedRun(collected, kept_bytes=0)
    with run.store() as store:
        att, mlp, _ = read_collected_saes(store.connection)
    first = run.sae(att)
    assert run.sae(att) is first
    run.sae(mlp)
    assert run.sae(att) is not first


@pytest.mark.slow
def test_the_command_shows_labels_and_the_lens(command: Command, labelled: RunFolder) -> None:
    status, out, err = command(labelled.path, TEXT, "--sae", "1-res-1k", "--top", 2)
    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 100
    bracket = next(line for line in out.splitlines() if "“(”" in line)
    assert "where a method's arguments begin [red]" in bracket
    assert "\x1b" not in out
    assert "logit lens" in out and "layer by layer" in out
    assert "1-att-1k" not in out


@pytest.mark.slow
def test_json_has_all_that_fires_and_every_layer(command: Command, labelled: RunFolder) -> None:
    status, out, _ = command(labelled.path, TEXT, "--json")
    assert status == 0
    found = json.loads(out)
    own = inspect_text(LoadedRun(labelled.path), TEXT)
    assert [token["text"] for token in found["tokens"]] == list(own.prompt.tokens)
    for sae, expected in zip(found["saes"], own.saes, strict=True):
        for token, wanted in zip(sae["tokens"], expected.tokens, strict=True):
            assert token["n_active"] == len(token["features"]) == len(wanted.features)
    mine = [
        feature["label"]
        for sae in found["saes"]
        for token in sae["tokens"]
        for feature in token["features"]
        if feature["label"]
    ]
    assert mine and found["n_labels"] >= 1
    layers = found["lens"]["layers"]
    assert (len(layers), len(layers[0]), len(layers[0][0])) == (3, len(found["tokens"]), 5)
    for token in layers[2]:
        values = [each["probability"] for each in token]
        assert 0 < sum(values) < 1 and values == sorted(values, reverse=True)
    cut = json.loads(command(labelled.path, TEXT, "--json", "--top", 1)[1])
    assert {len(token["features"]) for sae in cut["saes"] for token in sae["tokens"]} == {1}


@pytest.mark.slow
def test_the_text_may_come_from_standard_input(
    command: Command, collected: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", StringIO(TEXT))
    status, out, _ = command(collected, "-", "--json", "--sae", RES)
    assert status == 0
    assert json.loads(out)["text"] == TEXT


@pytest.mark.slow
def test_a_run_without_labels_is_inspected_all_the_same(command: Command, collected: Path) -> None:
    status, out, _ = command(collected, TEXT, "--sae", RES)
    assert status == 0
    assert "this run has no labels yet" in out
    assert json.loads(command(collected, TEXT, "--json", "--sae", RES)[1])["n_labels"] == 0


@pytest.mark.slow
def test_the_command_draws(command: Command, collected: Path, tmp_path: Path) -> None:
    status, _, err = command(collected, TEXT, "--plot", "a.png")
    assert (status, err) == (0, "drawn: a.png\n")
    assert (tmp_path / "a.png").stat().st_size > 20_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("",), "The text is empty"),
        (("a " * 3000,), "longer than what the model sees at once"),
        ((TEXT, "--sae", "9-res-1k"), "toy-gemma-2/1-att-1k, toy-gemma-2/1-mlp-1k"),
        ((TEXT, "--plot", "picture.pdf"), "ends in .png or .svg"),
        ((TEXT, "--plot", "nowhere/picture.png"), "folder is not there"),
        ((TEXT, "--top", "0"), "--top"),
    ],
)
def test_what_cannot_be_inspected_is_said(
    command: Command, collected: Path, words: tuple[str, ...], said: str
) -> None:
    status, out, err = command(collected, *words)
    assert (status, out) == (2, "")
    assert said in err


def test_a_run_is_needed_with_something_collected(command: Command, tmp_path: Path) -> None:
    assert "There is no run here" in command(tmp_path / "none", TEXT)[2]
    folder = RunFolder(tmp_path / "run").create()
    folder.write_config(demo_config().to_toml())
    status, _, err = command(folder.path, TEXT)
    assert status == 2 and "Nothing has been collected" in err
    with duckdb.connect(str(folder.database)) as connection:
        for migration in MIGRATIONS:
            connection.execute(migration.sql)
        connection.execute(f"INSERT INTO meta VALUES ('schema_version', '{SCHEMA_VERSION}')")
    status, _, err = command(folder.path, TEXT)
    assert status == 2 and "No features have been collected yet" in err


@pytest.mark.parametrize("words", [("inspect", TEXT), ("match", "0")])
def test_what_an_older_version_published_is_refused(
    words: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = RunFolder(tmp_path / "run").create()
    folder.write_config(demo_config().to_toml())
    with duckdb.connect(str(folder.database)) as connection:
        for migration in MIGRATIONS[:8]:
            connection.execute(migration.sql)
        connection.execute("INSERT INTO meta VALUES ('schema_version', '8')")
    name, what = words
    monkeypatch.setattr(sys, "argv", ["scopenote", name, str(folder.path), what])
    with pytest.raises(SystemExit) as ending:
        main()
    assert ending.value.code == 1
    assert "An older version of Scopenote published this run" in capsys.readouterr().err


@pytest.mark.slow
def test_an_sae_whose_weights_are_others_now_is_refused(collected: Path) -> None:
    run = LoadedRun(collected)
    with run.store() as store:
        sae = read_collected_saes(store.connection)[0]
    changed = CollectedSae(sae.sae_id, sae.site, sae.layer, sae.source, "another hash")
    with pytest.raises(SaeError):
        run.sae(changed)


def test_an_sae_of_no_run_is_refused_by_its_name() -> None:
    with make_database() as connection:
        assert [each.sae_id for each in find_saes(connection, ["1-mlp-1k"])] == [
            "toy-gemma-2/1-mlp-1k"
        ]
        assert len(find_saes(connection, [])) == 2
        for name in ("", "/", "res-1k", "other/1-res-1k"):
            with pytest.raises(UserMistake, match="no such SAE"):
                find_saes(connection, [name])
