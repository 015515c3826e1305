"""Readers while one process absorbs and publishes without a pause, and people write labels.

Every absorption writes as many labels as contexts shown for labels, and counts itself: a copy that
mixed two states would have more of one than of another.

With `-s` the figures are printed; `python -m scopenote.tests.test_readers_undisturbed 60` prints
them alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import scopenote
from scopenote.flows.by_hand import write_label
from scopenote.flows.config import demo_config
from scopenote.store.absorb import absorb_inbox, absorb_results, remove_absorbed
from scopenote.store.database import open_published, open_work, publish
from scopenote.store.inbox import inbox_names
from scopenote.store.labels import label_tables
from scopenote.store.parts import write_part
from scopenote.store.records import FeatureId, Label
from scopenote.store.run_folder import RunFolder

from .made_up_run import RES, make_database

LABELS_A_PART = 64
PAUSE_SECONDS = 0.05
# However slow the machine is, what is watched has to happen.
FEWEST = 4
STATE = """
    SELECT
        (SELECT count(*) FROM labels WHERE explainer = 'made_up'),
        (SELECT count(*) FROM label_contexts),
        (SELECT count(*) FROM parts WHERE stage = 'explain'),
        (SELECT count(*) FROM labels WHERE source = 'human'),
        (SELECT count(*) - count(DISTINCT label_id) FROM labels),
        (SELECT count(*) - count(DISTINCT (sae_id, feature)) FROM current_labels)
"""


@dataclass
class Reading:
    """What a reader saw.

    Attributes:
        waits: seconds from opening to the answer, for each read.
        faults: what no reader may see, in words.
        n_states: how many different states it saw.
    """

    waits: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    n_states: int = 0


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def read_over_and_over(run: Path, stop: Path) -> Reading:
    """Opens the run every 50 ms until the file `stop` is there."""
    reading = Reading()
    before: tuple[Any, ...] = (0, 0, 0, 0)
    say("ready")
    while not stop.exists() or len(reading.waits) < FEWEST:
        began = time.perf_counter()
        try:
            with scopenote.open(run) as reader:
                (state,) = reader.sql(STATE).fetchall()
        except Exception as error:
            return Reading(faults=[*reading.faults, f"a read failed: {error!r}"])
        reading.waits.append(time.perf_counter() - began)
        reading.faults += faults_of(state, before)
        reading.n_states += state != before
        before = state
        time.sleep(PAUSE_SECONDS)
    return reading


def faults_of(state: tuple[Any, ...], before: tuple[Any, ...]) -> list[str]:
    n_labels, n_shown, n_parts, _, n_doubled, n_in_force_twice = state
    faults = []
    if not n_labels == n_shown == n_parts * LABELS_A_PART:
        faults.append(f"a mixed state: {n_labels} labels, {n_shown} contexts, {n_parts} parts")
    if any(now < then for now, then in zip(state[:4], before[:4], strict=True)):
        faults.append(f"something was lost: {before} and then {state}")
    if n_doubled or n_in_force_twice:
        faults.append(f"{n_doubled} labels twice, {n_in_force_twice} features with two in force")
    return faults


def absorb_and_publish(run: Path, stop: Path) -> dict[str, Any]:
    """The coordinator, without a pause; how long each publication took."""
    folder = RunFolder(run)
    seconds, faults = [], []
    with folder.lock("scopenote run"):
        number = 0
        say("ready")
        while not stop.exists() or number < FEWEST:
            write_part(folder.parts, f"explain-{number:08}", "explain", made_up(number), {})
            number += 1
            try:
                with open_work(run) as work:
                    absorb_inbox(work, folder.inbox)
                    absorb_results(work, folder.parts, "explain")
                    began = time.perf_counter()
                    publish(work, run)
                    seconds.append(time.perf_counter() - began)
                    remove_absorbed(work, folder.inbox)
            except Exception as error:
                faults.append(f"a write failed: {error!r}")
    return {"seconds": seconds, "faults": faults, "n_parts": number}


def made_up(number: int) -> dict[str, Any]:
    labels = [
        Label(
            feature_id=FeatureId(RES, feature % 40),
            text=f"label {feature} of part {number}",
            explanation=None,
            explainer="made_up",
            prompt_version=str(number),
            window_ids=(0,),
            draw=feature,
        )
        for feature in range(LABELS_A_PART)
    ]
    return label_tables(labels, "r", datetime.now(UTC))


def prepare(folder: Path) -> RunFolder:
    """A run whose database takes a while to copy: 40 MB."""
    run = RunFolder(folder / "run").create()
    run.write_config(demo_config().to_toml())
    make_database(run.work_database).close()
    with open_work(run.path) as work:
        work.execute("CREATE TABLE ballast AS SELECT hash(i) AS h FROM range(5_000_000) r(i)")
        publish(work, run.path)
    return run


def start(role: str, run: RunFolder, stop: Path) -> subprocess.Popen[str]:
    code = f"""
import dataclasses, json, sys
from pathlib import Path
from scopenote.tests.test_readers_undisturbed import *
found = {role}(Path(sys.argv[1]), Path(sys.argv[2]))
say(json.dumps(dataclasses.asdict(found) if dataclasses.is_dataclass(found) else found))
"""
    words = [sys.executable, "-c", code, str(run.path), str(stop)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise AssertionError(process.communicate()[1])
    return process


def answer_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return json.loads(out)


@dataclass
class Watched:
    """What came of watching for a while."""

    faults: list[str]
    reads: list[float]
    n_states: int
    publishes: list[float]
    n_parts: int
    writes: list[float]

    def figures(self) -> str:
        return (
            f"{len(self.reads):,} reads, the longest {max(self.reads):.2f} s, over "
            f"{self.n_states:,} states; {len(self.publishes):,} publications, the longest "
            f"{max(self.publishes):.2f} s; {len(self.writes):,} labels by hand, the longest "
            f"{max(self.writes):.3f} s until it was on disk"
        )


def watch(folder: Path, seconds: float) -> Watched:
    """Readers, a coordinator and a person at once, for so many seconds."""
    run, stop = prepare(folder), folder / "stop"
    faults: list[str] = []
    writes: list[float] = []
    with scopenote.open(run.path) as stays_open:
        first = stays_open.sql(STATE).fetchall()
        reading, writing = (
            start(role, run, stop) for role in ("read_over_and_over", "absorb_and_publish")
        )
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at or len(writes) < FEWEST:
            text = f"by hand {len(writes)}"
            began = time.perf_counter()
            label = write_label(run, f"{RES}/{len(writes) % 40}", text, author="ann")
            writes.append(time.perf_counter() - began)
            with scopenote.open(run.path) as reader:
                (shown,) = reader.sql(
                    "SELECT text FROM current_labels WHERE sae_id = $sae AND feature = $feature",
                    sae=RES,
                    feature=label.feature_id.feature,
                ).fetchall()
            if shown != (text,):
                faults.append(f"{text} is not seen in the next read, but {shown}")
            if stays_open.sql(STATE).fetchall() != first:
                faults.append("the copy that stays open has changed")
            time.sleep(PAUSE_SECONDS)
        stop.touch()
        written, read = answer_of(writing), answer_of(reading)
    with open_work(run.path) as work:
        absorb_inbox(work, run.inbox)
        publish(work, run.path)
        remove_absorbed(work, run.inbox)
    with open_published(run.database) as reader:
        in_table = reader.sql("SELECT text FROM labels WHERE source = 'human'").fetchall()
    if sorted(in_table) != sorted((f"by hand {n}",) for n in range(len(writes))):
        faults.append(f"{len(in_table)} of {len(writes)} labels by hand are in the table")
    if inbox_names(run.inbox):
        faults.append("the inbox is not empty after the absorption")
    return Watched(
        faults=[*faults, *written["faults"], *read["faults"]],
        reads=read["waits"],
        n_states=read["n_states"],
        publishes=written["seconds"],
        n_parts=written["n_parts"],
        writes=writes,
    )


@pytest.mark.parametrize(
    "seconds",
    [pytest.param(8, marks=pytest.mark.slow), pytest.param(60, marks=pytest.mark.long)],
)
def test_readers_and_people_are_undisturbed_by_a_coordinator(tmp_path: Path, seconds: int) -> None:
    watched = watch(tmp_path, seconds)
    say(watched.figures())
    assert watched.faults == []
    assert len(watched.reads) >= FEWEST
    assert watched.n_states > 1
    assert len(watched.publishes) == watched.n_parts >= FEWEST
    assert max(watched.reads) > 0


def test_a_state_that_is_mixed_or_has_lost_something_would_be_noticed() -> None:
    whole = (128, 128, 2, 5, 0, 0)
    assert faults_of(whole, (64, 64, 1, 5, 0, 0)) == []
    for wrong in (
        (192, 128, 3, 5, 0, 0),
        (192, 192, 2, 5, 0, 0),
        (64, 64, 1, 5, 0, 0),
        (128, 128, 2, 4, 0, 0),
        (128, 128, 2, 5, 1, 0),
    ):
        assert len(faults_of(wrong, whole)) == 1, wrong


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        found = watch(Path(folder), float(sys.argv[1]))
    say("\n".join([found.figures(), *(found.faults or ["no fault"])]))
