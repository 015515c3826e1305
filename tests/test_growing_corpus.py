"""A corpus that grows: what was collected stays, new text extends it, and labels follow."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import pytest

from .pipeline_runs import docstrings, run, write_configuration

pytestmark = pytest.mark.long

QUERY = """
    SELECT (SELECT sum(n_tokens) FROM chunks),
        (SELECT list(n_documents ORDER BY chunk) FROM chunks),
        (SELECT sum(n_active) FROM features), (SELECT count(*) FROM windows WHERE is_background),
        (SELECT list(n_windows ORDER BY split) FROM (SELECT DISTINCT split, n_windows
            FROM feature_splits))
"""


def corpus(folder: Path, n: int) -> None:
    texts = [text for text, _ in zip(docstrings(), range(n), strict=False)]
    (folder / "corpus.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))


def read(folder: Path, query: str) -> list[tuple[object, ...]]:
    with duckdb.connect(str(folder / "scopenote.duckdb"), read_only=True) as connection:
        return connection.execute(query).fetchall()


@pytest.mark.usefixtures("prefect_server")
def test_new_text_extends_what_was_collected_and_only_that_is_read(tmp_path: Path) -> None:
    config = write_configuration(tmp_path)
    corpus(tmp_path, 300)
    first = run("collect", tmp_path / "grown", "--config", config)
    assert first.returncode == 0, first.stderr
    before = read(tmp_path / "grown", "SELECT chunk, chunk_id, n_tokens FROM chunks")
    corpus(tmp_path, 560)
    second = run("collect", tmp_path / "grown", "--config", config)
    assert second.returncode == 0, second.stderr
    after = read(tmp_path / "grown", "SELECT chunk, chunk_id, n_tokens FROM chunks")
    assert set(before) < set(after)
    assert f"{sum(n for *_, n in before):,} tokens were there already" in second.stderr

    at_once = run("collect", tmp_path / "at_once", "--config", config)
    assert at_once.returncode == 0, at_once.stderr
    grown, whole = (read(tmp_path / name, QUERY)[0] for name in ("grown", "at_once"))
    assert (grown[1], whole[1]) == ([256, 44, 256, 4], [256, 256, 48])
    # Of the same text the same counts, but for rounding where batches are cut elsewhere.
    assert (grown[0], grown[3], grown[4]) == (whole[0], whole[3], whole[4])
    assert grown[2] == pytest.approx(whole[2], rel=1e-4)


@pytest.mark.usefixtures("prefect_server")
def test_text_that_was_changed_is_refused(tmp_path: Path) -> None:
    config = write_configuration(tmp_path)
    corpus(tmp_path, 40)
    assert run("collect", tmp_path / "run", "--config", config).returncode == 0
    file = tmp_path / "corpus.jsonl"
    file.write_text(json.dumps({"text": "another beginning"}) + "\n" + file.read_text())
    refused = run("collect", tmp_path / "run", "--config", config)
    assert refused.returncode == 2, refused.stderr
    assert "The corpus has changed" in refused.stderr
    assert "new text may follow what was there" in refused.stderr
