"""Brings in labels that others wrote: from files into a run's tables, where `score` finds them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from ..label.imported_label import MAX_NAME_CHARACTERS, LabelImporter, LeftOut
from ..label.label_reply import clean_text, shows_nothing
from ..store.database import open_work
from ..store.errors import UserMistake
from ..store.feature_page import read_widths
from ..store.imported_labels import ImportedSet, LabelsAside, add_imported, labels_aside
from ..store.label_files import (
    NEURONPEDIA,
    LabelFile,
    find_label_files,
    name_without_ending,
    read_rows_of,
)
from ..store.run_folder import RunFolder, clear_disk_errors
from .config import Config
from .explain_settings import Explainer
from .progress import Progress, Stage
from .recorded_runs import recorded_run
from .reports import StageReport
from .working import published

COMMAND = "import-labels"
_NEURONPEDIA_NAME = "neuronpedia"
# A set of labels by one of these names would be taken for our own.
_OURS = frozenset({*get_args(Explainer), "human", "auto", "imported", "scopenote"})
_N_EXAMPLES, _N_SAES = 3, 4


@dataclass(frozen=True, slots=True)
class LeftOutRows:
    """Rows left out for one reason.

    Attributes:
        examples: the first of them, as people find them.
    """

    reason: str
    n: int
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What became of files of labels.

    Attributes:
        source_name: whose labels they are.
        files: by their names.
        n_rows: in all of them.
        sets: what was brought in or was there, by who wrote it.
        left_out: rows that are no labels here, the most frequent reason first.
        notes: what else a person should know, a sentence each.
    """

    source_name: str
    files: tuple[str, ...]
    n_rows: int
    sets: tuple[ImportedSet, ...]
    left_out: tuple[LeftOutRows, ...]
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def n_new(self) -> int:
        """Labels that were not there before."""
        return sum(each.n_new for each in self.sets)

    @property
    def n_there(self) -> int:
        """Labels that were."""
        return sum(each.n - each.n_new for each in self.sets)

    @property
    def n_left_out(self) -> int:
        """Rows that are no labels here."""
        return sum(each.n for each in self.left_out)

    @property
    def n_repeated(self) -> int:
        """Rows that say what another row says."""
        return self.n_rows - self.n_left_out - self.n_new - self.n_there

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        counts = ("n_new", "n_there", "n_left_out", "n_repeated")
        return {**asdict(self), **{name: getattr(self, name) for name in counts}}

    def as_stage(self) -> StageReport:
        """For the record of runs."""
        return StageReport(
            stage="import",
            unit="labels",
            done=self.n_new,
            already_done=self.n_there,
            failures={f"left out because {each.reason}": each.n for each in self.left_out},
            seconds=self.seconds,
            notes=(f"by {self.source_name}, from {self._from}", *self.notes),
        )

    @property
    def _from(self) -> str:
        return self.files[0] if len(self.files) == 1 else f"{len(self.files):,} files"


@dataclass(slots=True)
class CountedRows:
    """The rows of files, and which of them are no labels here."""

    n: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, left: LeftOut, where: str) -> None:
        """Notes a row that is none, and where it stands."""
        self.reasons[left.reason] += 1
        examples = self.examples.setdefault(left.reason, [])
        if len(examples) < _N_EXAMPLES:
            examples.append(f"{left.what} ({where})" if left.what else where)

    def left_out(self) -> Iterator[LeftOutRows]:
        """What was left out, the most frequent reason first."""
        for reason, n in self.reasons.most_common():
            yield LeftOutRows(reason, n, tuple(self.examples[reason]))


@dataclass(frozen=True, slots=True)
class LaidAside:
    """Labels as they were read, before anything has changed.

    Attributes:
        source_name: whose labels they are.
        files: by their names.
        started: a moment of `time.monotonic`.
    """

    source_name: str
    files: tuple[str, ...]
    labels: LabelsAside
    rows: CountedRows
    started: float


@contextmanager
def laid_aside(
    folder: RunFolder, path: Path, source_name: str | None, progress: Progress
) -> Iterator[LaidAside]:
    """Reads the labels of a file or folder. The run's lock is held; nothing changes.

    Args:
        folder: of the run.
        path: what holds the labels.
        source_name: whose they are; by default `neuronpedia` for its batches, else as `path` is
            called.
        progress: where it is shown.

    Raises:
        UserMistake: a file that cannot be read to its end or is no such file, a name that stands
            for something else, or no row that is a label here.
        StoreError: the disk refuses it.
    """
    started = time.monotonic()
    files = find_label_files(path)
    name = _source_name(source_name, path, files)
    with published(folder.path) as (_, store):
        widths = read_widths(store.connection)
    rows = CountedRows()
    with clear_disk_errors(folder.path), labels_aside(folder.parts) as labels:
        with progress.stage("import", unit="rows") as stage:
            _lay_aside(files, LabelImporter(name, widths), labels, rows, stage)
        _require_any(path, labels, rows, widths)
        yield LaidAside(name, tuple(file.name for file in files), labels, rows, started)


def import_labels(config: Config, folder: RunFolder, aside: LaidAside) -> ImportReport:
    """Adds labels that were laid aside to a run's tables, and publishes them.

    Args:
        config: of the run.
        folder: of the run, whose lock is held.
        aside: the labels.

    Raises:
        StoreError: the disk refuses it.
    """
    with recorded_run(COMMAND, config, folder) as run:
        with open_work(folder.path) as work:
            sets = add_imported(work, aside.labels, run.run_id)
        report = ImportReport(
            source_name=aside.source_name,
            files=aside.files,
            n_rows=aside.rows.n,
            sets=sets,
            left_out=tuple(aside.rows.left_out()),
            seconds=time.monotonic() - aside.started,
            notes=_notes(config, folder),
        )
        run.add(report.as_stage())
    return report


def _lay_aside(
    files: list[LabelFile],
    importer: LabelImporter,
    labels: LabelsAside,
    rows: CountedRows,
    stage: Stage,
) -> None:
    for file in files:
        where = "row" if file.kind == "Parquet" else "line"
        for row in read_rows_of(file):
            rows.n += 1
            label = importer.label(row)
            if isinstance(label, LeftOut):
                rows.leave_out(label, f"{file.name}, {where} {row.line}")
            else:
                labels.add(label)
            stage.advance()


def _require_any(
    path: Path, labels: LabelsAside, rows: CountedRows, widths: Mapping[str, int]
) -> None:
    if labels.n:
        return
    if not rows.n:
        raise UserMistake("There are no rows to bring in.", where=str(path), found="no row")
    listed = [f"{n:,}: {reason}" for reason, n in rows.reasons.most_common(3)]
    first = next(rows.left_out()).examples[0]
    raise UserMistake(
        f"None of the {rows.n:,} rows is a label of a feature of this run.",
        where=str(path),
        found=f"{'; '.join(listed)}; such as {first}",
        expected="features of " + _listed(widths),
    )


def _source_name(given: str | None, path: Path, files: list[LabelFile]) -> str:
    if given is None:
        is_theirs = files[0].kind == NEURONPEDIA
        given = _NEURONPEDIA_NAME if is_theirs else name_without_ending(path)
        mend = "name whose labels they are with `--from`"
    else:
        mend = "choose another name"
    name = clean_text(given)
    if shows_nothing(name) or "/" in name or len(name) > MAX_NAME_CHARACTERS or name in _OURS:
        raise UserMistake(
            "Labels of others cannot go by this name.",
            found=repr(given),
            expected=f"up to {MAX_NAME_CHARACTERS} characters without `/`, and none of "
            + ", ".join(sorted(_OURS)),
            mend=mend,
        )
    return name


def _listed(saes: Iterable[str]) -> str:
    named = list(saes)
    return ", ".join(named[:_N_SAES]) + (", …" if len(named) > _N_SAES else "")


def _notes(config: Config, folder: RunFolder) -> tuple[str, ...]:
    if config.score.judges:
        return ()
    return (
        "no simulator of this run reads what a label says: name a judge such as `chat` in "
        f"`score.simulators` of {folder.config_file}",
    )
