"""A published database of any size, made up by DuckDB itself: a million features in a minute.

Every feature has its statistics, contexts, neighbours, labels with scores and some simulations;
numbers and words are drawn by hashes, so that the same size is always the same database.

    python tests/made_up_population.py RUN [--features N] [--width N] [--contexts N]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import duckdb
from scopenote.store.database import WORK, publish
from scopenote.store.facts import set_meta
from scopenote.store.schema import MIGRATIONS, SCHEMA_VERSION

_JUDGE = "chat/gpt-4o-mini"
_WORDS = [
    "names", "of", "numbers", "in", "code", "the", "end", "sentences", "legal", "terms", "French",
    "words", "for", "doubt", "imports", "quotations", "dates", "cities", "verbs", "about", "light",
    "errors", "questions", "after", "opening", "brackets", "music", "chemistry", "past", "tense",
]  # fmt: skip
_PIECES = 8000
_TOKENS = 64


def make_population(
    folder: Path,
    n_features: int,
    width: int = 16_384,
    contexts_each: int = 20,
    n_windows: int | None = None,
) -> None:
    """A run's folder with this many features in SAEs of this width.

    Args:
        folder: of the run; made if need be.
        n_features: in all SAEs together.
        width: of an SAE; the last one has what is left.
        contexts_each: contexts of a feature, over all splits.
        n_windows: that they are drawn from; by default one for every second feature.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with duckdb.connect(str(folder / WORK)) as connection:
        for migration in MIGRATIONS:
            connection.execute(migration.sql)
        # Without this the pieces of the tables lie in any order.
        connection.execute("SET preserve_insertion_order = true")
        _fill(connection, n_features, width, contexts_each, n_windows)
        set_meta(connection, "schema_version", str(SCHEMA_VERSION))
        set_meta(connection, "revision", "made up")
        publish(connection, folder)


def _fill(
    connection: duckdb.DuckDBPyConnection,
    n_features: int,
    width: int,
    contexts_each: int,
    n_windows: int | None,
) -> None:
    edges = [2.0**power for power in range(-4, 8)]
    set_meta(connection, "histogram_edges", json.dumps(edges))
    n_windows = n_windows or max(2000, n_features // 2)
    numbers = {
        "features": n_features,
        "width": width,
        "saes": -(-n_features // width),
        "windows": n_windows,
        "each": contexts_each,
        "words": _WORDS,
        "pieces": _PIECES,
        "tokens": _TOKENS,
        "judge": _JUDGE,
    }
    for statement in _STATEMENTS.split(";"):
        if statement.strip():
            used = {name: value for name, value in numbers.items() if f"${name}" in statement}
            connection.execute(statement, used)


# `u(n)` is a number from 0 to 1 by a hash; `id_of(n)` what an id looks like.
_STATEMENTS = """
CREATE TEMP MACRO u(x) AS (hash(x) >> 11) / 9007199254740992.0;
CREATE TEMP MACRO id_of(x) AS md5(x::VARCHAR);
CREATE TEMP MACRO phrase(x, words, n) AS array_to_string(
    list_transform(range(n), lambda i: words[1 + (hash(x * 17 + i) % len(words))::INTEGER]), ' ');

INSERT INTO pieces
SELECT 'toy', i, CASE WHEN i % 97 = 0 THEN chr(10) WHEN i % 3 = 0 THEN 'ed' || i
    ELSE ' ' || $words[1 + (i % len($words))] END, NULL
FROM range($pieces) t(i);

INSERT INTO saes (sae_id, model, site, layer, width, source, content_hash, mean_l0, fvu, n_tokens)
SELECT 'gemma-2-2b/' || (i // 3) || '-gemmascope-' || ['res', 'mlp', 'att'][1 + i % 3] || '-16k',
    'gemma-2-2b', ['res', 'mlp', 'att'][1 + i % 3], i // 3, $width, 'made up', id_of(i),
    40 + 60 * u(i), 0.1 + 0.3 * u(i + 1), 200000000
FROM range($saes) t(i);

CREATE TEMP TABLE numbered AS
SELECT i AS n, s.sae_id, (i % $width)::INTEGER AS feature, (u(i) ** 6) * 0.2 AS density
FROM range($features) t(i)
JOIN (SELECT *, row_number() OVER (ORDER BY rowid) - 1 AS k FROM saes) s ON s.k = i // $width
ORDER BY i;

INSERT INTO features BY NAME
SELECT sae_id, feature, (density * 2e8)::BIGINT AS n_active, density,
    (5 + 60 * u(n + 1)) AS max_activation, (1 + 4 * u(n + 2)) AS mean_activation,
    list_transform(range(12), lambda j: (density * 2e8 * exp(-j) / 2)::BIGINT) AS histogram,
    ['alpha', 'beta', 'gamma', 'delta', 'eps'] AS top_tokens_positive,
    ['one', 'two', 'three', 'four', 'five'] AS top_tokens_negative,
    [0.5, 0.4, 0.3, 0.2, 0.1] AS top_logits_positive,
    [-0.5, -0.4, -0.3, -0.2, -0.1] AS top_logits_negative,
    [' of', ' in'] AS top_tokens, [5.5, 2.5] AS top_token_means, [40, 12] AS top_token_counts
FROM numbered ORDER BY n;

INSERT INTO feature_splits
SELECT sae_id, feature, split::split_name, 1000000, (1e6 * density)::BIGINT, 66000000,
    (66e6 * density)::BIGINT, 1.0, 2.0, 0.5
FROM numbered, (VALUES ('explain'), ('select'), ('score')) t(split) ORDER BY n, split;

INSERT INTO neighbours
SELECT sae_id, feature, 'cosine', r, ((hash(n * 31 + r) % $width))::INTEGER, 1.0 / (1 + r), NULL
FROM numbered, range(1, 11) t(r) ORDER BY n, r;

INSERT INTO windows
SELECT hash(i), 'toy', 'document ' || (i // 8),
    ['explain', 'select', 'score'][1 + i % 3]::split_name, 64 * (i % 8),
    list_transform(range($tokens), lambda j: (hash(i * 64 + j) % $pieces)::INTEGER),
    list_transform(range(16), lambda j: (hash(i + j) % $pieces)::INTEGER), 1, i % 100 = 0, hash(i)
FROM range($windows) t(i) ORDER BY hash(i);

INSERT INTO contexts
SELECT sae_id, feature, ['explain', 'select', 'score'][1 + c % 3]::split_name,
    CASE WHEN c % 2 = 0 THEN 'top' ELSE 'sample' END, 1 + c // 6,
    hash((hash(n * 101 + c) % ($windows // 3))::BIGINT * 3 + c % 3),
    (5 + 60 * u(n + 1)) / (1 + c // 6),
    [7, 8, 20, 31]::UTINYINT[], [1.5, 4.5, 2.25, 0.5]::FLOAT[],
    CASE WHEN c % 2 = 1 THEN 12.5 END, CASE WHEN c % 2 = 1 THEN 1 END
FROM numbered, range($each) t(c) ORDER BY n, c;

INSERT INTO labels BY NAME
SELECT id_of(n * 4 + k) AS label_id, sae_id, feature, phrase(n * 4 + k, $words, 5) AS text,
    phrase(n * 4 + k + 1, $words, 15) AS explanation,
    ['token_lookup', 'highlighted'][1 + k] AS explainer, '1' AS prompt_version,
    CASE WHEN k = 1 THEN 'gpt-4o-mini' END AS model, 0 AS draw, 'auto' AS source,
    CASE WHEN n % 50 = 49 THEN 'failed' ELSE 'done' END AS status,
    CASE WHEN n % 50 = 49 THEN 'never active in explain' END AS reason,
    CASE WHEN k = 1 THEN id_of('r' || n) END AS request_hash,
    TIMESTAMPTZ '2026-11-21 05:00:00+00' AS created_at, 'r1' AS run_id, 'no label' AS why
FROM numbered, range(2) t(k) WHERE k = 0 OR n % 4 = 0 ORDER BY n, k;

INSERT INTO calls BY NAME
SELECT id_of('r' || n) AS request_hash, 'explain' AS purpose, 'gpt-4o-mini' AS model,
    '{"messages": [{"role": "user", "content": "' || phrase(n, $words, 200) || '"}]}' AS request,
    '{"text": "' || phrase(n, $words, 20) || '"}' AS reply, 1200 AS prompt_tokens,
    1000 AS cached_tokens, 60 AS completion_tokens, 0.00014 AS usd, 1.5 AS seconds, 1 AS attempts,
    TIMESTAMPTZ '2026-11-21 05:00:00+00' AS created_at, 0 AS draw
FROM numbered WHERE n % 4 = 0 ORDER BY n;

INSERT INTO scores BY NAME
SELECT label_id, scorer, CASE WHEN explainer = 'token_lookup' THEN 'token_lookup' ELSE $judge END
    AS simulator, metric, split::split_name AS split,
    CASE WHEN u(label_id || metric) > 0.03 THEN u(label_id || metric || split) ** 0.7 END AS value,
    CASE WHEN u(label_id || metric) <= 0.03 THEN 'too few active tokens' END AS reason,
    value - 0.05 AS ci_low, value + 0.05 AS ci_high, value * u(label_id) AS null_value,
    value - null_value AS lift, lift - 0.05 AS lift_ci_low, lift + 0.05 AS lift_ci_high,
    60 AS n_windows, 3840 AS n_tokens, '{}' AS design, 'h' AS contexts_hash, 'r1' AS run_id
FROM labels, (VALUES ('simulation', 'correlation', 'select'),
    ('simulation', 'correlation', 'score'), ('simulation', 'ev_correlation', 'score'),
    ('simulation', 'brier', 'score'), ('detection', 'auroc_silent', 'score'),
    ('fuzzing', 'auroc_silent', 'score'), ('shuffled_label', 'correlation', 'score'))
    t(scorer, metric, split)
WHERE status = 'done' AND (scorer = 'simulation' OR explainer <> 'token_lookup')
ORDER BY labels.rowid, scorer, metric, split;

INSERT INTO simulations BY NAME
SELECT label_id, $judge AS simulator, window_id,
    list_transform(range($tokens), lambda j: (hash(j) % 11)::FLOAT) AS predicted,
    'done' AS status, 'simulation' AS scorer
FROM labels JOIN contexts USING (sae_id, feature)
WHERE explainer <> 'token_lookup' AND labels.status = 'done' AND contexts.split = 'score'
    AND feature % 16 = 0
ORDER BY labels.rowid;

INSERT INTO label_contexts
SELECT label_id, window_id FROM labels JOIN contexts USING (sae_id, feature)
WHERE contexts.split = 'explain' AND explainer <> 'token_lookup' ORDER BY labels.rowid;

INSERT INTO runs (run_id, command, started_at, finished_at, status, config, version) VALUES
('r1', 'run', TIMESTAMPTZ '2026-11-21 04:00:00+00', TIMESTAMPTZ '2026-11-21 06:00:00+00',
 'done', '{}', '0.1.0');

INSERT INTO chunks SELECT i, 'c' || i, 256, 5000, 320000, 'p' FROM range(600) t(i)
"""


def main() -> None:
    """As a program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--features", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=16_384)
    parser.add_argument("--contexts", type=int, default=20)
    parser.add_argument("--windows", type=int)
    chosen = parser.parse_args()
    started = time.monotonic()
    make_population(chosen.run, chosen.features, chosen.width, chosen.contexts, chosen.windows)
    size = sum(file.stat().st_size for file in chosen.run.glob("scopenote.duckdb"))
    print(  # noqa: T201
        f"{chosen.features:,} features in {time.monotonic() - started:.0f} s, {size / 1e9:.2f} GB"
    )


if __name__ == "__main__":
    main()
