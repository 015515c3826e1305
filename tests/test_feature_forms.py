"""Labels and votes from a feature's page: what is taken, refused, and remembered."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from .dashboards import make_run
from .made_up_pages import IN_FORCE, PATH, RIVAL, Browser, publish_made_up, written_labels
from .made_up_run import RES
from .test_feature_view import text_of


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made-up")
    publish_made_up(folder)
    return folder


@pytest.fixture
def run(made_up: Path, tmp_path: Path) -> Path:
    shutil.copytree(made_up, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def browser(run: Path) -> Browser:
    return Browser(run, author="grace")


def test_a_label_that_is_written_is_in_force_at_once(run: Path, browser: Browser) -> None:
    answer = browser.send("label", text=" mine \n now", explanation="seen it", author="ada")
    assert (answer.status_code, answer.headers["location"]) == (303, f"{PATH}#label")
    (label,) = written_labels(run)
    assert (label["text"], label["explanation"], label["author"]) == ("mine now", "seen it", "ada")
    assert label["saw_score"] is False
    shown = text_of(browser.get().text)
    assert "mine now" in shown and "by a person, ada" in shown
    assert "written after seeing" not in shown


def test_a_label_written_after_seeing_score_says_so(run: Path, browser: Browser) -> None:
    browser.get(f"{PATH}?split=score")
    browser.send("label", text="mine", author="ada")
    (label,) = written_labels(run)
    assert label["saw_score"] is True
    assert "written after seeing score contexts" in text_of(browser.get().text)


def test_a_browser_without_cookies_says_by_the_form_what_was_seen(
    run: Path, browser: Browser
) -> None:
    assert 'name="saw_score" value="1"' in browser.get(f"{PATH}?split=score").text
    browser.client.cookies.clear()
    browser.send("label", text="mine", author="ada", saw_score="1")
    assert written_labels(run)[0]["saw_score"] is True


def test_seeing_score_of_one_feature_says_nothing_of_another(run: Path, browser: Browser) -> None:
    browser.get(f"{PATH}?split=score")
    browser.send("label", path=f"/{RES}/4", text="mine", author="ada")
    assert written_labels(run)[0]["saw_score"] is False


def test_the_name_is_remembered_whatever_its_letters(run: Path, browser: Browser) -> None:
    assert 'value="grace"' in browser.get().text
    browser.send("label", text="mine", author='Añ; 日本="x"')
    cookie = next(each for each in browser.client.cookies.jar if each.name == "author")
    assert cookie.has_nonstandard_attr("HttpOnly") and cookie.expires is not None
    browser.send("label", text="again")
    assert [each["author"] for each in written_labels(run)] == ['Añ; 日本="x"'] * 2


def test_where_others_can_ask_nobody_is_taken_for_the_login_name(run: Path) -> None:
    browser = Browser(run, token="t")
    browser.client.headers["authorization"] = "Bearer t"
    assert "your name" in browser.get().text
    answer = browser.send("vote", label_id=IN_FORCE, vote="1")
    assert answer.status_code == 422
    assert "Say who you are." in text_of(answer.text)
    assert browser.send("vote", label_id=IN_FORCE, vote="1", author="ada").status_code == 303


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"text": ""}, "The label shows nothing."),
        ({"text": "\u200b"}, "The label shows nothing."),
        ({"text": "x" * 201}, "The label is too long."),
        ({"text": "x", "explanation": "y" * 2001}, "The explanation is too long."),
        ({"text": "x", "author": "z" * 101}, "The author is too long."),
        ({}, "The label shows nothing."),
    ],
)
def test_a_mistake_comes_back_with_what_was_typed(
    run: Path, browser: Browser, fields: dict[str, str], words: str
) -> None:
    answer = browser.send("label", **{"author": "ada", **fields})
    assert answer.status_code == 422
    assert words in text_of(answer.text)
    assert f'value="{fields.get("text", "")}"' in answer.text
    assert fields.get("explanation", "") in answer.text
    assert written_labels(run) == []


def test_a_form_without_the_secret_is_refused(run: Path, browser: Browser) -> None:
    for secret in ("", "guessed", "é"):
        answer = browser.send("label", secret=secret, text="mine", author="ada")
        assert answer.status_code == 403
    assert written_labels(run) == []


def test_what_is_no_form_is_refused(browser: Browser) -> None:
    for body in (b"\xff\xfe", b"{}", b"", b"&".join([b"a=1"] * 50)):
        answer = browser.client.post(f"{PATH}/label", content=body)
        assert answer.status_code in (400, 403)


def test_where_one_may_only_read_nothing_is_written(run: Path) -> None:
    browser = Browser(run, is_read_only=True)
    assert browser.send("label", text="mine", author="ada").status_code == 403
    assert written_labels(run) == []


def test_a_form_leads_back_to_the_contexts_it_stood_beside(browser: Browser) -> None:
    answer = browser.send("vote", f"{PATH}?split=select&kind=sample", label_id=RIVAL, vote="1")
    assert answer.headers["location"] == f"{PATH}?split=select&kind=sample#labels"
    assert browser.send("vote", f"{PATH}?split=//evil", label_id=RIVAL, vote="1").status_code == 422


def test_a_vote_counts_at_once_and_can_be_taken_back(browser: Browser) -> None:
    browser.send("vote", label_id=IN_FORCE, vote="-1")
    pressed = '<button name="vote" value="0" aria-pressed="true" title="Take your vote against'
    assert pressed in browser.get().text
    assert "votes against this label: 1" in text_of(browser.get().text)
    browser.send("vote", label_id=IN_FORCE, vote="0")
    assert pressed not in browser.get().text


@pytest.mark.parametrize(
    ("label_id", "vote"), [("", "1"), (f"{RES}:4", "1"), (IN_FORCE, "2"), (IN_FORCE, "' OR 1")]
)
def test_a_vote_on_nothing_is_refused(browser: Browser, label_id: str, vote: str) -> None:
    answer = browser.send("vote", label_id=label_id, vote=vote)
    assert answer.status_code == 422
    assert "not a vote on a label of this feature" in text_of(answer.text)


def test_own_labels_can_be_taken_back_and_others_cannot(run: Path, browser: Browser) -> None:
    browser.send("label", text="mine", author="ada")
    assert "withdraw" in text_of(browser.get().text)
    assert browser.send("withdraw").status_code == 303
    shown = text_of(browser.get().text)
    assert "withdrawn by its author" in shown
    assert "by highlighted, gpt-4o-mini" in shown
    answer = browser.send("withdraw")
    assert answer.status_code == 422
    assert "no label of yours to take back" in text_of(answer.text)


def test_forms_for_features_there_are_not_are_a_404(browser: Browser) -> None:
    assert browser.send("label", path=f"/{RES}/4000", text="mine").status_code == 404


def test_a_neuron_s_page_is_at_its_name_and_sign(tmp_path: Path) -> None:
    neurons = "toy-gemma-2/1-mlp-neurons"
    tables = ("saes", "features", "feature_splits", "neighbours", "contexts", "labels")
    run = make_run(
        tmp_path / "run",
        *(f"UPDATE {table} SET sae_id = '{neurons}' WHERE sae_id = '{RES}'" for table in tables),
        "UPDATE meta SET value = 'neurons' WHERE key = 'revision'",
    )
    browser = Browser(run)
    path = f"/{neurons}/1+"
    page = browser.get(path).text
    assert f'data-key="j" href="/{neurons}/1-"' in page
    opened = browser.get(f"{path}?split=score")
    assert f"Path={path};" in opened.headers["set-cookie"]
    assert browser.send("label", path, text="mine", author="ada").status_code == 303
    assert [(each["feature"], each["saw_score"]) for each in written_labels(run)] == [(2, True)]
    assert browser.get(f"/{neurons}/1").status_code == 404
