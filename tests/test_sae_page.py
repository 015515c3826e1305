"""Pages that can be mailed: what is in them, how they are packed, and what they refuse to do."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scopenote.flows import sae_page
from scopenote.flows.sae_page import _file_names
from scopenote.flows.visible_text import visible
from scopenote.store import export_page_contexts, export_sae_pages
from scopenote.store.byte_pieces import join_bytes
from scopenote.store.current_features import refresh_current_features
from scopenote.store.database import open_store
from scopenote.store.errors import UserMistake
from scopenote.store.export_page_contexts import TOKENS_AFTER, TOKENS_BEFORE
from scopenote.store.facts import REVISION, set_meta
from scopenote.store.feature_contexts import ShownContext, read_contexts
from scopenote.store.feature_page import read_statistics
from scopenote.store.near_features import read_neighbours
from scopenote.store.records import FeatureId
from scopenote.store.run_folder import RunFolder

from .exported_pages import DATA, details_of, list_of, page_name, text_of
from .exported_runs import export
from .hostile_run import LABELS, NEURONS, make_hostile_run
from .made_up_run import FAILED, MLP, NEVER_ACTIVE, RES, UNDEFINED, WIDTH, make_database

pytestmark = pytest.mark.slow  # together they take seconds that the default run lacks

HEADLINE = ("score", "ci_low", "ci_high", "null_value", "lift")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_hostile_run(tmp_path_factory.mktemp("hostile") / "run")


@pytest.fixture(scope="module")
def pages(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(run, tmp_path_factory.mktemp("pages") / "pages", "html")


def changed_run(path: Path, *statements: str) -> RunFolder:
    """The made-up run after these changes."""
    folder = RunFolder(path).create()
    with make_database(folder.database) as connection:
        for statement in statements:
            connection.execute(statement)
        set_meta(connection, REVISION, "changed")
        refresh_current_features(connection, whole=True)
    return folder


def rows(run: RunFolder, query: str, *values: Any) -> list[tuple[Any, ...]]:
    with open_store(run.path) as store:
        return store.connection.execute(query, values).fetchall()


# What is in them.


def test_each_sae_has_a_page_and_an_index_leads_to_it(pages: Path) -> None:
    names = sorted(page_name(sae_id) for sae_id in (RES, MLP, NEURONS))
    index = (pages / "index.html").read_text()
    assert re.findall(r'href="([^"]+)"', index) == names
    manifest = json.loads((pages / "manifest.json").read_text())
    assert {each["file"]: each["rows"] for each in manifest["files"]} == {
        "index.html": None,
        page_name(RES): WIDTH,
        page_name(MLP): WIDTH,
        page_name(NEURONS): 4,
    }


def test_one_sae_alone_needs_no_index(run: RunFolder, tmp_path: Path) -> None:
    folder = export(run, tmp_path / "pages", "html", saes=(MLP,))
    assert sorted(file.name for file in folder.iterdir()) == ["manifest.json", page_name(MLP)]


def test_the_list_has_a_row_for_each_feature_as_it_stands(run: RunFolder, pages: Path) -> None:
    columns = ", ".join(HEADLINE)
    expected = [
        (feature, None if text is None else visible(text or "–"),
         *(None if value is None else round(value, 4) for value in values))
        for feature, text, *values in rows(
            run, f"SELECT feature, text, {columns} FROM current_features WHERE sae_id = ? "
            "ORDER BY feature", RES)
    ]  # fmt: skip
    names = ("feature", "text", "score", "low", "high", "null", "lift")
    assert [tuple(row[name] for name in names) for row in list_of(pages / page_name(RES))] == (
        expected
    )


def test_a_row_says_why_there_is_no_label_or_no_score(pages: Path) -> None:
    found = {row["feature"]: row for row in list_of(pages / page_name(MLP))}
    assert (found[FAILED]["text"], found[FAILED]["reason"]) == (None, "never active in explain")
    assert (found[UNDEFINED]["score"], found[UNDEFINED]["reason"]) == (
        None,
        "too few active tokens",
    )
    silent = found[NEVER_ACTIVE]
    assert (silent["text"], silent["reason"], silent["density"]) == (None, None, 0)


def cut_around_the_peak(context: ShownContext) -> str:
    """What should be shown of it, token by token."""
    tokens, activations = list(context.tokens), list(context.activations)
    peak = activations.index(max(activations))
    whole = [*context.prefix, *tokens]
    at = len(context.prefix) + peak
    first, last = max(0, at - TOKENS_BEFORE), at + TOKENS_AFTER + 1
    before = whole[first : len(context.prefix)] if first < len(context.prefix) else []
    shown = whole[max(first, len(context.prefix)) : last]
    joined = ["".join(join_bytes(some, [0.0] * len(some))[0]) for some in (before, shown)]
    return "│".join(map(visible, joined))


def test_contexts_are_those_of_explain_cut_around_the_peak(run: RunFolder, pages: Path) -> None:
    details = details_of(pages / page_name(RES))
    with open_store(run.path) as store:
        for feature in range(WIDTH):
            kept = read_contexts(store.connection, FeatureId(RES, feature), "explain", "top")
            found = details[feature]
            assert list(map(text_of, found["top"])) == [
                cut_around_the_peak(context) for context in kept.contexts[:5]
            ]
            assert found["kept"].get("top", 0) == len(kept.contexts)
            assert [max(values) for values in found["topValues"]] == [
                pytest.approx(context.peak, rel=0.005) for context in kept.contexts[:5]
            ]
            assert found["sample"] == []


def test_details_are_those_of_the_feature(run: RunFolder, pages: Path) -> None:
    details = details_of(pages / page_name(RES))
    with open_store(run.path) as store:
        for feature in (0, 3, NEVER_ACTIVE):
            feature_id, found = FeatureId(RES, feature), details[feature]
            statistics = read_statistics(store.connection, feature_id)
            assert found["n"] == statistics.n_active
            assert found["up"] == [visible(t.text) for t in statistics.top_tokens_positive]
            assert found["upValues"] == pytest.approx([0.51, 0.4])
            assert found["strong"] == [visible(t.text) for t in statistics.top_tokens]
            near = read_neighbours(store.connection, feature_id)
            assert found["near"] == [n.feature for n in near if n.kind == "cosine"][:5]
            assert found["together"] == [n.feature for n in near if n.kind == "cofiring"][:5]


def test_a_label_has_its_further_scores_and_votes(tmp_path: Path) -> None:
    run = changed_run(
        tmp_path / "run",
        f"INSERT INTO votes (label_id, author, vote) VALUES ('{RES}:3', 'ada', 1), "
        f"('{RES}:3', 'bob', 1), ('{RES}:3', 'eve', -1)",
        "INSERT INTO scores (label_id, scorer, simulator, metric, split, value, reason) VALUES "
        f"('{RES}:3', 'detection', 'judge', 'auroc_random', 'score', 0.75, NULL), "
        f"('{RES}:3', 'fuzzing', 'judge', 'auroc_random', 'score', NULL, 'no positives'), "
        f"('{RES}:3', 'fuzzing', 'judge', 'auroc_random', 'select', 0.5, NULL)",
        f"UPDATE scores SET stale_since = now() WHERE label_id = '{RES}:3' AND split = 'score'",
    )
    page = export(run, tmp_path / "pages", "html", saes=(RES,)) / page_name(RES)
    details = details_of(page)[3]
    (label,) = details["labels"]
    assert (label["up"], label["down"]) == (2, 1)
    shown = {details["scores"][number][0]: value for number, value, *_ in label["more"]}
    assert shown == {"detection, auroc random": 0.75, "fuzzing, auroc random": None}
    assert [row["marks"] for row in list_of(page) if row["feature"] in (2, 3)] == [0, 1]


def test_every_label_has_a_row_when_all_are_asked_for(tmp_path: Path) -> None:
    run = changed_run(
        tmp_path / "run",
        "INSERT INTO labels (label_id, sae_id, feature, text, explainer, source, author, status, "
        f"saw_score) VALUES ('mine', '{RES}', 3, 'by hand', 'hand', 'human', 'ada', 'done', true), "
        f"('gone', '{RES}', 4, 'taken back', 'hand', 'human', 'ada', 'withdrawn', NULL)",
    )
    page = export(run, tmp_path / "pages", "html", saes=(RES,), all_labels=True) / page_name(RES)
    found = [row for row in list_of(page) if row["feature"] in (3, 4)]
    assert [(row["feature"], row["hand"], row["marks"]) for row in found] == [
        (3, "a person, ada", 0),
        (3, "token_lookup", 2),
        (4, "token_lookup", 0),
        (4, "a person, ada", 6),
    ]
    first, second = details_of(page)[3]["labels"]
    assert first["saw"] and "saw" not in second
    assert "Every label that was proposed" in page.read_text()


def test_the_filters_of_an_export_hold(run: RunFolder, tmp_path: Path) -> None:
    folder = export(run, tmp_path / "pages", "html", saes=(RES,), min_score=0.6)
    found = list_of(folder / page_name(RES))
    query = "SELECT feature FROM current_features WHERE sae_id = ? AND score >= 0.6 ORDER BY 1"
    assert [(row["feature"],) for row in found] == rows(run, query, RES)
    assert 0 < len(found) < WIDTH
    text = (folder / page_name(RES)).read_text()
    assert f"Of the {WIDTH} features these {len(found)}: labels that score at least 0.60" in text


def test_a_run_without_labels_or_scores_says_so(tmp_path: Path) -> None:
    unscored = changed_run(tmp_path / "unscored", "DELETE FROM scores")
    page = export(unscored, tmp_path / "a", "html", saes=(RES,)) / page_name(RES)
    assert "No label has a score yet" in page.read_text()
    unlabelled = changed_run(tmp_path / "bare", "DELETE FROM scores", "DELETE FROM labels")
    page = export(unlabelled, tmp_path / "b", "html", saes=(RES,)) / page_name(RES)
    assert "No feature has a label yet" in page.read_text()
    assert {row["text"] for row in list_of(page)} == {None}
    assert len(details_of(page)) == WIDTH


def test_a_run_without_features_is_refused(tmp_path: Path) -> None:
    run = changed_run(tmp_path / "run", "DELETE FROM features", "DELETE FROM labels")
    with pytest.raises(UserMistake, match="no feature yet"):
        export(run, tmp_path / "pages", "html")
    assert not (tmp_path / "pages").exists()


def test_a_page_names_no_folder_of_the_machine(tmp_path: Path) -> None:
    config = json.dumps({"corpus": {"path": "/home/jdoe/private/texts.jsonl"}})
    run = changed_run(tmp_path / "run", f"UPDATE runs SET config = '{config}'")
    page = export(run, tmp_path / "pages", "html", saes=(RES,)) / page_name(RES)
    text = page.read_text()
    assert "files: texts.jsonl" in text
    assert "jdoe" not in text and str(tmp_path) not in text


def test_neurons_are_units_with_signs(pages: Path) -> None:
    text = (pages / page_name(NEURONS)).read_text()
    assert '<body data-basis="neurons"' in text
    assert "FVU" not in text.partition("<body")[2].partition("<script")[0]
    assert [row["feature"] for row in list_of(pages / page_name(NEURONS))] == [0, 1, 2, 3]


# How they are packed.


def test_the_same_state_gives_the_same_bytes(run: RunFolder, pages: Path, tmp_path: Path) -> None:
    again = export(run, tmp_path / "again", "html")
    both = [{file.name: file.read_bytes() for file in each.iterdir()} for each in (pages, again)]
    assert both[0] == both[1]


def test_blocks_of_any_size_say_the_same(
    run: RunFolder, pages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_sae_pages, "BLOCK_FEATURES", 7)
    monkeypatch.setattr(sae_page, "DETAILS_EACH", 3)
    folder = export(run, tmp_path / "pages", "html")
    found, whole = folder / page_name(RES), pages / page_name(RES)
    assert list_of(found) == list_of(whole)
    names = ("n", "peak", "labels", "top", "topValues", "near", "kept", "strong")
    assert [
        [details[name] for name in names] for details in details_of(found).values()
    ] == [[details[name] for name in names] for details in details_of(whole).values()]  # fmt: skip
    lasts = [int(last) for _, last, _ in re.findall(DATA, found.read_text()) if last]
    assert lasts == sorted(lasts) and lasts[-1] == WIDTH - 1
    assert len(lasts) == 5 * 3 + 2


def test_a_page_of_many_features_has_fewer_contexts_of_each(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_page_contexts, "PAGE_CONTEXTS", 2 * 3 * WIDTH)
    page = export(run, tmp_path / "some", "html", saes=(RES,)) / page_name(RES)
    assert {len(found["top"]) for found in details_of(page).values()} == {0, 3}
    monkeypatch.setattr(export_page_contexts, "PAGE_CONTEXTS", 0)
    page = export(run, tmp_path / "one", "html", saes=(RES,)) / page_name(RES)
    assert {len(found["top"]) for found in details_of(page).values()} == {0, 1}
    assert {found["kept"].get("top", 0) for found in details_of(page).values()} == {0, 12}


@given(st.sets(st.text(max_size=12), max_size=8))
def test_pages_have_names_that_any_file_system_tells_apart(sae_ids: set[str]) -> None:
    names = _file_names(sorted(sae_ids)).values()
    assert len({name.lower() for name in names}) == len(sae_ids)
    assert "index.html" not in names
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]*\.html", name), name


# What they refuse to do.


@pytest.mark.parametrize("sae_id", [RES, NEURONS])
def test_the_policy_lets_run_what_is_ours_and_nothing_else(pages: Path, sae_id: str) -> None:
    text = (pages / page_name(sae_id)).read_text(encoding="utf-8")
    policy = unescape(re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1])
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    for kind, content in (("script", script), ("style", style)):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy


def test_no_text_of_a_run_is_anything_but_text_or_packed(pages: Path) -> None:
    for file in pages.glob("*.html"):
        text = file.read_text(encoding="utf-8")
        rest = re.sub(DATA, "", text)
        assert rest.count("<script") == rest.count("</script") == (file.name != "index.html")
        # Nothing that would be asked for.
        assert not re.search(r"""\b(?:src|srcset|action)=|url\(|@import|<link|<base""", rest)
        assert set(re.findall(r"https?://[^\s\"']+", rest)) <= {"http://www.w3.org/2000/svg"}


def test_hostile_labels_come_as_visible_text(pages: Path) -> None:
    found = {row["feature"]: row["text"] for row in list_of(pages / page_name(RES))}
    assert {feature: found[feature] for feature in LABELS} == {
        feature: visible(text) if text else "–" for feature, text in LABELS.items()
    }
    assert all(text.isprintable() for text in found.values() if text is not None)


def test_hostile_names_and_reasons_stand_as_text(tmp_path: Path) -> None:
    evil = "</script><img src=x onerror=alert(1)>\u202e"
    run = changed_run(
        tmp_path / "run",
        *(f"UPDATE {table} SET sae_id = '{evil}' WHERE sae_id = '{RES}'" for table in
          ("saes", "features", "labels", "feature_splits", "contexts", "neighbours")),
        f"UPDATE labels SET reason = '{evil}' WHERE status = 'failed'",
        f"UPDATE scores SET reason = '{evil}' WHERE value IS NULL",
    )  # fmt: skip
    folder = export(run, tmp_path / "pages", "html", saes=(evil,))
    (page,) = folder.glob("*.html")
    rest = re.sub(DATA, "", page.read_text(encoding="utf-8"))
    assert "<img" not in rest and "\u202e" not in rest
    assert "&lt;/script&gt;&lt;img" in rest
    assert rest.count("</script>") == 1
