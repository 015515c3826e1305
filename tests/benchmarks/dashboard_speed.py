"""How long the dashboard's pages take at a million features, while a writer absorbs parts.

Makes a run with made-up rows (or takes the one that is there), serves it as a user does, and asks
for pages one after another, drawn at random: features, lists sorted and filtered in every way, the
overview. Meanwhile another process makes parts with labels and scores, absorbs and publishes them,
with a pause as long as a run makes. Times are what the client waits, first visits included.

    python tests/benchmarks/dashboard_speed.py [RUN] [--features N] [--seconds N] [--pause N]
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path

import duckdb
import httpx
from scopenote.store.absorb import absorb_results
from scopenote.store.database import now, open_work, publish
from scopenote.store.labels import label_tables
from scopenote.store.parts import write_part
from scopenote.store.records import FeatureId, Label, Score
from scopenote.store.scores import score_tables

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.made_up_population import make_population

_LABELS_A_PART = 256
_SORTS = ("score", "lift", "density", "peak", "label", "disagreement", "same", "feature")
_QUEUES = ("worst", "lift", "unlabelled", "disagreeing", "colliding", "stale")
_WORDS = ("doubt", "legal terms", "French", "zebra", "music light")


def absorb_again_and_again(run: Path, pause: float, stop: Event) -> None:
    """A coordinator at work: labels of some features more, their scores, and the publication."""
    draw = random.Random(5)
    (run / "parts").mkdir(exist_ok=True)
    n = 0
    while not stop.wait(pause if n else 0):
        with open_work(run) as work:
            found = work.execute(
                "SELECT sae_id, feature FROM features WHERE feature < 16000 LIMIT 256 OFFSET $n",
                {"n": draw.randrange(10_000)},
            ).fetchall()
            labels = [
                Label(FeatureId(*each), f"label {n}", None, "benchmark", "1", (), draw=n)
                for each in found[:_LABELS_A_PART]
            ]
            scores = [
                Score(label.label_id, "simulation", "judge", "correlation", split, draw.random())
                for label in labels
                for split in ("select", "score")
            ]
            for stage, tables in (
                ("explain", label_tables(labels, "r2", now())),
                ("score", score_tables(scores, [], "r2")),
            ):
                write_part(run / "parts", f"{stage}-benchmark-{n}", stage, tables, {})
                absorb_results(work, run / "parts", stage)
            began = time.monotonic()
            publish(work, run)
        n += 1
        print(f"  published in {time.monotonic() - began:.1f} s", flush=True)  # noqa: T201


@contextmanager
def served(run: Path) -> Iterator[tuple[str, float]]:
    """The dashboard's address, and after how long it answered."""
    began = time.monotonic()
    words = [sys.executable, "-m", "scopenote.flows.cli", "serve", str(run), "--port", "0"]
    process = subprocess.Popen([*words, "--read-only"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        httpx.get(f"{address}api/queues", timeout=60).raise_for_status()
        yield address, time.monotonic() - began
    finally:
        process.terminate()
        process.wait(20)


def requests(run: Path) -> dict[str, Callable[[random.Random], str]]:
    """Kinds of pages, and how to draw one of each."""
    with duckdb.connect(str(run / "scopenote.duckdb"), read_only=True) as connection:
        saes = connection.execute("SELECT sae_id, width FROM saes").fetchall()
        (total,) = connection.execute("SELECT count(*) FROM features").fetchone() or (0,)
    last_page = max(1, total // 50)

    def feature(draw: random.Random) -> str:
        sae_id, width = draw.choice(saes[:-1] or saes)
        return f"{sae_id}/{draw.randrange(width)}"

    def listed(draw: random.Random) -> str:
        query = draw.choice(
            [
                f"sort={draw.choice(_SORTS)}&page={draw.randint(1, 200)}",
                f"queue={draw.choice(_QUEUES)}",
                f"q={draw.choice(_WORDS)}&sort={draw.choice(_SORTS)}",
                f"min_score=0.{draw.randrange(9)}&min_density=0.001&sort=lift",
                f"sae={draw.choice(saes)[0]}&sort=score&reverse=true",
                f"labelled=no&sort=density&page={draw.randint(1, 20)}",
                f"sort={draw.choice(_SORTS)}&page={draw.randint(1, last_page)}",
            ]
        )
        return f"features?{query}"

    def overview(draw: random.Random) -> str:
        return draw.choice(["", "", f"?sae={draw.choice(saes)[0]}", "?explainer=token_lookup"])

    return {
        "a feature": feature,
        "its `score` contexts": lambda draw: f"{feature(draw)}?split=score",
        "a list": listed,
        "the overview": overview,
        "a feature as JSON": lambda draw: f"api/feature/{feature(draw)}",
    }


def measure(run: Path, seconds: float, pause: float | None) -> None:
    """Asks for that long and prints how long the answers took."""
    kinds = requests(run)
    draw = random.Random(1)
    times: dict[str, list[float]] = defaultdict(list)
    stop = multiprocessing.get_context("spawn").Event()
    writer = multiprocessing.get_context("spawn").Process(
        target=absorb_again_and_again, args=(run, pause or 0, stop)
    )
    with served(run) as (address, start), httpx.Client(base_url=address, timeout=60) as client:
        print(f"  first answer after {start:.1f} s")  # noqa: T201
        if pause is not None:
            writer.start()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for kind, make in kinds.items():
                path = make(draw)
                began = time.perf_counter()
                answer = client.get(path)
                times[kind].append(time.perf_counter() - began)
                assert answer.status_code == 200, (path, answer.status_code, answer.text[:500])
        stop.set()
        if pause is not None:
            writer.join()
    for kind, found in times.items():
        cuts = statistics.quantiles(found, n=20)
        words = f"{kind:22} n {len(found):5}   median {1000 * cuts[9]:6.0f} ms"
        rest = f"95th percentile {1000 * cuts[18]:6.0f} ms   longest {1000 * max(found):6.0f} ms"
        print(f"  {words}   {rest}")  # noqa: T201


def main() -> None:
    """As a program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--features", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--pause", type=float, default=60, help="between publications")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        run = chosen.run or Path(made) / "run"
        if not (run / "scopenote.duckdb").exists():
            print(f"making {chosen.features:,} features")  # noqa: T201
            make_population(run, chosen.features)
        for words, pause in (("nobody else at work", None), ("a writer at work", chosen.pause)):
            print(words)  # noqa: T201
            measure(run, chosen.seconds, pause)


if __name__ == "__main__":
    main()
