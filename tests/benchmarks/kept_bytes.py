"""What kept windows and the background take on disk: in a part, and in the database.

These are the constants of `scopenote estimate --at-scale` (`flows/disk_bytes.py`). The model is
the embedded toy, cut after layer 1; the SAEs are its own of the residual stream, and a random one
of 16,384 features of which 64 fire on each token, as in `collect_speed.py`.

    python tests/benchmarks/kept_bytes.py [--tokens N] [--only 16k]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from scopenote.extract.collect_job import CollectJob
from scopenote.extract.corpus import CorpusSource, RowCounts, read_documents
from scopenote.extract.models import load_model
from scopenote.extract.sae_sources import locate_sae
from scopenote.extract.saes import load_sae
from scopenote.extract.sketches import SketchSizes
from scopenote.extract.windows import WindowShape, cut_chunks
from scopenote.flows.collect_setup import toy_saes
from scopenote.store.absorb import absorb_collected
from scopenote.store.database import open_work
from scopenote.store.parts import list_parts

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.collect_speed import make_job, say, write_collected, write_corpus

_BLOCK = 256 << 10


def toy_job() -> CollectJob:
    """The demo's model with its SAE of the residual stream."""
    (file,) = [file for file in toy_saes() if "res" in file.parts]
    source = locate_sae(str(file), "toy-gemma-2")
    model = load_model("toy", [source.site])
    sae = load_sae(source, model.config)
    return CollectJob(model, [sae], WindowShape(), SketchSizes(), 4096)


def measure(name: str, job: CollectJob, text: CorpusSource, tokens: int) -> None:
    """Collects into one part, absorbs it, and says what lies on disk."""
    width = job.saes[0].width
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        documents = read_documents(text, RowCounts())
        chunks = job.pending_chunks(cut_chunks(documents), {}, tokens)
        n_tokens = write_collected(job, chunks, run)
        (part,) = list_parts(run / "parts")
        files = {file.stem: file for file in part.folder.glob("*.parquet")}
        rows = {stem: pq.read_metadata(file).num_rows for stem, file in files.items()}
        sizes = {stem: file.stat().st_size for stem, file in files.items()}
        pieces = pa.table({"token_id": [0], "text": [""], "bytes": [b""]})
        with open_work(run) as work:
            absorb_collected(work, run / "parts", lambda: pieces)
        with open_work(run) as work:
            work.execute("CHECKPOINT")
            tables = dict(table_bytes(work))
            ((firings,),) = work.execute("SELECT sum(len(positions)) FROM background").fetchall()
            counts = {
                table: work.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0]
                for table in tables
            }
        database = (run / "work.duckdb").stat().st_size
    say(f"\n{name}: {width:,} features, {n_tokens:,} tokens, database {database:,} bytes")
    per_feature = sizes["counts-0"] + sizes["features-0"]
    say(f"  part: {sizes['contexts-0'] / rows['contexts-0']:.1f} bytes a kept window")
    say(f"        {rows['contexts-0'] / width:.1f} kept windows a feature")
    say(f"        {sizes['background-0'] / firings:.2f} bytes a firing of the background")
    say(f"        {sizes['windows'] / rows['windows']:.0f} bytes a window of text")
    say(f"        {rows['windows'] / rows['contexts-0']:.2f} windows of text a kept window")
    say(f"        {per_feature / width:.0f} bytes a feature beside")
    kept, background = counts["contexts"], tables["background"]
    say(f"  database: {tables['contexts'] / kept:.1f} bytes a kept window of {kept:,}")
    say(f"        {background / firings:.2f} bytes a firing of {firings:,}")
    say(f"        {tables['windows'] / counts['windows']:.0f} bytes a window of text")
    rest = sum(tables.values()) - tables["contexts"] - background - tables["windows"]
    say(f"        {rest / width:.0f} bytes a feature beside")


def table_bytes(connection: duckdb.DuckDBPyConnection) -> Iterator[tuple[str, int]]:
    """Each table's blocks; small tables share one, and count as none."""
    for (table,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall():
        ((blocks,),) = connection.execute(
            f"SELECT count(DISTINCT block_id) FROM pragma_storage_info('{table}') "
            "WHERE block_id >= 0"
        ).fetchall()
        yield table, blocks * _BLOCK


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=500_000)
    parser.add_argument("--only", choices=("toy", "16k"))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = write_corpus(Path(folder))
        if asked.only != "16k":
            measure("toy", toy_job(), text, asked.tokens)
        if asked.only != "toy":
            measure("16k", make_job("toy", 16_384, 1, text), text, asked.tokens)


if __name__ == "__main__":
    main()
