"""Neurons are named with a sign wherever a feature is named, and found by that name."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scopenote.flows.show_feature import render_feature
from scopenote.store.database import Store
from scopenote.store.errors import UserMistake
from scopenote.store.feature_page import find_feature, read_feature_page
from scopenote.store.records import FeatureId
from scopenote.store.status import read_extremes
from scopenote.store.unit_names import (
    is_neuron_basis,
    split_basis_name,
    unit_name,
    unit_number,
)

from .made_up_run import MLP, RES, make_database

NEURONS = "toy-gemma-2/1-mlp-neurons"


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    """A run with an SAE, and the other's rows given to the neurons 0 to 19."""
    with make_database() as connection:
        for table in ("saes", "features", "neighbours", "contexts", "labels", "background"):
            connection.execute(f"UPDATE {table} SET sae_id = ? WHERE sae_id = ?", [NEURONS, MLP])
        yield connection


# --- both ways ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("feature", "name"), [(0, "0+"), (1, "0-"), (2786, "1393+"), (2787, "1393-")]
)
def test_a_neuron_is_two_units_one_for_each_sign(feature: int, name: str) -> None:
    assert unit_name("gemma-2-2b/20-mlp-neurons", feature) == name
    assert unit_number("gemma-2-2b/20-mlp-neurons", name) == feature
    assert str(FeatureId("gemma-2-2b/20-mlp-neurons", feature)).endswith(f"20-mlp-neurons/{name}")


@given(
    feature=st.integers(0, 10**7), sae_id=st.sampled_from([NEURONS, RES, "my model/0-mlp-neurons"])
)
def test_every_name_leads_back_to_its_number(feature: int, sae_id: str) -> None:
    assert unit_number(sae_id, unit_name(sae_id, feature)) == feature


@pytest.mark.parametrize("name", ["", "7", "+7", "7 +", "7+-", "x+", "²+", "-7+", "7.0+"])
def test_what_is_not_a_neuron_with_its_sign_is_no_unit(name: str) -> None:
    assert unit_number(NEURONS, name) is None


@pytest.mark.parametrize("name", ["", "7+", "7-", "-7", "²", "x"])
def test_a_feature_of_an_sae_has_no_sign(name: str) -> None:
    assert unit_number(RES, name) is None


@pytest.mark.parametrize(
    ("written", "named"),
    [
        ("20-mlp-neurons", (None, 20)),
        ("gemma-2-2b/0-mlp-neurons", ("gemma-2-2b", 0)),
        ("20-mlp-neuron", None),
        ("020-mlp-neurons", None),
        ("20-res-neurons", None),
        ("./20-mlp-neurons", None),
        ("/data/20-mlp-neurons", None),
        ("~/20-mlp-neurons", None),
        ("a/b/20-mlp-neurons", None),
        ("20-mlp-neurons/params.npz", None),
    ],
)
def test_a_basis_is_named_by_its_layer_and_perhaps_its_model(
    written: str, named: tuple[str | None, int] | None
) -> None:
    assert split_basis_name(written) == named


def test_a_basis_is_told_by_its_id_whatever_its_model_is_called() -> None:
    assert is_neuron_basis(NEURONS) and is_neuron_basis(".odd model~/3-mlp-neurons")
    assert not is_neuron_basis(MLP) and not is_neuron_basis("3-mlp-neurons/1-res-1k")


# --- where people type and read them ------------------------------------------------------


@pytest.mark.parametrize("written", [f"{NEURONS}/3-", "1-mlp-neurons/3-", "3-"])
def test_a_neuron_is_found_by_its_name(connection: duckdb.DuckDBPyConnection, written: str) -> None:
    assert find_feature(connection, written) == FeatureId(NEURONS, 7)


def test_a_bare_number_means_the_sae_s_feature_where_there_are_neurons_beside_it(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    assert find_feature(connection, "7") == FeatureId(RES, 7)


@pytest.mark.parametrize(
    ("written", "mend"),
    [
        ("1-mlp-neurons/3", f"write `{NEURONS}/3+` or `{NEURONS}/3-`"),
        ("1-mlp-neurons/20+", f"the nearest is `{NEURONS}/19-`"),
        ("2-mlp-neurons/3-", f"the nearest is `{NEURONS}/3-`"),
        ("2-mlp-neurons/30+", f"the nearest is `{NEURONS}/19-`"),
        ("1-mlp-neurons/x", f"for example `{NEURONS}/0+`"),
        ("1-res-1k/3+", f"for example `{RES}/0`"),
    ],
)
def test_a_near_miss_is_answered_with_what_can_be_typed(
    connection: duckdb.DuckDBPyConnection, written: str, mend: str
) -> None:
    with pytest.raises(UserMistake) as caught:
        find_feature(connection, written)
    assert caught.value.mend == mend
    assert f"{NEURONS}/0+ to 19-" in (caught.value.expected or "")


def test_the_page_of_a_neuron_names_it_and_those_near_it_with_signs(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    page = read_feature_page(connection, FeatureId(NEURONS, 0))
    assert [each.name for each in page.neighbours[:2]] == ["0-", "2+"]
    stream = io.StringIO()
    Console(file=stream, width=100, color_system=None).print(render_feature(page))
    lines = stream.getvalue().splitlines()
    assert lines[0].strip() == f"{NEURONS}/0+"
    (heading,) = [n for n, line in enumerate(lines) if "by direction" in line]
    assert lines[heading + 1].split()[0] == "0-"
    content = json.loads(json.dumps(page.as_dict(), default=str))
    assert content["feature_id"] == f"{NEURONS}/0+"
    assert (content["neighbours"][0]["feature"], content["neighbours"][0]["name"]) == (1, "0-")


def test_the_best_labels_are_listed_by_names_that_can_be_typed(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    extremes = read_extremes(connection, n=40)
    listed = [label.feature for label in (*extremes.best, *extremes.worst)]
    of_neurons = [name for name in listed if name.startswith(NEURONS)]
    assert of_neurons and all(name[-1] in "+-" for name in of_neurons)
    assert all(str(find_feature(connection, name)) == name for name in listed)


def test_contexts_are_asked_for_by_name_or_by_number(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    store = Store(connection)
    by_name = store.contexts(NEURONS, "0+").fetchall()
    assert by_name and by_name == store.contexts(NEURONS, 0).fetchall()
    with pytest.raises(UserMistake, match="not a feature's name"):
        store.contexts(NEURONS, "0")
