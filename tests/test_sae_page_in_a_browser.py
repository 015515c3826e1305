"""An exported page in a real browser, from disk: found, sorted, opened, and asked for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from scopenote.flows.visible_text import visible
from scopenote.store.current_features import refresh_current_features
from scopenote.store.database import open_store
from scopenote.store.facts import REVISION, set_meta
from scopenote.store.feature_list import FeatureQuery, Order, read_feature_list
from scopenote.store.run_folder import RunFolder

from .browsing import NARROW, WIDE, Watched, a_browser, watched
from .exported_pages import list_of, page_name
from .exported_runs import export
from .hostile_run import LABELS, NEURONS, make_hostile_run
from .made_up_population import make_population
from .made_up_run import FAILED, NEVER_ACTIVE, RES, UNDEFINED, WIDTH, make_database

pytestmark = pytest.mark.slow

PAGE = f"/{page_name(RES)}"
EVIL = {
    0: '<script>window.taken = 1</script><img src=x onerror="window.taken=1">',
    1: "</script><script>window.taken = 1</script>",
    2: '"></a><svg onload=window.taken=1>',
    3: "{{ 7 * 7 }} ${window.taken = 1} javascript:window.taken=1",
    4: "\u202eright to left\u202c \u2066isolate\u2069 \u200bzero\u200d \x00 \x1b[31m",
    9: "giant" * 400,
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with a_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_hostile_run(tmp_path_factory.mktemp("hostile") / "run")


@pytest.fixture(scope="module")
def home(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"file://{export(run, tmp_path_factory.mktemp('pages') / 'pages', 'html')}"


def opened(view: Watched, path: str = PAGE) -> Page:
    """The page when its list is there; of one that was open before, all is forgotten."""
    view.page.goto("about:blank")
    page = view.open(path)
    page.wait_for_selector("body[data-ready]")
    return page


def features(page: Page) -> list[str]:
    return page.locator("#rows th").all_inner_texts()


def find(page: Page, place: str, words: str, found: str) -> list[str]:
    """Fills a field of the filters and waits until the list says that it has so many."""
    page.fill(place, words)
    expect(page.locator("#found")).to_have_text(found)
    return features(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_pages_are_accessible_and_fit_the_window(
    browser: Browser, home: str, size: tuple[int, int], scheme: str
) -> None:
    with watched(browser, home, size, scheme) as view:
        view.open("/index.html")
        view.assert_fit_for_all("index")
        for name in ("", "#0", "#3", f"#{NEVER_ACTIVE}", f"#{FAILED}", "#99"):
            page = opened(view, PAGE + name)
            for summary in page.locator("summary").all():
                summary.click()
            view.assert_fit_for_all(name)


def test_nothing_is_asked_for_but_the_file(browser: Browser, home: str) -> None:
    asked = []
    with watched(browser, home) as view:
        view.page.on("request", lambda request: asked.append(request.url))
        page = opened(view, f"{PAGE}#3")
        page.click("#feature .near a >> nth=0")
        page.click("#feature a[rel=next]")
        assert asked == [f"{home}{PAGE}"]


@pytest.mark.parametrize("words", ["import", "IMPORT class", "日本", "nowhere", "returns import"])
def test_words_find_what_the_dashboard_finds(
    browser: Browser, home: str, run: RunFolder, words: str
) -> None:
    with open_store(run.path) as store:
        found = read_feature_list(store.connection, FeatureQuery(text=words, sae=RES))
    with watched(browser, home) as view:
        page = opened(view)
        names = find(page, "#find", words, f"{found.n} of {WIDTH}" if found.n < WIDTH else "40")
        assert names == [row.name for row in found.rows]
        assert page.is_visible("#none") == (found.n == 0)


def test_columns_sort_both_ways_with_what_has_no_value_last(
    browser: Browser, home: str, run: RunFolder
) -> None:
    # Rounded as it is on the page: there equals stand in the order of features.
    rows = {str(row["feature"]): row for row in list_of(Path(home.removeprefix("file://") + PAGE))}
    with watched(browser, home) as view:
        page = opened(view)
        for name, order in (("score", Order.SCORE), ("density", Order.DENSITY)):
            head = page.locator(f"th[data-sort={name}]")
            for is_reversed in (False, True):
                head.locator("button").click()
                query = FeatureQuery(sae=RES, order=order, reverse=is_reversed)
                with open_store(run.path) as store:
                    expected = [row.name for row in read_feature_list(store.connection, query).rows]
                assert [rows[each][name] for each in features(page)] == [
                    rows[each][name] for each in expected
                ]
                direction = "ascending" if is_reversed else "descending"
                assert head.get_attribute("aria-sort") == direction
        assert page.locator("th[aria-sort]").count() == 1


def test_scores_and_hands_are_filtered_by(browser: Browser, home: str, run: RunFolder) -> None:
    with open_store(run.path) as store:
        query = FeatureQuery(sae=RES, min_score=0.3, max_score=0.6)
        between = read_feature_list(store.connection, query)
    with watched(browser, home) as view:
        page = opened(view)
        page.fill("#least", "0.3")
        names = find(page, "#most", "0.6", f"{between.n} of {WIDTH}")
        assert names == [row.name for row in between.rows]
        page.fill("#least", "")
        page.fill("#most", "")
        page.select_option("#by", "nobody")
        expect(page.locator("#found")).to_have_text(f"2 of {WIDTH}")
        assert features(page) == [str(NEVER_ACTIVE), str(FAILED)]
        assert "no label: never active in explain" in page.inner_text("#rows")


def test_a_feature_opens_with_what_is_known_of_it(browser: Browser, home: str) -> None:
    with watched(browser, home) as view:
        page = opened(view)
        page.click('#rows a:text-is("3")')
        expect(page.locator("#feature h1")).to_contain_text("import")
        assert page.url.endswith("#3")
        assert page.locator("#feature .windows li").count() == 5
        assert "5 of 12 contexts" in page.inner_text(".contexts")
        strong, weak = (
            page.locator(f".windows .k.{shade}").first.evaluate(
                "each => getComputedStyle(each).backgroundColor"
            )
            for shade in ("a10", "a1")
        )
        assert len({strong, weak, "rgba(0, 0, 0, 0)"}) == 3
        for words in ("null", "lift", "density", "promoted", "suppressed", "by co-firing"):
            assert words in page.inner_text("#feature")
        link = page.locator("#feature .near a").first
        name = link.inner_text()
        link.click()
        expect(page.locator("#feature .id")).to_have_text(f"{RES}/{name}")
        page.go_back()
        expect(page.locator("#feature .id")).to_have_text(f"{RES}/3")
        page.go_back()
        expect(page.locator("#whole")).to_be_visible()
        assert page.evaluate("document.activeElement.textContent") == "3"


def test_a_feature_has_an_address_also_a_neuron(browser: Browser, home: str) -> None:
    with watched(browser, home) as view:
        page = opened(view, f"{PAGE}#{UNDEFINED}")
        assert "undefined: too few active tokens" in page.inner_text("#feature")
        page = opened(view, f"/{page_name(NEURONS)}#1-")
        assert page.inner_text("#feature .id") == f"{NEURONS}/1-"
        page.keyboard.press("k")
        expect(page.locator("#feature .id")).to_have_text(f"{NEURONS}/1+")
        page = opened(view, f"{PAGE}#{WIDTH}")
        assert page.inner_text("h1:visible") == f"There is no feature {WIDTH} on this page."


def test_keys_go_on_search_and_walk_the_tokens(browser: Browser, home: str) -> None:
    with watched(browser, home) as view:
        page = opened(view, f"{PAGE}#3")
        page.focus(".windows .text")
        page.keyboard.press("ArrowRight")
        assert page.inner_text("#token-values").startswith("“")
        page.keyboard.press("j")
        expect(page.locator("#feature .id")).to_have_text(f"{RES}/4")
        page.keyboard.press("/")
        expect(page.locator("#find")).to_be_focused()
        page.keyboard.type("import")
        expect(page.locator("#found")).to_contain_text(f"of {WIDTH}")
        assert page.url.endswith("#features")


def test_next_is_the_next_in_the_list_as_it_is_sorted(browser: Browser, home: str) -> None:
    with watched(browser, home) as view:
        page = opened(view)
        page.click("th[data-sort=density] button")
        order = features(page)
        page.click("#rows a >> nth=4")
        expect(page.locator("#feature .id")).to_have_text(f"{RES}/{order[4]}")
        page.keyboard.press("j")
        expect(page.locator("#feature .id")).to_have_text(f"{RES}/{order[5]}")


def test_hostile_text_is_shown_as_text(browser: Browser, home: str, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run").create()
    with make_database(run.database) as connection:
        for feature, text in EVIL.items():
            connection.execute(
                "UPDATE labels SET text = $1, explanation = 'x' || $1, explainer = $1 "
                "WHERE sae_id = $2 AND feature = $3",
                [text, RES, feature],
            )
            connection.execute("UPDATE pieces SET text = $1 WHERE token_id = $2", [text, feature])
        connection.execute(
            "UPDATE features SET top_tokens = $1, top_token_means = $2",
            [list(EVIL.values()), [1.0] * len(EVIL)],
        )
        set_meta(connection, REVISION, "evil")
        refresh_current_features(connection, whole=True)
    evil = f"file://{export(run, tmp_path / 'pages', 'html')}"
    for address, texts in ((evil, EVIL), (home, LABELS)):
        with watched(browser, address) as view:
            for feature, text in texts.items():
                page = opened(view, f"{PAGE}#{feature}")
                assert page.locator("#feature h1").text_content() == visible(text or "–")
            page = opened(view, f"{PAGE}#features")
            for feature, text in texts.items():
                cell = page.locator(f'#rows tr:has(th a[href="#{feature}"]) td.label')
                assert cell.text_content() == visible(text or "–")
            assert page.evaluate("window.taken") is None
            assert page.locator("img").count() == 0


def test_many_features_are_paged(browser: Browser, tmp_path: Path) -> None:
    make_population(tmp_path / "run", 250, width=250, contexts_each=6)
    folder = export(RunFolder(tmp_path / "run"), tmp_path / "pages", "html")
    (file,) = folder.glob("*.html")
    with watched(browser, f"file://{folder}") as view:
        page = opened(view, f"/{file.name}")
        assert features(page) == [str(number) for number in range(100)]
        assert page.is_disabled("#previous")
        page.click("#next")
        page.click("#next")
        assert features(page) == [str(number) for number in range(200, 250)]
        assert page.inner_text("#page") == "page 3 of 3"
        assert page.is_disabled("#next")
        assert find(page, "#least", "2", "0 of 250") == []


def test_a_browser_that_cannot_unpack_is_told_so(browser: Browser, home: str) -> None:
    with watched(browser, home) as view:
        view.page.add_init_script("delete window.DecompressionStream")
        page = view.open(PAGE)
        assert "too old to unpack the list" in page.inner_text("#state")
        assert "How far it is labelled" in page.inner_text("#about")


def test_without_javascript_the_facts_are_there(browser: Browser, home: str) -> None:
    page = browser.new_page(java_script_enabled=False)
    page.goto(home + PAGE)
    assert "needs JavaScript" in page.inner_text("noscript")
    assert "median" in page.inner_text("#about")
    assert not page.is_visible("#list")
    page.close()


def test_a_damaged_file_says_so(browser: Browser, home: str, tmp_path: Path) -> None:
    whole = Path(home.removeprefix("file://") + PAGE).read_text()
    for kind, words in (("data-list", "The list cannot be unpacked"), ("data-details", "3 cannot")):
        start = whole.index(f'<script type="text/plain" {kind}') + 100
        (tmp_path / "page.html").write_text(whole[:start] + "AAAA" + whole[start + 4 :])
        with watched(browser, f"file://{tmp_path}") as view:
            page = view.open("/page.html#3")
            expect(page.locator("body")).to_contain_text(f"{words}")
            expect(page.locator("body")).to_contain_text("this file is damaged")
            view.page.goto("about:blank")
