"""`scopenote match`: within a run, with the run of a tuned model, and from databases alone."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import duckdb
import numpy as np
import pytest
from rich.console import Console
from scopenote.flows.by_hand import write_label
from scopenote.flows.cli import main
from scopenote.flows.match_feature import (
    NO_CONFIG,
    Counterpart,
    Match,
    MatchedSae,
    largest,
    match_feature,
    says_otherwise,
)
from scopenote.flows.match_page import render_match
from scopenote.store.errors import UserMistake
from scopenote.store.known_features import KnownFeature
from scopenote.store.records import FeatureId
from scopenote.store.run_folder import RunFolder
from scopenote.store.tried_feature import CollectedSae

from .asking_runs import command as run_command
from .asking_runs import rows
from .tiny_gemma import sae_arrays, save_tiny_gemma, site_inputs

RES = "toy-gemma-2/1-res-1k"
WIDTH = 48
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setattr(sys, "argv", ["scopenote", "match", *map(str, words)])
        with pytest.raises(SystemExit) as ending:
            main()
        output = capsys.readouterr()
        assert isinstance(ending.value.code, int)
        return ending.value.code, output.out, output.err

    return run


# --- how it looks, without a run ------------------------------------------------------------


def made_up(
    *, other_run: str | None = None, why_no_cosine: str | None = None, label: str | None = "doubt"
) -> Match:
    def known(text: str | None) -> KnownFeature:
        return KnownFeature(text, 0.413, None, 0.3, 0.5, 0.01, 40.0)

    def sae(layer: int, site: str) -> CollectedSae:
        return CollectedSae(f"gemma-2-2b/{layer}-gemmascope-{site}-16k", site, layer, None, "h")

    def matched(layer: int, site: str) -> MatchedSae:
        mine = sae(layer, site)
        cosine = None if why_no_cosine else 0.812
        text = "words [bold] of a very long label \x1b[2J that goes on for too long"
        found = Counterpart(
            FeatureId(mine.sae_id, 12_345), cosine, 0.734, 0.5, 120, known(text), True
        )
        return MatchedSae(mine, why_no_cosine, (found,))

    own = sae(12, "res")
    return Match(
        FeatureId(own.sae_id, 8249), own, known(label), other_run, 393_216, 3_982, None,
        tuple(matched(layer, site) for layer in (5, 20) for site in ("att", "mlp", "res")),
    )  # fmt: skip


def page(found: Match, width: int) -> list[str]:
    console = Console(file=StringIO(), width=width, highlight=False)
    console.print(render_match(found), crop=False)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 120])
def test_a_feature_stands_among_its_counterparts_by_layer(width: int) -> None:
    lines = page(made_up(), width)
    assert max(map(len, lines)) <= width
    table = [line for line in lines if "gemmascope" in line][1:]
    assert [line.split()[0] for line in table] == ["5"] * 3 + ["12"] + ["20"] * 3
    assert "itself" in table[3] and "doubt" in table[3]
    others = [line for line in table if "itself" not in line]
    assert all("0.81  0.73   0.41  ≠ words" in line for line in others)
    assert "\x1b" not in "".join(lines)
    assert "393,216 tokens" in " ".join(line.strip() for line in lines)
    assert "≠ another label although cosine or phi is 0.7 or more: 6" in "".join(lines)


def test_in_another_run_the_feature_stands_first() -> None:
    table = [line for line in page(made_up(other_run="it"), 120) if "gemmascope" in line]
    assert "counterparts in it" in " ".join(table[0].split())
    assert "itself" in table[1]


def test_why_there_are_no_cosines_is_said_once() -> None:
    text = " ".join(line.strip() for line in page(made_up(why_no_cosine=NO_CONFIG), 100))
    assert f"cosine: not known for 6 of 6 SAEs: {NO_CONFIG}" in text
    assert "of the directions" not in text


def test_the_largest_are_by_falling_value_then_place_and_never_nan() -> None:
    values = np.array([0.5, np.nan, 0.9, 0.5, -1.0, 0.9])
    assert largest(values, 3) == [2, 5, 0]
    assert largest(values, 9) == [2, 5, 0, 3, 4]
    assert largest(np.full(3, np.nan), 2) == []


def test_labels_say_the_same_apart_from_case_and_white_space() -> None:
    assert not says_otherwise("Words of  doubt", "words of\ndoubt")
    assert says_otherwise("words of doubt", "doubt")
    assert not says_otherwise(None, "doubt") and not says_otherwise("doubt", None)


# --- within a run of the toy ----------------------------------------------------------------


def busy_feature(run: Path, sae_id: str = RES) -> str:
    """One that fires often in the background."""
    (row,) = rows(
        run,
        f"SELECT feature FROM background WHERE sae_id = '{sae_id}' GROUP BY feature "
        "ORDER BY sum(len(positions)) DESC, feature LIMIT 1 OFFSET 5",
    )
    return f"{sae_id}/{row[0]}"


@pytest.mark.slow
def test_each_other_sae_has_its_best_by_cosine_and_by_firing(collected: Path) -> None:
    from scopenote.flows.loaded_run import LoadedRun

    feature = busy_feature(collected)
    found = match_feature(collected, feature, top=2)
    assert str(found.feature_id) == feature
    assert [each.sae.site for each in found.saes] == ["att", "mlp"]
    run = LoadedRun(collected)
    mine = run.sae(found.sae).decoder[found.feature_id.feature].double().numpy()
    theirs = run.sae(found.saes[1].sae).decoder.double().numpy()
    cosine = theirs @ mine / np.linalg.norm(theirs, axis=1) / np.linalg.norm(mine)
    best = set(np.argsort(-cosine)[:2].tolist())
    mlp = found.saes[1].counterparts
    assert best <= {each.feature_id.feature for each in mlp}
    assert 2 <= len(mlp) <= 4
    for each in mlp:
        assert each.cosine == pytest.approx(cosine[each.feature_id.feature], abs=1e-5)
        assert each.phi is not None and -1 <= each.phi <= 1
    assert [each.nearness for each in mlp] == sorted((it.nearness for it in mlp), reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("site", ["res", "att"])
def test_in_its_own_run_a_feature_is_its_own_counterpart(collected: Path, site: str) -> None:
    feature = busy_feature(collected, f"toy-gemma-2/1-{site}-1k")
    found = match_feature(collected, feature, collected)
    (own,) = [each for each in found.saes if each.sae == found.sae]
    (itself,) = own.counterparts
    assert str(itself.feature_id) == feature
    assert itself.cosine == pytest.approx(1, abs=1e-5)
    assert (itself.phi, itself.jaccard) == (pytest.approx(1), 1)
    assert itself.n_together == found.n_active > 0


@pytest.mark.slow
def test_labels_that_disagree_are_marked(collected: Path, tmp_path: Path, command: Command) -> None:
    shutil.copytree(collected, tmp_path / "run")
    shutil.copytree(collected, tmp_path / "other")
    feature = busy_feature(collected)
    write_label(RunFolder(tmp_path / "run"), feature, "one thing", author="me")
    words = (tmp_path / "run", feature, "--in", tmp_path / "other")
    assert "≠" not in command(*words)[1]
    write_label(RunFolder(tmp_path / "other"), feature, "One  Thing", author="me")
    assert "≠" not in command(*words)[1]
    write_label(RunFolder(tmp_path / "other"), feature, "another thing", author="me")
    status, out, err = command(*words)
    assert (status, err) == (0, "")
    assert "≠ another thing" in out and "one thing" in out


@pytest.mark.slow
def test_json_has_all_of_it(collected: Path, command: Command) -> None:
    feature = busy_feature(collected)
    status, out, _ = command(collected, feature, "--json")
    assert status == 0
    found = json.loads(out)
    assert found["feature_id"] == feature and found["other_run"] is None
    assert found["n_tokens"] > 10_000
    counterpart = found["saes"][0]["counterparts"][0]
    assert {"cosine", "phi", "jaccard", "n_together", "label", "score", "density"} <= set(
        counterpart
    )
    assert counterpart["feature_id"].startswith("toy-gemma-2/1-att-1k/")


@pytest.mark.slow
def test_a_database_alone_tells_what_fires_together(
    collected: Path, tmp_path: Path, command: Command
) -> None:
    shutil.copy(collected / "scopenote.duckdb", tmp_path)
    feature = busy_feature(collected)
    with_weights = match_feature(collected, feature)
    found = match_feature(tmp_path, feature)
    assert {each.why_no_cosine for each in found.saes} == {NO_CONFIG}
    for alone, whole in zip(found.saes, with_weights.saes, strict=True):
        best = max(whole.counterparts, key=lambda each: each.phi or -1)
        (counterpart,) = alone.counterparts
        assert (counterpart.feature_id, counterpart.phi) == (best.feature_id, best.phi)
        assert counterpart.cosine is None
    assert "no run.toml" in " ".join(command(tmp_path, feature)[1].split())


@pytest.mark.slow
def test_weights_that_are_gone_leave_what_fires_together(collected: Path, tmp_path: Path) -> None:
    shutil.copytree(collected, tmp_path / "run")
    config = tmp_path / "run" / "run.toml"
    gone = "layer_1/width_1k_gone"
    config.write_text(config.read_text().replace("layer_1/width_1k", gone))
    found = match_feature(tmp_path / "run", busy_feature(collected))
    for each in found.saes:
        assert each.why_no_cosine and each.counterparts[0].phi is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("feature", "said"),
    [
        (f"{RES}/1024", "no feature of this number"),
        ("9-res-1k/0", "no such SAE"),
        ("0", "Several SAEs have such a feature"),
        ("words", "not a feature's id"),
    ],
)
def test_a_feature_that_does_not_exist_is_answered_with_what_does(
    collected: Path, command: Command, feature: str, said: str
) -> None:
    status, out, err = command(collected, feature)
    assert (status, out) == (2, "")
    assert said in err and "toy-gemma-2/1-" in err


def test_a_run_is_needed(tmp_path: Path, command: Command) -> None:
    status, _, err = command(tmp_path / "none", "0")
    assert status == 2 and "There is no run here" in err


# --- a base model and its tuned version -----------------------------------------------------

ORDER = np.random.default_rng(5).permutation(WIDTH)


def save_sae(file: Path, arrays: dict[str, np.ndarray]) -> None:
    file.parent.mkdir(parents=True)
    np.savez(file, **arrays)


def collect_tiny(folder: Path, model: Path, arrays: dict[str, np.ndarray]) -> Path:
    name = f"{model.name}-saes/res/layer_1/width_{WIDTH}/average_l0_5/params.npz"
    save_sae(folder / name, arrays)
    config = folder / f"{model.name}.toml"
    config.write_text(
        f"""
        [model]
        name = {json.dumps(str(model))}
        [saes]
        paths = [{json.dumps(str(folder / name))}]
        [corpus]
        path = "corpus.jsonl"
        [collect]
        neighbours = false
        logit_effects = false
        """
    )
    run = folder / f"run-{model.name}"
    finished = run_command("collect", run, "--config", config, "--allow-mismatch")
    assert finished.returncode == 0, finished.stderr
    return run


@pytest.fixture(scope="module")
def tiny_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of a model, and of one with slightly other weights and its SAE's features shuffled."""
    from safetensors.torch import load_file
    from safetensors.torch import save_file as save_weights

    folder = tmp_path_factory.mktemp("tuned")
    base = save_tiny_gemma(folder / "tiny")
    tuned = folder / "tiny-it"
    shutil.copytree(base, tuned)
    weights = load_file(tuned / "model.safetensors")
    moved = {name: each * 1.02 for name, each in weights.items()}
    save_weights(moved, tuned / "model.safetensors", {"format": "pt"})
    draw = np.random.default_rng(0)
    words = ["the", "thing", "in", "a", "ring", "and", "then", "another", "ran", "there", "here"]
    texts = [" ".join(draw.choice(words, 60)) + f" {n}" for n in range(300)]
    (folder / "corpus.jsonl").write_text("\n".join(json.dumps({"text": each}) for each in texts))
    arrays = sae_arrays(WIDTH, 16, inputs=site_inputs(base, "res", 1))
    by_feature = {"W_enc": 1, "W_dec": 0, "b_enc": 0, "threshold": 0}
    shuffled = {
        name: np.take(array, ORDER, axis=by_feature[name]) if name in by_feature else array
        for name, array in arrays.items()
    }
    return collect_tiny(folder, base, arrays), collect_tiny(folder, tuned, shuffled)


@pytest.mark.slow
def test_a_feature_is_found_in_the_tuned_model_by_cosine_and_by_firing(
    tiny_runs: tuple[Path, Path],
) -> None:
    base, tuned = tiny_runs
    sae = f"tiny/{rows(base, 'SELECT sae_id FROM saes')[0][0].split('/')[1]}"
    n_by_firing = n_firing = 0
    for feature in range(0, WIDTH, 6):
        found = match_feature(base, f"{sae}/{feature}", tuned)
        assert found.n_tokens > 5_000
        (other,) = found.saes
        assert other.sae.sae_id.startswith("tiny-it/")
        by_cosine = max(other.counterparts, key=lambda each: each.cosine or -1)
        assert ORDER[by_cosine.feature_id.feature] == feature
        assert by_cosine.cosine == pytest.approx(1, abs=1e-5)
        if found.n_active:
            n_firing += 1
            by_firing = max(other.counterparts, key=lambda each: each.phi or -1)
            n_by_firing += ORDER[by_firing.feature_id.feature] == feature
    assert n_firing > 4
    assert n_by_firing >= n_firing - 1


@pytest.mark.slow
def test_without_text_in_common_there_are_cosines_alone(
    tiny_runs: tuple[Path, Path], tmp_path: Path
) -> None:
    base, tuned = tiny_runs
    shutil.copytree(tuned, tmp_path / "elsewhere")
    with duckdb.connect(str(tmp_path / "elsewhere" / "scopenote.duckdb")) as connection:
        connection.execute("UPDATE windows SET is_background = false")
    found = match_feature(base, "6", tmp_path / "elsewhere")
    assert found.why_no_cofiring == "the backgrounds of the two runs share no text"
    (counterpart,) = found.saes[0].counterparts
    assert counterpart.cosine == pytest.approx(1, abs=1e-5)
    assert (counterpart.phi, counterpart.n_together) == (None, None)
    (tmp_path / "elsewhere" / "run.toml").unlink()
    with pytest.raises(UserMistake, match="nothing by which features could be matched") as caught:
        match_feature(base, "6", tmp_path / "elsewhere")
    assert "share no text" in str(caught.value) and NO_CONFIG in str(caught.value)


@pytest.mark.slow
def test_a_tuned_model_that_is_gone_leaves_what_fires_together(
    tiny_runs: tuple[Path, Path], tmp_path: Path
) -> None:
    base, tuned = tiny_runs
    shutil.copytree(tuned, tmp_path / "elsewhere")
    config = tmp_path / "elsewhere" / "run.toml"
    config.write_text(config.read_text().replace('/tiny-it"', '/gone"'))
    (other,) = match_feature(base, "6", tmp_path / "elsewhere").saes
    assert other.why_no_cosine == "The model cannot be loaded."
    assert other.counterparts[0].phi is not None


@pytest.mark.slow
def test_a_run_of_one_sae_has_no_counterparts_of_its_own(
    tiny_runs: tuple[Path, Path], command: Command
) -> None:
    status, out, err = command(tiny_runs[0], "3")
    assert (status, out) == (2, "")
    assert "one SAE only" in err and "--in" in err


@pytest.mark.slow
def test_runs_with_nothing_in_common_are_refused(
    tiny_runs: tuple[Path, Path], collected: Path
) -> None:
    with pytest.raises(UserMistake, match="nothing by which features could be matched") as caught:
        match_feature(tiny_runs[0], "3", collected)
    assert "different tokenizers" in str(caught.value)
    assert "hidden_size is 16 in the one and 128 in the other" in str(caught.value)
