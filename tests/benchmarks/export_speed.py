"""How long exports of a million contexts take, and how much memory, beside DuckDB's own copy.

Makes a run with made-up rows (or takes the one that is there) and exports it in every format, each
in a process of its own as a user does. The bare figure is DuckDB writing the same contexts, joined
to their windows but not spelled out, to Parquet in one statement.

    python tests/benchmarks/export_speed.py [RUN] [--features N] [--windows N]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import duckdb
from scopenote.flows.export_command import ExportFormat

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests import made_up_population

_BARE = """
    COPY (SELECT * FROM contexts JOIN windows USING (window_id)
          ORDER BY sae_id, feature, contexts.split, kind, rank)
    TO '{file}' (FORMAT parquet, COMPRESSION zstd)
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a process took."""

    seconds: float
    peak_mib: float
    bytes: int


def make(run: Path, n_features: int, n_windows: int | None) -> None:
    """Makes the run in a process of its own: those begun later would start with its peak memory."""
    words = [made_up_population.__file__, str(run), "--features", str(n_features)]
    words += [] if n_windows is None else ["--windows", str(n_windows)]
    subprocess.run([sys.executable, *words], check=True)


def measure(words: list[str], written: Path) -> Measured:
    """Runs a command; its time, the most memory it held, and how much it wrote."""
    started = time.monotonic()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} ended with status {process.returncode}")
    files = [written] if written.is_file() else [f for f in written.rglob("*") if f.is_file()]
    return Measured(seconds, used.ru_maxrss / 1024, sum(file.stat().st_size for file in files))


def main() -> None:
    """As a program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--features", type=int, default=50_000)
    parser.add_argument("--windows", type=int, help="from few, features share more of them")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = chosen.run or Path(folder) / "run"
        if not run.exists():
            make(run, chosen.features, chosen.windows)
        with duckdb.connect(str(run / "scopenote.duckdb"), read_only=True) as connection:
            ((n, n_windows),) = connection.execute(
                "SELECT (SELECT count(*) FROM contexts), (SELECT count(*) FROM windows)"
            ).fetchall()
        print(f"{n:,} contexts of {n_windows:,} windows")  # noqa: T201
        print("| format | seconds | times the bare copy | peak memory | written |")  # noqa: T201
        print("|---|---|---|---|---|")  # noqa: T201
        bare_file = Path(folder) / "bare.parquet"
        copy = _BARE.format(file=bare_file)
        program = (
            "import sys, duckdb; duckdb.connect(sys.argv[1], read_only=True).execute(sys.argv[2])"
        )
        database = str(run / "scopenote.duckdb")
        bare = measure([sys.executable, "-c", program, database, copy], bare_file)
        show("bare copy", bare, bare)
        bare_file.unlink()
        for kind in get_args(ExportFormat):
            target = Path(folder) / kind
            words = ["export", str(run), "--to", str(target), "--format", kind]
            found = measure([sys.executable, "-m", "scopenote.flows.cli", *words], target)
            show(f"`{kind}`", found, bare)
            for file in target.rglob("*"):
                if file.is_file():
                    file.unlink()


def show(name: str, found: Measured, bare: Measured) -> None:
    """A row of the table."""
    print(  # noqa: T201
        f"| {name} | {found.seconds:.1f} | {found.seconds / bare.seconds:.1f} "
        f"| {found.peak_mib:,.0f} MiB | {found.bytes / 1e6:,.0f} MB |",
        flush=True,
    )


if __name__ == "__main__":
    main()
