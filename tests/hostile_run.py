"""A made-up run whose tokens and labels are whatever a file format might stumble over."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from scopenote.flows.config import demo_config
from scopenote.store.current_features import refresh_current_features
from scopenote.store.facts import REVISION, set_meta
from scopenote.store.run_folder import RunFolder

from .made_up_run import RES, make_database

NEURONS = "toy-gemma-2/1-mlp-neurons"
# `▁` and `é` as single bytes, a byte that begins no character, and a token without a piece.
BYTES = ["<0xE2>", "<0x96>", "<0x81>", "<0xC3>", "<0xA9>", "<0xF0>"]
TOKENS = ["▁", "\r\n", "\r", "\x00", '"', "'", ",", ";", "=1+1", "\u2028", "\ufeff", "\\n", "🙂",
          "", " NULL", "null", "<unk>"]  # fmt: skip
FIRST_ID = 1000
NO_PIECE = 2000
LABELS = {
    10: '=HYPERLINK("http://example.com","x")',
    11: "+1",
    12: "-2+3",
    13: "@SUM(A1)",
    14: "'quoted'",
    15: 'a,b;"c"\\n',
    16: "two\nlines\r\nof\rtext",
    17: "\t=1",
    18: "日本 é ▁ 🙂 \u202e\u200b",
    19: "\x1b[31m\x07",
    20: "＝1",
    21: "",
    22: "NULL",
    23: "[1, 2]",
    24: "0012",
}


def make_hostile_run(path: Path) -> RunFolder:
    """A run whose published database has them, and neurons beside the features."""
    folder = RunFolder(path).create()
    folder.write_config(demo_config().to_toml())
    folder.database.write_bytes(_made())
    return folder


@cache
def _made() -> bytes:
    """The database, made once and copied: a dozen tests want one each."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "made.duckdb"
        _make(file)
        return file.read_bytes()


def _make(file: Path) -> None:
    connection = make_database(file)
    for number, text in enumerate(BYTES + TOKENS, start=FIRST_ID):
        content = bytes([int(text[3:5], 16)]) if text in BYTES else text.encode()
        connection.execute("INSERT INTO pieces VALUES ('toy', ?, ?, ?)", [number, text, content])
    ids = [*range(FIRST_ID, FIRST_ID + len(BYTES + TOKENS)), NO_PIECE]
    connection.execute(
        "INSERT INTO windows VALUES (?, 'toy', ?, 'score', 0, ?, [], NULL, false, 7)",
        [2**64 - 1, '=doc "1"', ids],
    )
    connection.execute(
        "INSERT INTO windows VALUES (?, 'toy', 'd', 'select', 64, [0, 1], NULL, NULL, false, 8)",
        [2**63],
    )
    for feature in (0, 3):
        connection.execute(
            "INSERT INTO contexts VALUES (?, ?, 'score', 'sample', 1, ?, 0.1, [0, 2], [0.1, 1e-3], "
            "1.5, 2), (?, ?, 'select', 'top', 1, ?, 3.5, [1], [3.5], NULL, NULL)",
            [RES, feature, 2**64 - 1, RES, feature, 2**63],
        )
    for feature, text in LABELS.items():
        connection.execute(
            "UPDATE labels SET text = ?, author = ? WHERE label_id = ?",
            [text, text, f"{RES}:{feature}"],
        )
    connection.execute(
        f"""
        INSERT INTO saes (sae_id, model, site, layer, width)
        VALUES ('{NEURONS}', 'toy-gemma-2', 'mlp', 1, 4);
        INSERT INTO features (sae_id, feature, n_active, density)
        SELECT '{NEURONS}', i, 10, 0.01 FROM range(4) t(i);
        """
    )
    set_meta(connection, REVISION, "hostile")
    refresh_current_features(connection, whole=True)
    connection.close()
