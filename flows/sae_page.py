"""`scopenote export --format html`: a page for each SAE, whole in itself, that can be mailed.

A page asks for nothing: its styles, its script and its data stand in it, and its own policy lets it
load nothing and run nothing else. What is known of the whole SAE is written as plain HTML; the
features lie in blocks of packed JSON, which `sae_page_files/*.js` unpacks as they are needed.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..store.errors import UserMistake
from ..store.export_choice import ChosenSae, read_chosen_saes
from ..store.export_page_contexts import TOKENS_AFTER, TOKENS_BEFORE, contexts_each
from ..store.export_page_facts import read_page_facts
from ..store.export_sae_pages import FEATURES_QUERY, PageFeature, feature_blocks
from ..store.overview import OverviewQuery, SaeHealth, read_overview
from ..store.score_spread import read_ladder
from ..store.unit_names import is_neuron_basis
from .corpus_words import corpus_in_words
from .dashboard.overview_charts import score_charts
from .dashboard.page_templates import make_environment
from .sae_page_data import feature_details, list_rows, pack

if TYPE_CHECKING:
    from jinja2 import Environment

    from .export_work import ExportWork

DETAILS_EACH = 512
"""Features whose details are unpacked together when one of them is opened."""

_FILES = Path(__file__).parent / "sae_page_files"
_SHARED = Path(__file__).parent / "dashboard" / "static"
_STYLES = (_SHARED / "style.css", _SHARED / "feature.css", _SHARED / "overview.css",
           _FILES / "page.css")  # fmt: skip
_SCRIPTS = (_SHARED / "keys.js", _SHARED / "token_walk.js", _FILES / "page_data.js",
            _FILES / "page_list.js", _FILES / "page_feature.js")  # fmt: skip
# Where the data stand in the page that the template makes.
_HERE = "<!-- data -->"


@dataclass(frozen=True, slots=True)
class _InPage:
    """What stands in every page, with the hashes by which its policy knows it."""

    style: str
    script: str

    @property
    def policy(self) -> str:
        """For a page with the script."""
        return self._policy(_hash(self.script))

    @property
    def still_policy(self) -> str:
        """For one without it."""
        return self._policy("none")

    def _policy(self, script: str) -> str:
        return (
            f"default-src 'none'; script-src '{script}'; style-src '{_hash(self.style)}'; "
            "connect-src 'none'; base-uri 'none'; form-action 'none'"
        )


@dataclass(frozen=True, slots=True)
class WrittenPage:
    """A page, its SAE, and how many of the SAE's features it has."""

    file: str
    sae: SaeHealth
    n_features: int
    n_labels: int


def write_pages(work: ExportWork) -> None:
    """A page for each chosen SAE, and an index of them where there are several.

    Raises:
        UserMistake: the run has no features yet.
    """
    saes = read_chosen_saes(work.connection)
    if not saes:
        raise UserMistake("There is no feature yet to make a page of.", found="an empty database")
    files = _file_names([sae.sae_id for sae in saes])
    with work.progress.stage("export pages", work.chosen.features, "features") as stage:
        pages = [_write_page(work, sae, files[sae.sae_id], stage.advance) for sae in saes]
    if len(pages) > 1:
        work.folder.add_text("index.html", _index(pages))


def _file_names(sae_ids: Sequence[str]) -> dict[str, str]:
    """A name for each page that every file system takes, no two alike in any case."""
    found: dict[str, str] = {}
    taken = {"index"}
    for sae_id in sae_ids:
        plain = re.sub(r"[^A-Za-z0-9.+-]+", "_", sae_id)[:150].strip(".") or "sae"
        name, n = plain, 1
        while name.lower() in taken:
            n += 1
            name = f"{plain}-{n}"
        taken.add(name.lower())
        found[sae_id] = f"{name}.html"
    return found


def _write_page(
    work: ExportWork, sae: ChosenSae, file: str, advance: Callable[[int], object]
) -> WrittenPage:
    connection, choice, sae_id = work.connection, work.choice, sae.sae_id
    overview = read_overview(connection, OverviewQuery(sae=sae_id))
    ladder = read_ladder(connection, [sae_id])
    n_contexts = contexts_each(connection, sae_id)
    facts = read_page_facts(connection, sae_id)
    page = WrittenPage(file, overview.saes[0], sae.n_features, sae.n_labels)
    above, below = _render(
        "sae_page.html",
        page=page,
        basis="neurons" if is_neuron_basis(sae_id) else "features",
        coverage=overview.coverage,
        charts=score_charts(overview.bars, ladder),
        ladder=ladder,
        facts=facts,
        corpus=corpus_in_words(facts.corpus),
        choice=choice,
        n_contexts=n_contexts,
        n_tokens=TOKENS_BEFORE + 1 + TOKENS_AFTER,
        here=_HERE,
    ).split(_HERE)
    with work.folder.new_file(file).open("w", encoding="utf-8", newline="\n") as handle:
        handle.write(above)
        for features in feature_blocks(connection, sae_id, n_contexts):
            handle.writelines(_blocks(features))
            advance(len(features))
        handle.write(below)
    work.folder.add(file, "features", sae.n_features, " ".join(FEATURES_QUERY.split()))
    return page


def _blocks(features: Sequence[PageFeature]) -> Iterator[str]:
    """Data as scripts of no kind that a browser runs."""
    yield f'<script type="text/plain" data-list>{pack(list_rows(features))}</script>\n'
    for first in range(0, len(features), DETAILS_EACH):
        some = features[first : first + DETAILS_EACH]
        packed = pack(feature_details(some))
        yield f'<script type="text/plain" data-details data-last="{some[-1].feature}">'
        yield f"{packed}</script>\n"


def _index(pages: Sequence[WrittenPage]) -> str:
    return _render("sae_index.html", pages=pages)


def _render(template: str, **content: Any) -> str:
    from .. import __version__

    found = _templates().get_template(template)
    return found.render(version=__version__, in_page=_in_page(), **content)


@lru_cache(maxsize=1)
def _templates() -> Environment:
    return make_environment(_FILES)


@lru_cache(maxsize=1)
def _in_page() -> _InPage:
    style, script = (
        "\n".join(file.read_text(encoding="utf-8") for file in files)
        for files in (_STYLES, _SCRIPTS)
    )
    return _InPage(style, script)


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
