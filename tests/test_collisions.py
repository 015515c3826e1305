"""How often two features have one label, by keys, beside the comparison of all pairs."""

from __future__ import annotations

import random
from itertools import combinations

import duckdb
import pytest
from scopenote.store.collisions import exact_key, near_key, read_collisions, say_the_same
from scopenote.store.schema import MIGRATIONS

from .made_up_neighbours import OTHER, SAE, add_label


def database() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    for migration in MIGRATIONS:
        connection.execute(migration.sql)
    return connection


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Names of cities", "names of  CITIES"),
        ("the names of cities in France", "City names (France)"),
        ("boxes, classes and dishes", "dish; box & class"),
        ("“ import”, “ class”", "“ class”, “import”"),
        ("ends of sentences", "the end of a sentence."),
        ("verbs such as “said”", "verbs such as said"),
    ],
)
def test_order_number_small_words_and_punctuation_are_of_no_account(one: str, other: str) -> None:
    assert say_the_same(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("words before a comma", "words after a comma"),
        ("the word not", "the word"),
        ("“(”, “ import”", "“)”, “ import”"),
        ("“(”", "“)”"),
        ("“not”, “in”, “be”", "“not”, “with”"),
        ("“self”", "“for”, “self”"),
        ("“.”", "“`.”"),
        ("“.”", '“"""”'),
        ("“city”", "“cities”"),
        ("the verb is", "the verb was"),
        ("news", "newts"),
        ("bus", "bu"),
        ("the plan", "the plane"),
        ("a", "the"),
        ("os.path", "os path name"),
        ("日本", "日"),
    ],
)
def test_labels_that_differ_in_what_they_say_do_not_collide(one: str, other: str) -> None:
    assert not say_the_same(one, other)


def test_a_label_of_small_words_and_signs_alone_is_only_ever_identical() -> None:
    assert near_key("The  of!") == exact_key("the of!") == "the of!"
    assert say_the_same("…", " … ")
    assert not say_the_same("…", "!")


def compare_all_pairs(labels: dict[int, str]) -> tuple[int, int]:
    """Features with another that says exactly, or nearly, the same."""
    exact: set[int] = set()
    near: set[int] = set()
    for (one, text), (other, also) in combinations(labels.items(), 2):
        if " ".join(text.casefold().split()) == " ".join(also.casefold().split()):
            exact |= {one, other}
        if say_the_same(text, also):
            near |= {one, other}
    return len(exact), len(near)


@pytest.mark.parametrize("seed", range(5))
def test_counts_are_those_of_the_comparison_of_all_pairs(seed: int) -> None:
    draw = random.Random(seed)
    words = ["city", "cities", "the", "of", "Names", "names", "rivers"]
    labels = {
        feature: draw.choice([" ", "  "]).join(draw.choices(words, k=draw.randrange(1, 4)))
        for feature in range(60)
    }
    connection = database()
    for feature, text in labels.items():
        add_label(connection, feature, text)
    (row,) = read_collisions(connection)
    assert (row.n_identical, row.n_near_identical) == compare_all_pairs(labels)
    assert 0 < row.n_identical < row.n_near_identical <= row.n_labels == 60
    assert row.identical_rate == row.n_identical / 60
    assert row.near_identical_rate == row.n_near_identical / 60


def test_each_sae_and_explainer_has_a_row_of_its_labels_in_force_alone() -> None:
    connection = database()
    add_label(connection, 1, "lions", select=0.1)
    add_label(connection, 1, "tigers", select=0.9)
    add_label(connection, 2, "lions")
    add_label(connection, 3, None)
    add_label(connection, 4, "lions", explainer="token_lookup")
    add_label(connection, 5, "LIONS", explainer="token_lookup")
    add_label(connection, 1, "lions", sae_id=OTHER)
    found = {
        (row.sae_id, row.explainer): (row.n_labels, row.n_identical, row.n_near_identical)
        for row in read_collisions(connection)
    }
    assert found == {
        (SAE, "highlighted"): (2, 0, 0),
        (SAE, "token_lookup"): (2, 2, 2),
        (OTHER, "highlighted"): (1, 0, 0),
    }


def test_the_largest_groups_are_the_examples() -> None:
    connection = database()
    for feature in range(8):
        add_label(connection, feature, "city names" if feature % 2 else "names of cities")
    for number, size in enumerate((3, 2, 2, 2)):
        for feature in range(size):
            add_label(connection, 100 + 10 * number + feature, f"group {number}")
    (row,) = read_collisions(connection)
    assert [each.n_features for each in row.examples] == [8, 3, 2]
    assert row.examples[0].features == (0, 1, 2, 3, 4)
    assert row.examples[0].texts == ("names of cities", "city names")
    assert row.n_near_identical == 17
    assert read_collisions(database()) == ()
