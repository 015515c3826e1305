"""Small files of text in every form, and what is read of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scopenote.extract.corpus import (
    CorpusSource,
    RowCounts,
    read_documents,
)
from scopenote.store.errors import CorpusError


def read(path: Path, counts: RowCounts | None = None, **options: Any) -> list[str]:
    source = CorpusSource(path=str(path), **options)
    return [d.text for d in read_documents(source, RowCounts() if counts is None else counts)]


def refuse(path: Path, **options: Any) -> CorpusError:
    with pytest.raises(CorpusError) as refused:
        read(path, **options)
    return refused.value


def write(file: Path, content: str | bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def write_jsonl(file: Path, rows: Iterable[object]) -> Path:
    return write(file, "".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(file: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), file)
    return file
