"""`scopenote search` as it is typed, with an endpoint that makes vectors and without."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest
from scopenote.flows import embed_labels
from scopenote.flows.cli import main
from scopenote.label import sentence_model
from scopenote.store.database import open_work, publish
from scopenote.store.label_vectors import write_vectors
from scopenote.store.run_folder import RunFolder

from .fake_embeddings import DIMENSIONS, FakeEmbeddings, embeds, vector_of, vectors_answer
from .fake_openai import Answer, Asked, error, running
from .searched_runs import HIGH, LOW, Said, make_searched_run
from .test_openai_client import KEY

pytestmark = pytest.mark.slow  # together they take seconds that the default run lacks

HOSTILE = "doubt\x1b[31m [red]evil[/red]\u202e"
SAID = [
    Said(0, "expressions of doubt", "hedges such as perhaps", score=0.4),
    Said(1, "sceptical remarks", "hesitation", score=0.2),
    Said(2, "French city names", "Paris", score=0.9),
    Said(3, "Expressions of doubt", sae=HIGH, score=0.7, density=0.3),
    Said(4, "import statements", score=0.5),
    Said(5, "expressions of doubt in law", score=0.3),
    Said(6, HOSTILE, score=0.1),
    Said(7, None),
]
NEAR = ((0, 5, 0.9),)
PRICES = """
as_of = "2026-11"
[models.tiny]
input = 0.5
cached_input = 0.5
output = 0
batch_share = 1
"""

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    # Whether the extra is installed must make no difference.
    monkeypatch.setattr(sentence_model, "packaged_folder", lambda: None)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["scopenote", "search", *map(str, words)])
        with pytest.raises(SystemExit) as ending:
            main()
        output = capsys.readouterr()
        return ending.value.code, output.out, output.err

    return run


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_searched_run(tmp_path / "run", SAID, NEAR)


@pytest.fixture
def endpoint() -> Iterator[FakeEmbeddings]:
    with running(FakeEmbeddings(embeds)) as fake:
        yield fake


def configured(folder: Path, fake: FakeEmbeddings, more: str = "") -> RunFolder:
    prices = folder / "prices.toml"
    prices.write_text(PRICES)
    section = f'[search]\nmodel = "tiny"\nbase_url = "{fake.base_url}"\nprices = "{prices}"\n{more}'
    return make_searched_run(folder / "run", SAID, NEAR, section)


def rows(run: RunFolder, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(run.database), read_only=True) as database:
        return database.execute(query).fetchall()


def found(command: Command, run: RunFolder, *words: str) -> dict[str, Any]:
    status, out, err = command(run.path, *words, "--json")
    assert status == 0, err
    return json.loads(out)


def first_of(report: dict[str, Any]) -> list[str]:
    return [family[0]["text"] for family in report["families"]]


def test_families_are_shown_with_score_density_and_who_else_is_in_them(
    command: Command, run: RunFolder
) -> None:
    status, out, _ = command(run.path, "expressions of doubt")
    assert status == 0
    assert "the first" not in out and "2 meanings, by text" in out
    assert "0.70" in out and "0.60 to 0.80" in out and "30% of tokens" in out
    assert f"and 2 nearly the same: {LOW}/0, {LOW}/5" in " ".join(out.split())
    assert "4 of 7 labels with a word of it" in out
    assert "By text alone" in out and "`search`" in out


def test_flat_shows_each_feature_by_itself(command: Command, run: RunFolder) -> None:
    grouped = found(command, run, "expressions of doubt")
    flat = found(command, run, "expressions of doubt", "--flat")
    assert [len(family) for family in grouped["families"]] == [3, 1]
    assert [family[0]["id"] for family in flat["families"]] == [
        f"{HIGH}/3", f"{LOW}/0", f"{LOW}/5", f"{LOW}/6"
    ]  # fmt: skip


def test_json_says_why_each_was_found(command: Command, run: RunFolder) -> None:
    report = found(command, run, "city", "--n", "1")
    ((feature,),) = report["families"]
    assert feature["id"] == f"{LOW}/2"
    assert (feature["score"], feature["ci_low"], feature["density"]) == (0.9, 0.8, 0.01)
    assert (feature["text_rank"], feature["meaning_rank"], feature["cosine"]) == (1, None, None)
    assert (report["match"], report["n_text"], report["n_chosen"]) == ("words", 1, 7)
    assert report["model"] is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--sae", HIGH), {3}),
        (("--layer", "1"), {0, 5, 6}),
        (("--site", "mlp"), {3}),
        (("--min-score", "0.35"), {0, 3}),
        (("--min-density", "0.1"), {3}),
        (("--max-density", "0.1"), {0, 5, 6}),
    ],
)
def test_filters_are_those_that_were_typed(
    command: Command, run: RunFolder, words: tuple[str, ...], expected: set[int]
) -> None:
    report = found(command, run, "doubt", "--flat", *words)
    assert {family[0]["feature"] for family in report["families"]} == expected


def test_hostile_labels_are_shown_harmless(command: Command, run: RunFolder) -> None:
    _, out, _ = command(run.path, "evil")
    assert "␛[31m [red]evil[/red]⟨202E⟩" in out
    assert "\x1b" not in out and "\u202e" not in out
    _, out, _ = command(run.path, HOSTILE)
    assert "\x1b" not in out


@pytest.mark.parametrize("columns", ["80", "120"])
def test_no_line_is_longer_than_the_terminal(
    command: Command, run: RunFolder, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    _, out, _ = command(run.path, "expressions of doubt names")
    assert max(len(line.rstrip()) for line in out.splitlines()) <= int(columns)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "nothing to search for"),
        (("",), "nothing to search for"),
        (("  ",), "nothing to search for"),
        (("doubt", "--sae", "toy-gemma-2/9-res-1k"), "no such SAE"),
        (("doubt", "--layer", "7"), "no such SAE"),
        (("doubt", "--site", "res", "--layer", "3"), "no such SAE"),
        (("doubt", "--n", "0"), "--n"),
        (("--embed",), "no model of embeddings"),
    ],
)
def test_mistakes_are_answered_as_such(
    command: Command, run: RunFolder, words: tuple[str, ...], said: str
) -> None:
    status, out, err = command(run.path, *words)
    assert (status, out) == (2, "")
    assert said in err and "Traceback" not in err


def test_a_run_without_labels_has_nothing_to_search(command: Command, tmp_path: Path) -> None:
    run = make_searched_run(tmp_path / "run", [Said(0, None)])
    status, _, err = command(run.path, "doubt")
    assert status == 2
    assert "no labels to search yet" in err and "explain" in err


def test_where_nothing_is_found_that_is_said(command: Command, run: RunFolder) -> None:
    status, out, _ = command(run.path, "zebra")
    assert status == 0
    assert "Nothing found for zebra" in out and "0 of 7 labels that contain it" in out


def test_a_database_alone_is_searched(command: Command, run: RunFolder, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    run.database.rename(alone / run.database.name)
    status, out, _ = command(alone, "city")
    assert status == 0 and "French city names" in out


# --- meaning -----------------------------------------------------------------------------------


def test_a_synonym_is_found_by_meaning_and_not_by_text(
    command: Command, tmp_path: Path, endpoint: FakeEmbeddings
) -> None:
    run = configured(tmp_path, endpoint)
    before = found(command, run, "hesitation city", "--sae", LOW, "--flat")
    assert before["why_text_alone"] and "`--embed` makes them" in before["why_text_alone"]
    assert endpoint.n_asked == 0

    report = found(command, run, "--embed", "hesitation", "--flat")
    assert report["model"] == "tiny"
    assert set(first_of(report)[:5]) == {
        "sceptical remarks", "expressions of doubt", "Expressions of doubt", HOSTILE,
        "expressions of doubt in law",
    }  # fmt: skip
    by_text = found(command, run, "hesitation", "--flat", "--text-only")
    assert first_of(by_text) == ["sceptical remarks"]
    assert by_text["model"] is None and "--text-only" in by_text["why_text_alone"]


def test_vectors_are_made_once_and_their_calls_are_on_the_record(
    command: Command, tmp_path: Path, endpoint: FakeEmbeddings
) -> None:
    run = configured(tmp_path, endpoint)
    status, out, err = command(run.path, "--embed")
    assert (status, out) == (0, "")
    assert "embed: 7 labels" in err and "vectors by tiny" in err
    stored = rows(run, "SELECT label_id, vector FROM embeddings WHERE model = 'tiny' ORDER BY ALL")
    assert len(stored) == 7
    said = {each.label_id: each for each in SAID}
    for label_id, vector in stored:
        each = said[label_id]
        expected = vector_of(f"{each.text}\n{each.explanation or ''}")
        assert vector == pytest.approx(expected / sum(expected**2) ** 0.5, abs=1e-6)
    ((purpose, usd, tokens, request, reply),) = rows(
        run, "SELECT purpose, usd, prompt_tokens, request, reply FROM calls"
    )
    assert (purpose, usd, tokens) == ("embed", Decimal("0.0035"), 7000)
    assert len(json.loads(request)["input"]) == 7
    assert json.loads(reply) == {"model": "tiny-1", "vectors": 7, "of": DIMENSIONS}
    assert KEY not in request

    status, _, err = command(run.path, "--embed")
    assert status == 0 and "nothing to do, 7 labels already there" in err
    assert endpoint.n_asked == 1


def test_what_a_killed_process_left_in_parts_is_not_asked_again(
    command: Command, tmp_path: Path, endpoint: FakeEmbeddings
) -> None:
    run = configured(tmp_path, endpoint)
    left = {each.label_id: vector_of(each.text or "") for each in SAID[:3]}
    write_vectors(run.parts, "tiny", left)
    status, _, err = command(run.path, "--embed")
    assert status == 0 and "embed: 4 labels" in err
    assert len(endpoint.asked[0].body["input"]) == 4
    assert rows(run, "SELECT count(DISTINCT label_id), count(*) FROM embeddings") == [(7, 7)]
    assert not list(run.parts.iterdir())


def test_only_labels_that_are_new_in_force_get_vectors_later(
    command: Command, tmp_path: Path, endpoint: FakeEmbeddings
) -> None:
    run = configured(tmp_path, endpoint)
    command(run.path, "--embed")
    with open_work(run.path) as work:
        work.execute("UPDATE labels SET label_id = 'new', text = 'zebra module' WHERE feature = 4")
        work.execute("UPDATE meta SET value = 'later' WHERE key = 'revision'")
        publish(work, run.path)
    _, out, _ = command(run.path, "zebra")
    assert "zebra module" in out
    assert "1 label has no vector yet" in out and "--embed" in out
    status, _, err = command(run.path, "--embed")
    assert status == 0 and "embed: 1 labels" in err
    assert endpoint.asked[-1].body["input"] == ["zebra module"]


def test_the_call_for_a_query_is_recorded_and_absorbed_later(
    command: Command, tmp_path: Path, endpoint: FakeEmbeddings
) -> None:
    run = configured(tmp_path, endpoint)
    command(run.path, "--embed")
    found(command, run, "hesitation")
    (journal,) = run.journal.iterdir()
    assert b"hesitation" in journal.read_bytes()
    command(run.path, "--embed")
    counted = rows(run, "SELECT count(*), sum(usd) FROM calls WHERE purpose = 'embed'")
    assert counted == [(2, Decimal("0.004"))]
    assert not list(run.journal.iterdir())


def answering(answer: Callable[[Asked], Answer], command: Command, tmp_path: Path) -> dict:
    """What a search says whose query the endpoint answers so, after it made labels' vectors."""
    asked_before: list[Asked] = []

    def script(asked: Asked) -> Answer:
        asked_before.append(asked)
        return embeds(asked) if len(asked_before) == 1 else answer(asked)

    with running(FakeEmbeddings(script)) as fake:
        run = configured(tmp_path, fake)
        assert command(run.path, "--embed")[0] == 0
        return found(command, run, "doubt", "--flat")


def test_where_the_endpoint_fails_text_ranks_alone_and_that_is_said_and_stored(
    command: Command, tmp_path: Path
) -> None:
    report = answering(lambda _: error(400, "out of order"), command, tmp_path)
    assert report["model"] is None
    assert "out of order" in report["why_text_alone"]
    assert set(first_of(report)) == {
        each.text for each in SAID if "doubt" in (each.text or "").lower()
    }
    (journal,) = (tmp_path / "run" / "journal").iterdir()
    assert "bad_request" in journal.read_text()


def test_a_vector_of_another_dimension_is_not_compared(command: Command, tmp_path: Path) -> None:
    def longer(asked: Asked) -> Answer:
        return vectors_answer([vector_of("one two")[:2]])

    report = answering(longer, command, tmp_path)
    assert report["model"] is None
    assert "2 numbers" in report["why_text_alone"] and f"{DIMENSIONS}" in report["why_text_alone"]
    assert len(report["families"]) == 4


def test_labels_that_the_endpoint_refuses_are_counted_and_the_others_kept(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed_labels, "_IN_PART", 2)

    def script(asked: Asked) -> Answer:
        refused = "French city names\nParis" in asked.body["input"]
        return error(400, "this one not") if refused else embeds(asked)

    with running(FakeEmbeddings(script)) as fake:
        run = configured(tmp_path, fake)
        status, _, err = command(run.path, "--embed")
    assert status == 4  # two of seven are more than the alert for failures allows
    assert "2 failed: bad_request" in err
    assert rows(run, "SELECT count(*) FROM embeddings") == [(5,)]
    assert rows(run, "SELECT count(error), count(reply) FROM calls") == [(1, 3)]


def test_what_was_made_before_an_endpoint_gives_no_more_credit_is_kept(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed_labels, "_IN_PART", 2)
    script = [embeds, embeds, lambda _: error(429, "pay", code="insufficient_quota")]

    def answer(asked: Asked) -> Answer:
        return script[min(fake.n_asked, len(script)) - 1](asked)

    with running(FakeEmbeddings(answer)) as fake:
        run = configured(tmp_path, fake)
        status, _, err = command(run.path, "--embed")
        assert status == 2
        assert "no more credit" in err and "Traceback" not in err
        assert rows(run, "SELECT count(*) FROM embeddings") == [(4,)]
        script[2] = embeds
        status, _, err = command(run.path, "--embed")
    assert status == 0 and "embed: 3 labels" in err
    assert rows(run, "SELECT count(DISTINCT label_id), count(*) FROM embeddings") == [(7, 7)]


def test_a_model_that_makes_other_vectors_than_before_is_refused(
    command: Command, tmp_path: Path
) -> None:
    shorter = lambda asked: vectors_answer([vector_of(t)[:2] for t in asked.body["input"]])  # noqa: E731
    answers = [embeds, shorter]
    with running(FakeEmbeddings(lambda asked: answers[0](asked))) as fake:
        run = configured(tmp_path, fake)
        command(run.path, "--embed")
        with open_work(run.path) as work:
            work.execute("UPDATE labels SET label_id = 'new' WHERE feature = 4")
            work.execute("UPDATE meta SET value = 'later' WHERE key = 'revision'")
            publish(work, run.path)
        del answers[0]
        status, _, err = command(run.path, "--embed")
    assert status == 2
    assert "another kind" in err and "2 numbers" in err
    assert rows(run, "SELECT DISTINCT len(vector) FROM embeddings") == [(DIMENSIONS,)]


def test_a_budget_holds_for_vectors_too(
    command: Command, tmp_path: Path, endpoint: FakeEmbeddings
) -> None:
    run = configured(tmp_path, endpoint, "[budget]\nusd = 0.00001\n")
    status, _, err = command(run.path, "--embed")
    assert status == 4  # nothing at all could be done
    assert "may spend is spent" in err
    assert endpoint.n_asked == 0


def test_the_lock_of_a_run_at_work_is_respected(
    command: Command, tmp_path: Path, endpoint: FakeEmbeddings
) -> None:
    run = configured(tmp_path, endpoint)
    with run.lock("scopenote run"):
        status, _, err = command(run.path, "--embed")
        assert status == 1 and "Another process is working" in err
        assert found(command, run, "city")["n_text"] == 1
