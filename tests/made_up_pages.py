"""A made-up run as a dashboard serves it: with a model's label, its call, and its simulations."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import duckdb
from fastapi.testclient import TestClient
from scopenote.flows.dashboard.app import create_app
from scopenote.flows.dashboard.site import Site
from scopenote.store.calls import absorb_journals
from scopenote.store.database import open_work, publish
from scopenote.store.facts import set_meta
from scopenote.store.journal import Journal
from scopenote.store.records import Call

from .made_up_calls import make_call
from .made_up_run import RES, make_database

FEATURE = 3
PATH = f"/{RES}/{FEATURE}"
IN_FORCE, RIVAL = "in-force-by-model", f"{RES}:{FEATURE}"
JUDGE = "chat/m"
HOSTILE = "<script>alert(1)</script>{{ 7 * 7 }}\u202eevil\x1b[31m"
SCORED_WINDOW, FAILED_WINDOW = 2, 5
_AT = datetime(2026, 11, 21, 6, 0, tzinfo=UTC)


def publish_made_up(folder: Path) -> Call:
    """Publishes the run; feature 3 has a label by a model, with all that comes of one.

    Returns:
        The call that the label was made of.
    """
    make_database(folder / "work.duckdb").close()
    call = make_call(7, reply={"text": HOSTILE, "finish_reason": "stop"})
    (folder / "journal").mkdir()
    with Journal(folder / "journal") as journal:
        journal.append(call)
    with open_work(folder) as work:
        absorb_journals(work, folder / "journal")
        _add_model_label(work, call)
        _add_score_contexts(work)
        set_meta(work, "revision", "with a model")
        publish(work, folder)
    return call


def _add_model_label(work: duckdb.DuckDBPyConnection, call: Call) -> None:
    label = {
        "label_id": IN_FORCE,
        "sae_id": RES,
        "feature": FEATURE,
        "text": HOSTILE,
        "explanation": "one line\nanother",
        "explainer": "highlighted",
        "prompt_version": "v3",
        "model": "gpt-4o-mini",
        "request_hash": call.request_hash,
        "draw": 1,
        "source": "auto",
        "status": "done",
        "created_at": _AT,
        "run_id": "r2",
        "generation": 2,
        "why": "its contexts changed",
        "n_dropped_contexts": 4,
    }
    _insert(work, "labels", label)
    _insert(
        work,
        "label_history",
        {
            "run_id": "r1", "sae_id": RES, "feature": FEATURE, "label_id": RIVAL,
            "simulator": "token_lookup", "score": 0.41, "recorded_at": _AT,
        },
    )  # fmt: skip
    for scorer, metric, split, value, more in (
        ("simulation", "correlation", "score", 0.625, {"ci_low": 0.5, "ci_high": 0.7,
         "null_value": 0.25, "lift": 0.375, "lift_ci_low": 0.3, "lift_ci_high": 0.4}),
        ("simulation", "correlation", "select", 0.875, {}),
        ("simulation", "correlation_quarter_1", "score", 0.125, {}),
        ("simulation", "correlation_quarter_2", "score", None, {"reason": "too few"}),
        ("shuffled_label", "correlation", "score", 0.03, {}),
        ("detection", "auroc_random", "score", 0.75, {"stale_since": _AT}),
        ("fuzzing", "auroc_random", "score", None, {"reason": "no positives left"}),
    ):  # fmt: skip
        row = {"label_id": IN_FORCE, "scorer": scorer, "simulator": JUDGE, "metric": metric}
        row |= {"split": split, "value": value, "n_windows": 60, "n_tokens": 3840}
        _insert(work, "scores", {**row, **more})
    predicted = [9.0 if place == 12 else 0.0 for place in range(64)]
    for window, values, reason in (
        (SCORED_WINDOW, predicted, None), (FAILED_WINDOW, None, "no ratings came"),
    ):  # fmt: skip
        row = {"label_id": IN_FORCE, "simulator": JUDGE, "window_id": window, "predicted": values}
        status = "done" if reason is None else "failed"
        _insert(work, "simulations", {**row, "status": status, "reason": reason})


def _add_score_contexts(work: duckdb.DuckDBPyConnection) -> None:
    for rank, (window, peak) in enumerate(((SCORED_WINDOW, 20.0), (FAILED_WINDOW, 4.0)), start=1):
        row = {"sae_id": RES, "feature": FEATURE, "split": "score", "kind": "sample"}
        row |= {"rank": rank, "window_id": window, "max_activation": peak, "weight": 3.5}
        _insert(work, "contexts", {**row, "positions": [12, 13], "activations": [peak, 1.0]})


def _insert(work: duckdb.DuckDBPyConnection, table: str, row: dict[str, Any]) -> None:
    names = ", ".join(row)
    places = ", ".join(f"${name}" for name in row)
    work.execute(f"INSERT INTO {table} ({names}) VALUES ({places})", row)


class Browser:
    """Asks a dashboard, and sends its forms; keeps cookies."""

    def __init__(self, run: Path, **site: Any) -> None:
        self.site = Site(run, **site)
        self.client = TestClient(create_app(self.site), base_url="http://localhost")

    def get(self, path: str = PATH, **more: Any) -> Any:
        return self.client.get(path, **more)

    def send(self, action: str, path: str = PATH, secret: str | None = None, **fields: str) -> Any:
        """Sends a form, and does not follow where it leads."""
        form = {"secret": self.site.form_secret if secret is None else secret, **fields}
        kind = {"content-type": "application/x-www-form-urlencoded"}
        base, _, query = path.partition("?")
        address = f"{base}/{action}" + (f"?{query}" if query else "")
        return self.client.post(
            address, content=urlencode(form), headers=kind, follow_redirects=False
        )


def written_labels(run: Path) -> list[dict[str, Any]]:
    """What lies in the inbox, the oldest first."""
    files = sorted((run / "inbox").glob("*.json"))
    return [row for file in files for row in json.loads(file.read_text())["labels"]]
