"""Text of one split in another: a score on text that the label may have been written from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import StoreError
from .splits import SPLITS

if TYPE_CHECKING:
    import duckdb


def require_no_leak(connection: duckdb.DuckDBPyConnection) -> None:
    """Makes sure that no kept window's text, and no document, is in two splits.

    Raises:
        StoreError: some are.
    """
    ranks = " ".join(f"WHEN '{split}' THEN {rank}" for rank, split in enumerate(SPLITS))
    rank = f"CASE split {ranks} END"
    rows = connection.execute(
        f"""
        WITH ranked AS (SELECT *, {rank} AS rank FROM windows),
        texts AS (SELECT token_hash, min(rank) AS first FROM ranked GROUP BY ALL),
        documents AS (SELECT doc_id, min(rank) AS first FROM ranked GROUP BY ALL)
        SELECT split, texts.first, documents.first, count(*), min(window_id)
        FROM ranked JOIN texts USING (token_hash) JOIN documents USING (doc_id)
        WHERE rank > texts.first OR rank > documents.first
        GROUP BY ALL ORDER BY count(*) DESC LIMIT 1
        """
    ).fetchall()
    if not rows:
        return
    split, first_text, first_document, n, window_id = rows[0]
    earlier = SPLITS[min(first_text, first_document)]
    raise StoreError(
        "Text that labels are scored on is also text that they may come from.",
        where="table `windows`",
        found=f"{n:,} windows of `{split}` whose text or document is also in `{earlier}`, such as "
        f"window_id {window_id}",
        expected="no text in two splits",
        mend="collect into a new folder: what was scored here is not to be believed",
    )
