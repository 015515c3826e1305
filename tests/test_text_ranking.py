"""Labels ranked by words: beside a slow twin, and on what people and strangers type."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scopenote.store.current_features import refresh_current_features
from scopenote.store.database import Store, open_store, open_work, publish
from scopenote.store.facts import set_meta
from scopenote.store.feature_list import FeatureQuery
from scopenote.store.inbox import write_to_inbox
from scopenote.store.label_words import TEXT_WEIGHT
from scopenote.store.schema import MIGRATIONS
from scopenote.store.search_hits import search_labels
from scopenote.store.text_ranking import K1, B, TextMatch, text_ranking
from scopenote.store.word_stems import STOP_WORDS, stem

from .searched_runs import HIGH, LOW, Said, fill, make_searched_run
from .test_inbox import a_label

pytestmark = pytest.mark.slow  # together they take seconds that the default run lacks

SAID = [
    Said(0, "expressions of doubt", "hedges such as perhaps", score=0.4),
    Said(1, "doubt", "doubting and doubts", score=0.2),
    Said(2, "French city names", "Paris, Lyon; no doubt about it", score=0.9),
    Said(3, "import statements in Python", "the word import", score=0.5),
    Said(4, "important points", None, score=None),
    Said(5, "==", "comparison operators == and !=", score=0.3),
    Said(6, None),
    Said(7, "naïve Bayes", "café", sae=HIGH, score=0.7),
    Said(8, "expressions of doubt in law", "legal hedging", sae=HIGH, score=0.6, density=0.2),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    run = make_searched_run(tmp_path_factory.mktemp("searched") / "run", SAID)
    with open_store(run.path) as store:
        yield store


def features(store: Store, text: str) -> list[int]:
    return [row[0] for row in store.search(text).project("feature").fetchall()]


def words_of(text: str | None) -> list[str]:
    plain = unicodedata.normalize("NFD", (text or "").lower())
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    return [stem(word) for word in re.findall(r"[^\W_]+", plain)]


def slow_bm25(said: list[Said], query: str) -> dict[int, float]:
    """BM25 with two fields, as the book has it, label by label."""
    documents = {}
    for each in said:
        if each.text is not None:
            counted = Counter({word: 0 for word in ()})
            for word in words_of(each.text):
                counted[word] += TEXT_WEIGHT
            for word in words_of(each.explanation):
                counted[word] += 1
            documents[each.feature] = counted
    mean_length = sum(sum(document.values()) for document in documents.values()) / len(documents)
    found: dict[int, float] = {}
    for word in dict.fromkeys(words_of(query)):
        n_with = sum(word in document for document in documents.values())
        weight = math.log(1 + (len(documents) - n_with + 0.5) / (n_with + 0.5))
        for feature, document in documents.items():
            if n := document[word]:
                norm = K1 * (1 - B + B * sum(document.values()) / mean_length)
                found[feature] = found.get(feature, 0) + weight * n * (K1 + 1) / (n + norm)
    return found


@pytest.mark.parametrize("query", ["doubt", "doubts express", "import names", "names legal doubt"])
def test_relevance_is_that_of_bm25_computed_label_by_label(store: Store, query: str) -> None:
    rows = store.search(query).project("feature, relevance").fetchall()
    expected = slow_bm25(SAID, query)
    assert {feature: pytest.approx(value) for feature, value in rows} == expected
    assert [value for _, value in rows] == sorted((value for _, value in rows), reverse=True)


WORDS = st.sampled_from(["doubt", "doubts", "law", "laws", "city", "names", "naming", "x1"])
TEXTS = st.lists(WORDS, min_size=1, max_size=6).map(" ".join)


@settings(max_examples=25)
@given(st.lists(st.tuples(TEXTS, TEXTS | st.none()), min_size=1, max_size=6), TEXTS)
def test_it_is_so_for_any_labels(texts: list[tuple[str, str | None]], query: str) -> None:
    said = [Said(number, text, why) for number, (text, why) in enumerate(texts)]
    with duckdb.connect() as connection:
        for migration in MIGRATIONS:
            connection.execute(migration.sql)
        fill(connection, said)
        refresh_current_features(connection)
        ranking = text_ranking(connection, query)
        rows = connection.execute(ranking.sql, dict(ranking.parameters)).fetchall()
    expected = slow_bm25(said, query)
    assert ranking.match is (TextMatch.WORDS if expected else TextMatch.CHARACTERS)
    if expected:
        assert dict(rows) == {place: pytest.approx(value) for place, value in expected.items()}


def test_words_are_found_in_any_order_and_however_they_end(store: Store) -> None:
    assert features(store, "doubt expressions")[:2] == features(store, "EXPRESSION doubting")[:2]
    assert set(features(store, "expressing doubts")) >= {0, 1, 8}


def test_a_word_of_the_label_counts_more_than_one_of_its_explanation(store: Store) -> None:
    found = features(store, "doubt")
    assert found[0] == 1
    assert found[-1] == 2


def test_other_words_that_begin_alike_are_not_found(store: Store) -> None:
    assert features(store, "import") == [3]
    assert features(store, "important") == [4]


def test_accents_and_case_make_no_difference(store: Store) -> None:
    assert features(store, "NAIVE") == features(store, "naïve") == [7]
    assert features(store, "cafe") == [7]


def test_characters_are_looked_for_where_there_are_no_words(store: Store) -> None:
    assert features(store, "==") == [5]
    assert features(store, "!=") == [5]
    assert features(store, "§") == []


def test_a_part_of_a_word_is_found_where_no_label_has_the_word(store: Store) -> None:
    assert features(store, "mportan") == [4]


def test_words_that_say_nothing_are_left_out_unless_there_are_no_others(store: Store) -> None:
    assert features(store, "doubt of the") == features(store, "doubt")
    assert set(features(store, "of the")) >= {0, 8}
    assert {"of", "the"} <= STOP_WORDS


@pytest.mark.parametrize(
    "query",
    [
        "'; DROP TABLE labels; --",
        '" OR 1=1',
        "$word_0",
        "%",
        "\\",
        "\x00",
        "\ud7ff",
        "日本",
        "a" * 9999,
    ],
)
def test_strange_queries_find_nothing_and_do_no_harm(store: Store, query: str) -> None:
    assert set(features(store, query)) <= {0, 3, 4, 7}
    assert len(features(store, "doubt")) == 4


def test_of_equal_relevance_the_higher_score_comes_first(tmp_path: Path) -> None:
    said = [Said(0, "names"), Said(1, "names", score=0.2), Said(2, "names", score=0.8)]
    run = make_searched_run(tmp_path / "run", said)
    with open_store(run.path) as store:
        assert features(store, "names") == [2, 1, 0]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (FeatureQuery(sae=HIGH), {8}),
        (FeatureQuery(site="res"), {0, 1, 2}),
        (FeatureQuery(layer=3), {8}),
        (FeatureQuery(min_score=0.4), {0, 2, 8}),
        (FeatureQuery(max_density=0.1), {0, 1, 2}),
        (FeatureQuery(min_density=0.1), {8}),
        (FeatureQuery(min_score=0.95), set()),
    ],
)
def test_filters_leave_out_features_and_change_no_rank(
    store: Store, filters: FeatureQuery, expected: set[int]
) -> None:
    with store.cursor() as cursor:
        everything = search_labels(cursor, "doubt", FeatureQuery())
        found = search_labels(cursor, "doubt", filters)
        places = dict(cursor.execute("SELECT place, feature FROM current_features").fetchall())
    order = [hit.place for hit in everything.hits]
    assert {places[hit.place] for hit in found.hits} == expected
    assert [hit.place for hit in found.hits] == [
        place for place in order if places[place] in expected
    ]
    assert found.n_text == len(expected)


def test_a_label_by_hand_is_found_before_any_run_has_absorbed_it(tmp_path: Path) -> None:
    said = [Said(3, "expressions of doubt"), Said(4, "names")]
    run = make_searched_run(tmp_path / "run", said)
    write_to_inbox(run.inbox, [a_label("zebra crossings")])
    with open_store(run.path) as store:
        assert features(store, "zebras") == [3]
        assert features(store, "doubt") == []
        assert features(store, "names") == [4]


def test_words_follow_the_labels_of_a_run_in_the_making(tmp_path: Path) -> None:
    run = make_searched_run(tmp_path / "run", SAID)
    with open_work(run.path) as work:
        work.execute("UPDATE labels SET text = 'zebras' WHERE feature = 1")
        set_meta(work, "revision", "another")
        publish(work, run.path)
    with open_store(run.path) as store:
        assert features(store, "zebra") == [1]
        assert set(features(store, "doubt")) == {0, 1, 2, 8}  # 1: its explanation


def test_a_database_published_before_words_were_kept_gets_them_when_it_is_published_again(
    tmp_path: Path,
) -> None:
    run = make_searched_run(tmp_path / "run", SAID)
    with open_work(run.path) as work:
        work.execute("DROP TABLE label_words")
        number = next(
            number
            for number, migration in enumerate(MIGRATIONS)
            if "CREATE TABLE label_words" in migration.sql
        )
        set_meta(work, "schema_version", str(number))
    with open_work(run.path) as work:
        publish(work, run.path)
    with open_store(run.path) as store:
        assert features(store, "expression") == [0, 8]


def test_an_older_database_is_searched_by_characters(tmp_path: Path) -> None:
    run = make_searched_run(tmp_path / "run", SAID)
    with duckdb.connect(str(run.database)) as database:
        database.execute("DROP TABLE label_words")
    with open_store(run.path) as store:
        assert features(store, "oubt") == [2, 8, 0, 1]


def test_the_first_sae_is_the_one_that_the_rows_say(store: Store) -> None:
    rows = store.search("city").project("sae_id, feature, text, score").fetchall()
    assert rows == [(LOW, 2, "French city names", 0.9)]
