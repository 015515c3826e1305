"""A feature tried in the dashboard: the form, what comes of it, and who is refused."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from scopenote.extract.models import load_model
from scopenote.extract.neurons import thresholds_table
from scopenote.extract.own_text import OwnText
from scopenote.extract.saes import load_sae
from scopenote.flows.collect_setup import sae_sources
from scopenote.flows.config import SaesSection, demo_config, load_config
from scopenote.flows.dashboard import tried_model as module
from scopenote.flows.dashboard.app import create_app
from scopenote.flows.dashboard.site import Site
from scopenote.flows.dashboard.tried_model import ModelBusy, TriedModel
from scopenote.flows.dashboard.tried_results import shade_level, shade_text
from scopenote.store.errors import SaeError, UserMistake
from scopenote.store.parts import write_part
from scopenote.store.records import FeatureId
from scopenote.store.run_folder import RunFolder
from scopenote.store.tried_feature import (
    CollectedSae,
    TriedFeature,
    read_collected_saes,
    read_tried_feature,
)

from .asking_runs import rows
from .made_up_run import RES, make_database

pytestmark = pytest.mark.slow  # it takes a collected run

SAE = "toy-gemma-2/1-res-1k"
TEXT = "class Reader:\n    def read(self):\n        return self.text"


@pytest.fixture(scope="module")
def feature(collected: Path) -> int:
    """One that is active on many tokens."""
    ((found,),) = rows(
        collected,
        f"SELECT feature FROM features WHERE sae_id = '{SAE}' ORDER BY n_active DESC LIMIT 1",
    )
    return int(found)


@pytest.fixture(scope="module")
def path(feature: int) -> str:
    return f"/{SAE}/{feature}/try"


@pytest.fixture(scope="module")
def site(collected: Path) -> Site:
    return Site(collected, with_model=True)


@pytest.fixture(scope="module")
def client(site: Site) -> Iterator[TestClient]:
    with open_site(site) as opened:
        yield opened


def open_site(site: Site) -> TestClient:
    return TestClient(create_app(site), base_url="http://localhost")


def form(site: Site, **given: Any) -> dict[str, str]:
    fields = {
        "secret": site.form_secret,
        "text": TEXT,
        "what": "activations",
        "strength": "5",
        "n_tokens": "6",
        "seed": "",
    }
    return fields | {name: str(value) for name, value in given.items()}


def shaded(page: str) -> list[tuple[int, str, str]]:
    """The active tokens: level, value on hover, text."""
    found = re.findall(r'<span class="t a(\d+)" title="([^"]*)">([^<]*)</span>', page)
    return [(int(level), title, unescape(text)) for level, title, text in found]


def plain(page: str) -> str:
    return unescape(re.sub(r"<[^>]+>", "", page))


# --- what comes of it -------------------------------------------------------------------------


def test_the_form_stands_on_a_page_of_its_own(client: TestClient, site: Site, path: str) -> None:
    page = client.get(path)
    assert page.status_code == 200
    assert site.form_secret in page.text
    assert not shaded(page.text)


def test_active_tokens_are_shaded_with_their_values(
    client: TestClient, site: Site, path: str, collected: Path, feature: int
) -> None:
    page = client.post(path, data=form(site))
    assert page.status_code == 200
    found = shaded(page.text)
    model = TriedModel(collected)
    tried = client.app.state.reader  # type: ignore[attr-defined]
    with tried.connection() as connection:
        own = model.read_text(read_tried_feature(connection, FeatureId(SAE, feature)), TEXT)
    active = [value for value in own.activations[0] if value > 0]
    assert len(found) == len(active) > 1
    assert [float(value) for _, value, _ in found] == pytest.approx(active, rel=0.01)


def test_the_form_is_filled_in_again(client: TestClient, site: Site, path: str) -> None:
    page = client.post(path, data=form(site, strength="−7.5", seed="11", what="steer")).text
    assert f"\n{TEXT}</textarea>" in unescape(page)
    assert 'value="−7.5"' in page
    assert 'value="11"' in page
    assert re.search(r'value="steer" checked', page)


def test_lines_that_a_browser_ends_by_two_characters_are_ended_by_one(
    client: TestClient, site: Site, path: str
) -> None:
    windows = client.post(path, data=form(site, text=TEXT.replace("\n", "\r\n"))).text
    assert shaded(windows) == shaded(client.post(path, data=form(site)).text)
    assert "␍" not in windows


def test_both_texts_stand_side_by_side_with_the_next_tokens(
    client: TestClient, site: Site, path: str
) -> None:
    page = client.post(path, data=form(site, what="steer", strength=60)).text
    sides = re.findall(r'<p class="text">(.*?)</p>', page, re.DOTALL)
    assert len(sides) == 2
    assert sides[0] != sides[1]
    assert all(plain(side).startswith("class Reader:⏎\n") for side in sides)
    table = page[page.index("The first token after your text") :]
    assert 5 <= table.count("<tr><th") - 1 <= 10


def test_a_seed_repeats_what_it_drew(client: TestClient, site: Site, path: str) -> None:
    asked = form(site, what="steer", seed=5, n_tokens=12)
    first, again = (client.post(path, data=asked).text for _ in range(2))
    other = client.post(path, data=form(site, what="steer", seed=6, n_tokens=12)).text
    assert first == again
    result = '<div id="result"'
    assert first[first.index(result) :] != other[other.index(result) :]


def test_hostile_text_is_shown_as_text(client: TestClient, site: Site, path: str) -> None:
    hostile = "</textarea><script>alert(1)</script>{{ 7 * 7 }}\u202e\x00<eos>"
    for what in ("activations", "steer"):
        page = client.post(path, data=form(site, text=hostile, what=what)).text
        assert "<script>alert" not in page
        shown = page[page.index('id="result"') :]
        assert "{{ 7 * 7 }}" in plain(shown)
        assert "\u202e" not in shown
        assert "⟨202E⟩" in plain(shown)


def test_shades_go_up_to_the_larger_of_the_runs_peak_and_the_one_here() -> None:
    own = OwnText(("a", "b", "c"), np.array([[0.0, 1.0, 4.0]], np.float32), 1)
    levels = [token.level for token in shade_text(own, peak=40.0).tokens]
    assert levels == [0, 1, 1]
    assert [token.level for token in shade_text(own, peak=2.0).tokens] == [0, 3, 10]
    assert [token.level for token in shade_text(own, peak=None).tokens] == [0, 3, 10]


def test_the_faintest_activation_has_a_shade_and_silence_none() -> None:
    assert [shade_level(value, 10.0) for value in (0, 1e-30, 1, 1.01, 10)] == [0, 1, 1, 2, 10]


def test_bytes_of_a_character_are_shown_as_the_character() -> None:
    own = OwnText(("<0xC3>", "<0xAF>", " "), np.array([[2.0, 1.0, 0.5]], np.float32), 1)
    found = shade_text(own, None)
    assert [(token.text, token.value) for token in found.tokens] == [("ï", 2.0), (" ", 0.5)]
    assert found.strongest[1].name == "␣"


# --- who is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_without_the_model_there_is_a_helpful_404(collected: Path, path: str, method: str) -> None:
    site = Site(collected)
    with open_site(site) as client:
        answer = client.request(method, path, data=form(site) if method == "POST" else None)
    assert answer.status_code == 404
    assert "--with-model" in answer.text


def test_a_form_without_the_secret_is_refused(client: TestClient, site: Site, path: str) -> None:
    assert client.post(path, data=form(site, secret="x")).status_code == 403
    assert client.post(path, data=form(site, secret="é")).status_code == 403
    assert client.post(path, data={"text": "a"}).status_code == 403


def test_a_form_of_another_site_is_refused(client: TestClient, site: Site, path: str) -> None:
    headers = {"Origin": "http://elsewhere.example"}
    assert client.post(path, data=form(site), headers=headers).status_code == 403


def test_a_read_only_dashboard_may_be_tried_and_nothing_else_sent(
    collected: Path, path: str
) -> None:
    site = Site(collected, is_read_only=True, with_model=True)
    with open_site(site) as client:
        assert shaded(client.post(path, data=form(site)).text)
        for other in (path[:-4], f"{path}/more", f"{path[:-4]}/label", "/a/try", f"/x{path}"):
            assert client.post(other, data=form(site)).status_code == 403, other
        headers = {"Origin": "http://elsewhere.example"}
        assert client.post(path, data=form(site), headers=headers).status_code == 403


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text", ""),
        ("text", "x" * 2001),
        ("strength", "nan"),
        ("strength", "inf"),
        ("strength", "1e7"),
        ("strength", "much"),
        ("n_tokens", "0"),
        ("n_tokens", "65"),
        ("seed", "-1"),
        ("seed", str(2**63)),
    ],
)
def test_a_value_out_of_bounds_is_answered_beside_its_field(
    client: TestClient, site: Site, path: str, name: str, value: str
) -> None:
    page = client.post(path, data=form(site, what="steer", **{name: value}))
    assert page.status_code == 422
    assert re.findall(r'id="try-(\w+)-wrong"', page.text) == [name]


def test_a_prompt_beyond_the_models_context_is_a_message(
    client: TestClient, site: Site, path: str
) -> None:
    page = client.post(path, data=form(site, what="steer", text="🙂" * 2000))
    assert page.status_code == 422
    assert "longer than what the model sees at once" in page.text
    assert "🙂" in page.text


def test_an_unknown_feature_is_a_404_that_names_a_near_one(client: TestClient, site: Site) -> None:
    page = client.post("/toy-gemma-2/1-res-1k/99999/try", data=form(site))
    assert page.status_code == 404
    assert "1023" in page.text


def test_too_many_fields_are_a_400(client: TestClient, path: str) -> None:
    assert client.post(path, data={f"f{n}": "" for n in range(30)}).status_code == 400


# --- the model --------------------------------------------------------------------------------


@pytest.fixture
def tried(collected: Path, feature: int) -> TriedFeature:
    ((content_hash, source),) = rows(
        collected, f"SELECT content_hash, source FROM saes WHERE sae_id = '{SAE}'"
    )
    return tried_feature(SAE, feature, source, content_hash)


def tried_feature(sae_id: str, feature: int, source: str, content_hash: str) -> TriedFeature:
    sae = CollectedSae(sae_id, "res", 1, source, content_hash)
    return TriedFeature(FeatureId(sae_id, feature), sae, 10.0, None)


def is_done(model: TriedModel, tried: TriedFeature) -> None:
    with pytest.raises(UserMistake, match="done"):
        model.read_text(tried, "a")


def test_a_second_caller_waits_only_so_long(
    collected: Path, tried: TriedFeature, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = TriedModel(collected, wait_seconds=0.05)
    begun, go_on = threading.Event(), threading.Event()

    def slow(*_: Any) -> Any:
        begun.set()
        go_on.wait(30)
        raise UserMistake("done")

    monkeypatch.setattr(TriedModel, "_config", slow)
    thread = threading.Thread(target=is_done, args=[model, tried])
    thread.start()
    begun.wait(30)
    with pytest.raises(ModelBusy, match="Somebody else"):
        model.read_text(tried, "a")
    go_on.set()
    thread.join()
    # And the turn is free again.
    is_done(model, tried)


def test_who_comes_when_many_wait_is_told_at_once(collected: Path, tried: TriedFeature) -> None:
    model = TriedModel(collected, wait_seconds=30)
    for _ in range(5):
        assert model._places.acquire(blocking=False)
    with pytest.raises(ModelBusy):
        model.read_text(tried, "a")


def test_a_busy_model_is_a_503_that_keeps_the_text(
    client: TestClient, site: Site, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: Any) -> Any:
        raise ModelBusy("Somebody else is trying the model.")

    monkeypatch.setattr(TriedModel, "read_text", busy)
    page = client.post(path, data=form(site))
    assert page.status_code == 503
    assert TEXT in unescape(page.text)


def test_an_sae_that_has_changed_since_is_refused(collected: Path, tried: TriedFeature) -> None:
    other = tried_feature(SAE, tried.feature_id.feature, str(tried.sae.source), "another")
    with pytest.raises(SaeError, match="no longer the one"):
        TriedModel(collected).read_text(other, "a")


def test_neurons_are_tried_with_the_thresholds_of_this_run(tmp_path: Path) -> None:
    config = demo_config()
    neurons = SaesSection.model_validate({"paths": ["1-mlp-neurons"]})
    folder = RunFolder(tmp_path).create()
    folder.write_config(config.model_copy(update={"saes": neurons}).to_toml())
    for name, layer, threshold in (("a", 1, 0.5), ("b", 1, 0.0), ("c", 0, 0.0)):
        table = thresholds_table(np.full(256, threshold, np.float32))
        write_part(
            folder.parts, f"neurons-{name}", "neurons", {"thresholds": table}, {"layer": layer}
        )
    model = load_model("toy", [])
    source = replace(
        sae_sources(load_config(folder.config_file))[0],
        path=folder.parts / "neurons-b" / "thresholds.parquet",
    )
    sae = load_sae(source, model.config)
    tried = tried_feature(sae.sae_id, 7, "1-mlp-neurons", sae.content_hash)
    found = TriedModel(tmp_path).read_text(tried, TEXT)
    site = sae.site
    ids = model.tokenizer(TEXT, add_special_tokens=False).input_ids
    x = model.read_sites(torch.tensor([[model.tokenizer.bos_token_id, *ids]]), [site])[site]
    # The fourth neuron where it is negative.
    expected = (-x[0, 1:, 3]).clamp(min=0).numpy()
    assert (expected > 0).any()
    np.testing.assert_allclose(found.activations[0], expected, rtol=1e-4, atol=1e-5)


def test_two_saes_are_kept_and_the_model_is_loaded_once(
    collected: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    load = module.load_collected_sae

    def counted(collected_sae: CollectedSae, *given: Any) -> Any:
        loaded.append(collected_sae.sae_id)
        return load(collected_sae, *given)

    monkeypatch.setattr(module, "load_collected_sae", counted)
    model = TriedModel(collected)
    saes = rows(collected, "SELECT sae_id, content_hash, source FROM saes ORDER BY sae_id")
    att, mlp, res = (tried_feature(i, 0, s, h) for i, h, s in saes)
    for each in (att, mlp, att, res, att, mlp):
        model.read_text(each, "a text")
        network = model._model
    assert loaded == [each.feature_id.sae_id for each in (att, mlp, res, mlp)]
    assert network is model._model


def test_a_feature_to_try_is_read_with_its_peak_and_label() -> None:
    with make_database() as connection:
        found = read_tried_feature(connection, FeatureId(RES, 0))
        assert found.sae == CollectedSae(RES, "res", 1, "toy", "h")
        assert found.sae in read_collected_saes(connection)
        assert found.peak is not None
        assert found.label
        with pytest.raises(UserMistake):
            read_tried_feature(connection, FeatureId("toy-gemma-2/9-res-1k", 0))
