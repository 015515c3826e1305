"""The configuration: defaults, round trips, and the answer to everything that can be wrong."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scopenote.extract.sites import SITE_KINDS
from scopenote.flows import config as config_module
from scopenote.flows.config import (
    Config,
    CorpusSection,
    ModelSection,
    SaeEntry,
    SaesSection,
    demo_config,
    differing_keys,
    load_config,
)
from scopenote.flows.config_text import _toml_value
from scopenote.store.errors import ConfigurationError
from scopenote.store.splits import SPLITS

SMALLEST = '[model]\nname = "toy"\n[corpus]\nstandard_library = true\n'


def write(folder: Path, toml: str) -> Path:
    path = folder / "job.toml"
    path.write_text(toml, encoding="utf-8")
    return path


def mistake(folder: Path, toml: str) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        load_config(write(folder, toml))
    return caught.value


def test_the_smallest_configuration_takes_every_default(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, SMALLEST))
    assert config.model.max_batch_tokens == 4096
    assert config.collect.chunks_per_part == 16
    kept = [config.collect.kept(split) for split in SPLITS]
    assert [(k.top, k.sample, k.background_windows) for k in kept] == [
        (20, 20, 1024),
        (10, 30, 1024),
        (20, 60, 4096),
    ]


def test_one_setting_of_a_split_leaves_its_other_defaults(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, SMALLEST + "[collect.score]\ntop = 3\n"))
    assert (config.collect.score.top, config.collect.score.sample) == (3, 60)


def test_what_is_written_is_read_back_the_same(tmp_path: Path) -> None:
    config = Config(
        model=ModelSection(name="/models/gemma", device="cuda:1"),
        saes=SaesSection(
            paths=(
                SaeEntry(path="google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"),
                SaeEntry(path="/saes/a b.npz", site="mlp", layer=3),
            )
        ),
        corpus=CorpusSection(path='/texts/with "quotes" and \\ and é', text_unit="line"),
    )
    assert load_config(write(tmp_path, config.to_toml())) == config
    assert load_config(write(tmp_path, demo_config().to_toml())) == demo_config()


@given(st.text())
def test_any_text_survives_being_written_as_toml(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    assert tomllib.loads(f"key = {_toml_value(text)}")["key"] == text


def test_every_setting_is_explained_in_what_is_written() -> None:
    settings = [line for line in demo_config().to_toml().splitlines() if " = " in line]
    assert settings
    assert [line for line in settings if "  # " not in line] == []


def test_relative_paths_are_taken_from_the_folder_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    toml = (
        '[model]\nname = "google/gemma-2-2b"\n[saes]\npaths = ["./sae/params.npz", "google/x/y"]\n'
        '[corpus]\npath = "texts"\n'
    )
    config = load_config(write(tmp_path, toml))
    assert config.corpus.path == str(tmp_path / "texts")
    assert config.model.name == "google/gemma-2-2b"
    assert [entry.path for entry in config.saes.paths] == [
        str(tmp_path / "sae/params.npz"),
        "google/x/y",
    ]


def test_a_misspelt_key_is_answered_with_the_nearest_one(tmp_path: Path) -> None:
    error = mistake(tmp_path, SMALLEST + "[collect]\nwindow_token = 32\n")
    assert "job.toml, key `collect.window_token`" in (error.where or "")
    assert error.found == "window_token = 32"
    assert "window_tokens, prefix_tokens" in (error.expected or "")
    assert error.mend == "perhaps `window_tokens` was meant"


def test_a_misspelt_table_is_named_before_the_one_that_is_missing_for_it(tmp_path: Path) -> None:
    error = mistake(tmp_path, SMALLEST.replace("[model]", "[modle]"))
    assert error.found == 'modle = {"name": "toy"}'
    assert error.mend == "perhaps `model` was meant; also wrong: `model`"


@pytest.mark.parametrize(
    ("toml", "key", "found", "expected"),
    [
        ("[score]\nlevel = 1.5\n", "score.level", "1.5", "less than 1"),
        ("[score]\nresamples = 1.5\n", "score.resamples", "1.5", "a whole number"),
        ("[collect]\nseed = true\n", "collect.seed", "true", "a whole number"),
        ("[collect]\nwindow_tokens = 257\n", "collect.window_tokens", "257", "equal to 256"),
        ("[explain]\nexplainers = []\n", "explain.explainers", "[]", "at least one entry"),
        ("[explain]\nexplainers = ['x']\n", "explain.explainers[0]", '"x"', '"token_lookup"'),
        ("[saes]\npaths = [3]\n", "saes.paths[0]", "3", "a table"),
        ("[saes]\npaths = [{path='x', site='r'}]\n", "saes.paths[0].site", '"r"', '"res"'),
        ("explain = 3\n", "explain", "3", "a table"),
    ],
)
def test_a_wrong_value_is_answered_with_key_value_and_what_is_allowed(
    tmp_path: Path, toml: str, key: str, found: str, expected: str
) -> None:
    text = toml + SMALLEST if "[" not in toml.split("=")[0] else SMALLEST + toml
    error = mistake(tmp_path, text)
    assert f"key `{key}`" in (error.where or "")
    assert error.found == found
    assert expected in (error.expected or "")


def test_a_device_is_answered_with_the_devices_there_are(tmp_path: Path) -> None:
    error = mistake(tmp_path, SMALLEST.replace('"toy"', '"toy"\ndevice = "gpu"'))
    assert '"auto", "cpu", "cuda"' in (error.mend or "")


@pytest.mark.parametrize(
    ("corpus", "found"),
    [
        ("text_field = 'text'", "none of them"),
        ("path = 'a'\ndataset = 'b'", "path and dataset"),
        ("path = 'a'\nrevision = 'main'", "`revision` without it"),
    ],
)
def test_a_corpus_has_exactly_one_source(tmp_path: Path, corpus: str, found: str) -> None:
    error = mistake(tmp_path, f'[model]\nname = "toy"\n[corpus]\n{corpus}\n')
    assert "key `corpus`" in (error.where or "")
    assert error.found == found


def test_only_the_toy_brings_its_own_saes(tmp_path: Path) -> None:
    error = mistake(tmp_path, SMALLEST.replace("toy", "google/gemma-2-2b"))
    assert "saes.paths" in (error.expected or "")


@pytest.mark.parametrize(
    ("score", "chat", "expected"),
    [
        ("simulators = ['local']", "model = 'm'", "`chat.local = true`"),
        ("simulators = ['vllm']", "model = 'm'\nlocal = true", "`chat.local = false`"),
        ("simulators = ['chat_sparse']", "", "`chat.model`"),
        (
            "simulators = ['local']",
            "model = 'm'\nlocal = true\nsecond_opinions = ['fuzzing']",
            "a simulator whose model is asked",
        ),
        ("", "looks = [0.5, 0.2, 1.0]\nnarrow = 0.1", "rise from above 0 to 1"),
        ("", "looks = [0.5]\nnarrow = 0.1", "end with 1.0"),
        ("", "looks = [0.5, 1.0]", "together with `narrow` or `threshold`"),
        ("", "narrow = 0.1", "together with `narrow` or `threshold`"),
        ("", "screen = 'magic'", '"words_or_lookup"'),
    ],
)
def test_a_judge_that_cannot_be_asked_so_is_answered_with_how(
    tmp_path: Path, score: str, chat: str, expected: str
) -> None:
    error = mistake(tmp_path, f"{SMALLEST}[score]\n{score}\n[score.chat]\n{chat}\n")
    assert expected in (error.expected or "")


@pytest.mark.parametrize(
    ("settings", "expected", "found"),
    [
        (
            "random_features = 5",
            "two `random_features` for each of `questions`",
            "random_features = 5, questions = 10",
        ),
        ("strength = 0.0", "greater than 0", "0.0"),
        ("strength = inf", "finite", "Infinity"),
        ("prompts = 65", "less than or equal to 64", "65"),
        ("features = -1", "greater than or equal to 0", "-1"),
        ("feature = 9", "features", "feature = 9"),
    ],
)
def test_an_intervention_that_cannot_be_is_answered_with_what_can(
    tmp_path: Path, settings: str, expected: str, found: str
) -> None:
    error = mistake(tmp_path, f"{SMALLEST}[score.intervention]\n{settings}\n")
    assert "score.intervention" in (error.where or "")
    assert expected in (error.expected or "")
    assert error.found == found


def test_judges_are_named_by_kind_and_model(tmp_path: Path) -> None:
    text = f"{SMALLEST}[score]\nsimulators = ['token_lookup', 'chat', 'chat_sparse']\n"
    score = load_config(write(tmp_path, text + "[score.chat]\nmodel = 'm'\n")).score
    assert score.judges == ("chat", "chat_sparse")
    assert score.simulator_names == ("token_lookup", "chat/m", "chat_sparse/m")


def test_several_mistakes_are_named_at_once(tmp_path: Path) -> None:
    error = mistake(tmp_path, SMALLEST + "[score]\nseed = -1\nlevel = 7\n")
    assert "`score.level`" in (error.where or "")
    assert "also wrong: `score.seed`" in (error.mend or "")


def test_a_file_that_cannot_be_read_is_a_mistake_and_no_traceback(tmp_path: Path) -> None:
    for path, word in (
        (tmp_path / "none.toml", "no such"),
        (tmp_path, "cannot be read"),
        (write(tmp_path, "[model\n"), "not valid TOML"),
    ):
        with pytest.raises(ConfigurationError, match=word):
            load_config(path)
    bad = tmp_path / "latin.toml"
    bad.write_bytes(b"# caf\xe9\n")
    with pytest.raises(ConfigurationError, match="byte 5"):
        load_config(bad)


def test_two_configurations_differ_in_named_keys() -> None:
    ours = demo_config(max_tokens=1000)
    assert differing_keys(ours, ours) == {}
    assert differing_keys(ours, demo_config(max_tokens=2000)) == {"corpus.max_tokens": (1000, 2000)}


def test_an_sae_may_be_named_for_every_site_there_is() -> None:
    assert get_args(config_module.Site) == SITE_KINDS


def test_names_and_files_on_the_hub_are_not_taken_for_local_files(tmp_path: Path) -> None:
    paths = [
        "gemma-2-2b/20-gemmascope-res-16k",
        "google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71/params.npz",
        "google/gemma-scope-2-1b-pt/resid_post/layer_13_width_16k_l0_medium/params.safetensors",
    ]
    local = ["params.npz", "mine/params.safetensors"]
    config = load_config(write(tmp_path, SMALLEST + f"[saes]\npaths = {paths + local}\n"))
    resolved = [entry.path for entry in config.saes.paths]
    assert resolved == [*paths, *(str(tmp_path / path) for path in local)]


ASKING = SMALLEST + '[explain]\nexplainers = ["token_lookup", "highlighted"]\n'


def test_every_explainer_can_be_chosen_and_no_other() -> None:
    from scopenote.flows.explain_settings import EMBEDDED_EXPLAINERS, Explainer
    from scopenote.label.explainers import EMBEDDED
    from scopenote.label.prompted import PROMPTED

    assert set(EMBEDDED) == EMBEDDED_EXPLAINERS
    assert {*EMBEDDED, *PROMPTED} == set(get_args(Explainer))


def test_who_asks_a_model_says_which(tmp_path: Path) -> None:
    error = mistake(tmp_path, ASKING)
    assert error.found == "highlighted"
    assert "`chat.model`" in (error.expected or "")
    config = load_config(write(tmp_path, ASKING + '[explain.chat]\nmodel = "gpt-4o-mini"\n'))
    assert config.explain.prompted == ("highlighted",)
    assert config.explain.asking().temperature == 0


def test_several_candidates_are_drawn_and_not_all_alike(tmp_path: Path) -> None:
    several = ASKING + "candidates = 4\n" + '[explain.chat]\nmodel = "gpt-4o-mini"\n'
    assert load_config(write(tmp_path, several)).explain.asking().temperature == 1
    error = mistake(tmp_path, several + "temperature = 0.0\n")
    assert error.found == "4 candidates"


def test_a_reply_has_to_fit_into_the_context(tmp_path: Path) -> None:
    chat = '[explain.chat]\nmodel = "m"\ncontext_tokens = 500\nmax_reply_tokens = 500\n'
    assert mistake(tmp_path, ASKING + chat).found == "500 and 500"


def test_a_table_of_prices_is_found_from_the_file_s_folder(tmp_path: Path) -> None:
    chat = '[explain.chat]\nmodel = "m"\nprices = "../mine.toml"\n'
    config = load_config(write(tmp_path, ASKING + chat))
    assert config.explain.chat.prices == str(tmp_path.parent / "mine.toml")


def test_a_local_model_is_the_hubs_or_a_folder_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    for written, meant in (
        ("google/gemma-2-9b-it", "google/gemma-2-9b-it"),
        ("my-model", str(tmp_path / "my-model")),
        ("../elsewhere", str(tmp_path.parent / "elsewhere")),
    ):
        chat = f'[explain.chat]\nmodel = "{written}"\nlocal = true\n'
        assert load_config(write(tmp_path, ASKING + chat)).explain.chat.model == meant
    # At an endpoint a name is a name.
    chat = '[explain.chat]\nmodel = "my-model"\n'
    assert load_config(write(tmp_path, ASKING + chat)).explain.chat.model == "my-model"


@pytest.mark.parametrize(
    "setting", ['base_url = "http://here/v1"', "tokens_per_minute = 9", "batch = true"]
)
def test_a_local_model_has_no_endpoint(tmp_path: Path, setting: str) -> None:
    chat = f'[explain.chat]\nmodel = "m"\nlocal = true\n{setting}\n'
    error = mistake(tmp_path, ASKING + chat)
    assert setting.split(" =")[0] in (error.found or "")
    assert "explain.chat" in (error.where or "")


def test_a_device_is_a_local_models(tmp_path: Path) -> None:
    local = '[explain.chat]\nmodel = "m"\ndevice = "cuda:1"\n'
    assert mistake(tmp_path, ASKING + local).found == "device = 'cuda:1'"
    config = load_config(write(tmp_path, ASKING + local + "local = true\n"))
    assert config.explain.chat.device == "cuda:1"


JUDGED = SMALLEST + '[score]\nsimulators = ["token_lookup", "chat"]\n'


def test_a_judge_has_a_name_and_its_scores_too(tmp_path: Path) -> None:
    error = mistake(tmp_path, JUDGED)
    assert error.found == "chat"
    assert "`chat.model`" in (error.expected or "")
    config = load_config(write(tmp_path, JUDGED + '[score.chat]\nmodel = "gpt-4o-mini"\n'))
    assert config.score.simulator_names == ("token_lookup", "chat/gpt-4o-mini")


def test_a_judge_on_this_machine_and_its_prices_are_found_from_the_file_s_folder(
    tmp_path: Path,
) -> None:
    chat = '[score.chat]\nmodel = "./judge"\nlocal = true\nprices = "mine.toml"\n'
    config = load_config(write(tmp_path, JUDGED + chat))
    assert config.score.chat.model == str(tmp_path / "judge")
    assert config.score.chat.prices == str(tmp_path / "mine.toml")
