"""The data of a dashboard as JSON: what it holds, and that nothing one may ask breaks it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from scopenote.flows.dashboard.app import create_app
from scopenote.flows.dashboard.site import Site
from scopenote.store.database import open_store
from scopenote.store.feature_page import find_feature, read_feature_page

from .dashboards import client, make_run
from .made_up_run import MLP, RES, WIDTH


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("dashboard") / "run")


@pytest.fixture(scope="module")
def api(run: Path) -> Iterator[TestClient]:
    with client(run) as client_:
        yield client_


@pytest.fixture(scope="module")
def schema(run: Path) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_asgi(
        "/api/openapi.json", create_app(Site(run, hosts=frozenset({"testserver"})))
    )


def ask_at_random(schema: schemathesis.BaseSchema, mode: GenerationMode, n: int) -> None:
    """Draws n requests for each address; answers are to be as the description says."""
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) >= 5
    for operation in operations:
        if mode == GenerationMode.NEGATIVE and not [*operation.query, *operation.path_parameters]:
            continue  # there is nothing to get wrong

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=n, deadline=None, suppress_health_check=list(HealthCheck))
        def check(case: schemathesis.Case) -> None:
            case.call_and_validate()

        check()


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_whatever_is_asked_is_answered_as_the_description_says(
    schema: schemathesis.BaseSchema, mode: GenerationMode
) -> None:
    ask_at_random(schema, mode, n=40)


def test_a_list_has_every_feature_once(api: TestClient) -> None:
    pages = [api.get("/api/features", params={"page": page}).json() for page in (1, 2)]
    ids = [feature["id"] for page in pages for feature in page["features"]]
    assert len(ids) == len(set(ids)) == pages[0]["n"] == 2 * WIDTH
    assert pages[0]["n_pages"] == 2
    worst = api.get("/api/features", params={"queue": "worst"}).json()["features"]
    assert worst[0]["score"] == min(feature["score"] for feature in worst)
    assert worst[0]["label"] is not None


def test_a_feature_has_neuronpedias_fields_with_our_values(api: TestClient, run: Path) -> None:
    found = api.get(f"/api/feature/{RES}/0", params={"n": 3}).json()
    with open_store(run) as store:
        page = read_feature_page(store.connection, find_feature(store.connection, f"{RES}/0"))
    assert (found["modelId"], found["layer"], found["index"]) == ("toy-gemma-2", "1-res-1k", "0")
    assert found["frac_nonzero"] == page.density
    assert found["maxActApprox"] == page.max_activation
    assert found["pos_str"] == [token.text for token in page.top_tokens_positive]
    assert len(found["freq_hist_data_bar_heights"]) == len(found["freq_hist_data_bar_values"]) > 0
    assert found["topkCosSimIndices"][:2] == [1, 4]
    assert len(found["activations"]) == 3
    for activation, context in zip(found["activations"], page.contexts, strict=False):
        assert activation["tokens"] == list(context.tokens)
        assert activation["values"] == list(context.activations)
        assert activation["values"][activation["maxValueTokenIndex"]] == activation["maxValue"]
    (explanation,) = found["explanations"]
    assert page.label is not None
    assert (explanation["id"], explanation["description"]) == (page.label.label_id, page.label.text)
    assert explanation["typeName"] == "token_lookup"
    names = {score["explanationScoreTypeName"] for score in explanation["scores"]}
    assert names == {"scopenote_simulation_correlation", "scopenote_simulation_ev_correlation"}


@pytest.mark.parametrize(
    ("path", "status", "word"),
    [
        (f"/api/feature/{RES}/40", 404, "to 39"),
        (f"/api/feature/{RES}/x", 404, "feature's id"),
        ("/api/feature/other-model/1-res-1k/1", 404, "There is no such SAE"),
        ("/api/features?queue=best", 422, "worst"),
        ("/api/features?min_score=nan", 422, "finite"),
        ("/api/features?nonsense=1", 422, "nonsense"),
        ("/api/features?page=0", 422, "page"),
        ("/api/none", 404, "Not Found"),
    ],
)
def test_a_mistake_is_answered_with_what_was_expected(
    api: TestClient, path: str, status: int, word: str
) -> None:
    answer = api.get(path)
    assert answer.status_code == status
    content = answer.json()
    assert word in " ".join(filter(None, content.values()))


@pytest.mark.parametrize(
    "path",
    [
        "/features?q=%27%3B+DROP+TABLE+labels%3B--",
        "/features?sae=%27%20OR%201%3D1",
        "/features?explainer=%00",
        "/features?q=" + "%F0%9F%98%80" * 50,
        "/..%2f..%2fetc%2fpasswd/a/b",
        "/static/..%2f..%2fsite.py",
        "/static/%2e%2e/site.py",
        "/static//etc/passwd",
        f"/api/feature/{MLP}/%27%20OR%201%3D1",
        f"/api/feature/{MLP}/..%2f..%2f..%2fetc%2fpasswd",
        f"/api/feature/{MLP}/%00",
        f"/api/feature/{MLP}/1%2B",
        f"/api/feature/{MLP}/٣",
        f"/api/feature/{MLP}/{'9' * 60}",
    ],
)
def test_no_parameter_reaches_a_file_or_the_database_as_more_than_a_value(
    api: TestClient, path: str
) -> None:
    answer = api.get(path)
    assert answer.status_code in (200, 404, 422), answer.text
    assert "root:" not in answer.text
    assert "class Site" not in answer.text
    assert api.get("/api/features").json()["n"] == 2 * WIDTH


def test_the_description_loads_nothing_and_lists_only_what_reads(api: TestClient) -> None:
    found = api.get("/api/openapi.json").json()
    assert {method for path in found["paths"].values() for method in path} == {"get"}
    assert all(path.startswith("/api/") for path in found["paths"])
    assert api.get("/docs").status_code == api.get("/redoc").status_code == 404


def test_the_overview_has_the_numbers_of_its_page(api: TestClient, run: Path) -> None:
    found = api.get("/api/overview").json()
    coverage = found["coverage"]
    labelled = sum(each["n"] for each in coverage["labelled"])
    assert (coverage["n_features"], labelled) == (2 * WIDTH, 2 * (WIDTH - 2))
    assert [sae["sae_id"] for sae in found["saes"]] == sorted([RES, MLP])
    assert {row["explainer"] for row in found["ladder"]} == {"token_lookup"}
    part = api.get("/api/overview", params={"site": "mlp"}).json()
    assert [sae["sae_id"] for sae in part["saes"]] == [MLP]
    assert part["coverage"]["n_features"] == WIDTH
    nothing = api.get("/api/overview", params={"site": "nowhere"}).json()
    assert (nothing["saes"], nothing["ladder"]) == ([], [])


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_of_many_requests_drawn_at_random_none_breaks_it(
    schema: schemathesis.BaseSchema, mode: GenerationMode
) -> None:
    ask_at_random(schema, mode, n=150)
