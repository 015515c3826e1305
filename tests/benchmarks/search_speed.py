"""How long searches over a million labels take: by text, and by text and meaning.

Makes a run with made-up rows and random vectors of 384 numbers (or takes the one that is there).
Its words are only thirty, so each stands in about half of all labels: harder than any real run.
Times are of `search_labels` with families, in a store that is open (warm), the first one apart
(cold). Beside them in the same run, what a search cannot beat: a scan for a word, which ranks
nothing, and the product of all vectors with the query's, in memory already.

    python tests/benchmarks/search_speed.py [RUN] [--features N] [--times N]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from scopenote.store.database import Store, open_store, open_work, publish
from scopenote.store.feature_list import FeatureQuery, read_rows_at
from scopenote.store.hit_families import group_into_families
from scopenote.store.label_vectors import QueryVector
from scopenote.store.search_hits import search_labels

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.made_up_population import make_population

_DIMENSIONS, _ROWS = 384, 50_000
_MODEL = "random"
_SHOWN = 10


def add_vectors(run: Path) -> None:
    """A random vector for each label in force."""
    draw = np.random.default_rng(0)
    with open_work(run) as work:
        work.execute("UPDATE meta SET value = 'with vectors' WHERE key = 'revision'")
        publish(work, run)
        labels = work.execute(
            "SELECT label_id FROM current_features WHERE label_id IS NOT NULL ORDER BY place"
        ).fetchall()
        for begin in range(0, len(labels), _ROWS):
            ids = [label_id for (label_id,) in labels[begin : begin + _ROWS]]
            vectors = unit(draw.standard_normal((len(ids), _DIMENSIONS), dtype=np.float32))
            offsets = np.arange(0, vectors.size + 1, _DIMENSIONS, dtype=np.int32)
            values = pa.ListArray.from_arrays(pa.array(offsets), pa.array(vectors.ravel()))
            table = pa.table({"label_id": ids, "model": [_MODEL] * len(ids), "vector": values})
            work.register("made", table)
            work.execute("INSERT INTO embeddings BY NAME FROM made")
        publish(work, run)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def search(store: Store, text: str, filters: FeatureQuery, vector: QueryVector | None) -> None:
    """All that the command does once it has the query's vector."""
    with store.cursor() as cursor:
        found = search_labels(cursor, text, filters, vector)
        families = group_into_families(cursor, [hit.place for hit in found.hits])
        read_rows_at(cursor, [place for family in families[:_SHOWN] for place in family])


def say(name: str, work: Callable[[], object], times: int) -> None:
    """Does it so often and prints how long it took: medians of all but the first.

    Time of processors is what other work on the machine changes least.
    """
    found, spent = [], []
    for _ in range(times + 1):
        began, processor = time.perf_counter(), time.process_time()
        work()
        found.append(1000 * (time.perf_counter() - began))
        spent.append(1000 * (time.process_time() - processor))
    median, of_processors = statistics.median(found[1:]), statistics.median(spent[1:])
    words = f"median {median:6.0f} ms   of processors {of_processors:6.0f} ms"
    print(f"  {name:44} {words}   first {found[0]:6.0f} ms", flush=True)  # noqa: T201


def measure(run: Path, times: int) -> None:
    everything = FeatureQuery()
    some = FeatureQuery(min_score=0.5, max_density=0.01)
    few = FeatureQuery(layer=3)
    values = unit(np.random.default_rng(1).standard_normal(_DIMENSIONS)).astype(np.float32)
    vector = QueryVector(_MODEL, values.tolist())
    with open_store(run) as store:
        with store.cursor() as cursor:
            scan = "SELECT count(*) FROM current_features WHERE text ILIKE '%doubt%'"
            say("a scan for one word, unranked", lambda: cursor.execute(scan).fetchall(), times)
        for words in ("doubt", "legal doubts", "names of verbs in code about legal doubt"):
            say(f"text: {words}", lambda w=words: search(store, w, everything, None), times)
        for name, filters in (("half of them", some), ("one layer", few)):
            say(
                f"text: legal doubts, {name}",
                lambda f=filters: search(store, "legal doubts", f, None),
                times,
            )
        for name, filters in (("all", everything), ("half of them", some), ("one layer", few)):
            say(f"text and meaning: legal doubts, {name}",
                lambda f=filters: search(store, "legal doubts", f, vector), times)  # fmt: skip
        n = store.sql("SELECT count(*) FROM embeddings").fetchall()[0][0]
    matrix = np.random.default_rng(2).standard_normal((n, _DIMENSIONS), dtype=np.float32)
    say("the product of vectors in memory, unsorted", lambda: matrix @ values, times)
    command = [sys.executable, "-m", "scopenote.flows.cli", "search", str(run), "legal doubts"]
    say("the command, --text-only", lambda: subprocess.run(
        [*command, "--text-only"], check=True, stdout=subprocess.DEVNULL), 3)  # fmt: skip


def main() -> None:
    """As a program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--features", type=int, default=1_000_000)
    parser.add_argument("--times", type=int, default=9)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        run = chosen.run or Path(made) / "run"
        if not (run / "scopenote.duckdb").exists():
            print(f"making {chosen.features:,} features")  # noqa: T201
            make_population(run, chosen.features, contexts_each=1, n_windows=3000)
        with open_store(run) as store:
            is_ready = bool(store.sql("SELECT 1 FROM embeddings LIMIT 1").fetchall())
        if not is_ready:
            print(f"making their vectors of {_DIMENSIONS} numbers")  # noqa: T201
            add_vectors(run)
        measure(run, chosen.times)


if __name__ == "__main__":
    main()
