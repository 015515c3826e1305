"""The templates of pages and the words that they know; of the server they know nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from ...store.records import FeatureId
from ...store.unit_names import unit_name
from ..progress import duration
from ..show_feature import figure, interval, percentage
from ..visible_text import visible

TEMPLATES = Path(__file__).parent / "templates"


def make_environment(*folders: Path) -> Environment:
    """Where templates are found, in these folders and among the dashboard's, and what they know."""
    environment = Environment(
        loader=FileSystemLoader([*folders, TEMPLATES]),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        figure=figure,
        share=percentage,
        visible=visible,
        moment=moment,
        count=lambda n: "–" if n is None else f"{n:,}",
        feature_path=feature_path,
        duration=duration,
        short=short,
    )
    environment.globals.update(interval=interval, with_query=with_query)
    return environment


def moment(when: datetime | None) -> str:
    """A time, to the minute, in UTC: who reads may sit anywhere."""
    return "–" if when is None else f"{when.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def short(value: float | None) -> str:
    """A number of any size with three digits that count."""
    if value is None:
        return "–"
    if value == 0 or 0.001 <= abs(value) < 10_000:
        digits = 0 if abs(value) >= 1000 else max(0, 2 - math.floor(math.log10(abs(value) or 1)))
        return f"{value:,.{min(digits, 4)}f}".replace("-", "−")
    return f"{value:.2g}".replace("-", "−")


def feature_path(feature_id: FeatureId) -> str:
    """The address of a feature's page: its id, as Neuronpedia's is."""
    name = unit_name(feature_id.sae_id, feature_id.feature)
    return "/" + quote(f"{feature_id.sae_id}/{name}", safe="/+")


def with_query(path: str, query: Mapping[str, Any]) -> str:
    """An address with these parameters, those without a value left out."""
    given = {
        # A limit of 0 is a value, though it equals False.
        name: value
        for name, value in query.items()
        if value is not None and value is not False and value != ""
    }
    return f"{path}?{urlencode(given)}" if given else path
