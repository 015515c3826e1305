"""An export that `datasets.load_dataset` opens: Parquet, a data card and its plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import pyarrow.compute as pc

from ..store.card_facts import read_card_facts
from ..store.export_choice import TABLES
from ..store.export_tables import read_table
from ..store.export_writers import open_rows_file
from ..store.facts import REVISION, get_meta
from ..store.score_spread import read_ladder
from ..store.splits import SPLITS
from ..store.status import read_status
from .data_card import PLOT, CardSubject, CardTable, draw_plot, render_card
from .export_work import ExportWork, write_table

_HERE = "path/to/this/folder"


def write_dataset(work: ExportWork) -> None:
    """Writes it; the splits of `contexts` are those of the run."""
    by_split: dict[str, str] = {split: f"contexts-{split}.parquet" for split in SPLITS}
    tables = []
    for name in TABLES:
        if name == "contexts":
            n_rows = _write_contexts(work, by_split)
            files = {split: file for split, file in by_split.items() if n_rows[split]}
        else:
            write_table(work, name, f"{name}.parquet")
            files = {"train": f"{name}.parquet"} if getattr(work.chosen, name) else {}
        # `datasets` refuses to open what has no rows.
        if files:
            tables.append(CardTable(name, files))
    _write_card(work, tables)


def _write_contexts(work: ExportWork, files: Mapping[str, str]) -> dict[str, int]:
    """Writes a file for each split, and says how many rows that has."""
    table = read_table(work.connection, "contexts")
    n_rows = dict.fromkeys(files, 0)
    with ExitStack() as stack:
        stage = stack.enter_context(
            work.progress.stage("export contexts", work.chosen.contexts, "rows")
        )
        rows_files = {
            split: stack.enter_context(open_rows_file(work.folder.new_file(file), table.schema))
            for split, file in files.items()
        }
        for batch in table.batches:
            for split, rows_file in rows_files.items():
                of_split = batch.filter(pc.equal(batch["split"], split))
                rows_file.write(of_split)
                n_rows[split] += len(of_split)
            stage.advance(len(batch))
    for split, file in files.items():
        query = f"SELECT * FROM ({table.query}) WHERE split = '{split}'"
        work.folder.add(file, "contexts", n_rows[split], query)
    return n_rows


def _write_card(work: ExportWork, tables: Sequence[CardTable]) -> None:
    facts = read_card_facts(work.connection)
    if draw_plot(facts, work.folder.new_file(PLOT)):
        work.folder.add(PLOT)
    subject = CardSubject(
        tables=tables,
        choice=work.choice,
        chosen=work.chosen,
        status=read_status(work.connection, work.database),
        facts=facts,
        place=work.place or _HERE,
        license=work.license,
        revision=get_meta(work.connection, REVISION) or "",
        ladder=read_ladder(work.connection, facts.sae_ids),
    )
    work.folder.add_text("README.md", render_card(subject))
