"""The tables that the first version had: the text of the first migration, never edited."""

from __future__ import annotations

FIRST_TABLES = """
CREATE TABLE meta (key VARCHAR PRIMARY KEY, value VARCHAR);

-- A number in each row instead of a string: a column of eleven million equal strings takes
-- seven tenths of a second to write, one of these a tenth.
CREATE TYPE split_name AS ENUM ('explain', 'select', 'score');

CREATE TABLE runs (
    run_id VARCHAR PRIMARY KEY,
    command VARCHAR,
    started_at TIMESTAMPTZ,
    finished_at TIMESTAMPTZ,
    status VARCHAR,      -- running, done, failed, interrupted
    config JSON,
    version VARCHAR,
    summary JSON         -- what it did: counts by stage, seconds, failures by reason
);

CREATE TABLE parts (part_id VARCHAR PRIMARY KEY, stage VARCHAR, absorbed_at TIMESTAMPTZ);

-- The corpus as cut into chunks; a chunk is absorbed once, by its id.
CREATE TABLE chunks (
    chunk BIGINT PRIMARY KEY,
    chunk_id VARCHAR,
    n_documents BIGINT,
    n_windows BIGINT,
    n_tokens BIGINT,
    part_id VARCHAR
);

CREATE TABLE saes (
    sae_id VARCHAR PRIMARY KEY,
    model VARCHAR,
    site VARCHAR,
    layer INTEGER,
    width INTEGER,
    source VARCHAR,
    content_hash VARCHAR,
    mean_l0 DOUBLE,      -- active features per token
    fvu DOUBLE,          -- fraction of variance unexplained, on a fixed part of the tokens
    n_tokens BIGINT
);

CREATE TABLE features (
    sae_id VARCHAR,
    feature INTEGER,
    n_active BIGINT,
    density DOUBLE,          -- active tokens per token, all splits
    max_activation FLOAT,
    mean_activation DOUBLE,  -- over active tokens
    histogram BIGINT[],      -- active tokens by activation; edges in meta.histogram_edges
    top_tokens_positive VARCHAR[],
    top_tokens_negative VARCHAR[]
);

CREATE TABLE feature_splits (
    sae_id VARCHAR,
    feature INTEGER,
    split split_name,
    n_windows BIGINT,         -- all windows of the split, copies counted
    n_active_windows BIGINT,  -- those in which the feature fires, copies counted
    n_tokens BIGINT,
    n_active BIGINT,
    sum DOUBLE,
    sum_sq DOUBLE,
    sample_threshold DOUBLE   -- share of the hash range the kept sample covers
);

CREATE TABLE neighbours (
    sae_id VARCHAR,
    feature INTEGER,
    kind VARCHAR,
    rank INTEGER,
    neighbour INTEGER,
    value DOUBLE
);

CREATE TABLE windows (
    window_id UBIGINT,
    tokenizer VARCHAR,
    doc_id VARCHAR,
    split split_name,
    start BIGINT,             -- tokens of the document before it
    token_ids INTEGER[],
    prefix_token_ids INTEGER[],
    copies BIGINT,            -- of these token ids in the split; known for the background
    is_background BOOLEAN,
    token_hash UBIGINT
);

CREATE TABLE pieces (tokenizer VARCHAR, token_id INTEGER, text VARCHAR, bytes BLOB);

CREATE TABLE contexts (
    sae_id VARCHAR,
    feature INTEGER,
    split split_name,
    kind VARCHAR,             -- top, sample
    rank INTEGER,             -- from 1
    window_id UBIGINT,
    max_activation FLOAT,
    positions UTINYINT[],
    activations FLOAT[],
    weight DOUBLE,            -- windows it stands for; NULL for top
    copies BIGINT             -- active occurrences of these token ids; NULL for top
);

CREATE TABLE background (
    sae_id VARCHAR,
    feature INTEGER,
    window_id UBIGINT,
    positions UTINYINT[],
    activations FLOAT[],
    split split_name
);

CREATE TABLE labels (
    label_id VARCHAR PRIMARY KEY,
    sae_id VARCHAR,
    feature INTEGER,
    text VARCHAR,
    explanation VARCHAR,
    explainer VARCHAR,
    prompt_version VARCHAR,
    model VARCHAR,
    request_hash VARCHAR,
    draw INTEGER,
    source VARCHAR,           -- auto, human, imported
    author VARCHAR,
    status VARCHAR,           -- done, failed
    reason VARCHAR,
    created_at TIMESTAMPTZ,
    run_id VARCHAR
);

CREATE TABLE label_contexts (label_id VARCHAR, window_id UBIGINT);

CREATE TABLE votes (label_id VARCHAR, author VARCHAR, vote INTEGER, voted_at TIMESTAMPTZ);

CREATE TABLE embeddings (label_id VARCHAR, model VARCHAR, vector FLOAT[]);

CREATE TABLE batches (batch_id VARCHAR PRIMARY KEY, provider_id VARCHAR, state VARCHAR);

CREATE TABLE scores (
    label_id VARCHAR,
    scorer VARCHAR,
    simulator VARCHAR,
    metric VARCHAR,
    split split_name,
    value DOUBLE,
    reason VARCHAR,
    ci_low DOUBLE,
    ci_high DOUBLE,
    null_value DOUBLE,
    lift DOUBLE,
    lift_ci_low DOUBLE,
    lift_ci_high DOUBLE,
    lift_reason VARCHAR,
    n_windows BIGINT,
    n_tokens BIGINT,
    design JSON,
    contexts_hash VARCHAR,
    run_id VARCHAR,
    PRIMARY KEY (label_id, scorer, simulator, metric, split)
);

CREATE TABLE simulations (
    label_id VARCHAR,
    simulator VARCHAR,
    window_id UBIGINT,
    predicted FLOAT[],
    status VARCHAR,
    reason VARCHAR
);

CREATE TABLE calls (
    request_hash VARCHAR PRIMARY KEY,
    purpose VARCHAR,
    model VARCHAR,
    request JSON,
    reply JSON,
    prompt_tokens BIGINT,
    cached_tokens BIGINT,
    completion_tokens BIGINT,
    usd DECIMAL(18, 9),
    seconds DOUBLE,
    attempts INTEGER,
    error VARCHAR
);

-- Human before automatic, then the best headline on `select`; never by a `score` figure.
CREATE VIEW current_labels AS
WITH headline AS (
    SELECT * FROM scores WHERE scorer = 'simulation' AND metric = 'correlation'
),
chosen AS (
    SELECT
        l.*,
        row_number() OVER (
            PARTITION BY l.sae_id, l.feature
            ORDER BY
                (l.source = 'human') DESC,
                CASE WHEN l.source = 'human' THEN l.created_at END DESC NULLS LAST,
                s.value DESC NULLS LAST,
                l.explainer,
                l.label_id
        ) AS place
    FROM labels l
    LEFT JOIN (
        SELECT label_id, max(value) AS value FROM headline
        WHERE split = 'select' GROUP BY ALL
    ) s USING (label_id)
    WHERE l.status = 'done'
)
SELECT
    c.* EXCLUDE (place),
    h.simulator,
    h.value AS score,
    h.reason AS score_reason,
    h.ci_low,
    h.ci_high,
    h.null_value,
    h.lift,
    h.lift_ci_low,
    h.lift_ci_high,
    h.lift_reason
FROM chosen c
LEFT JOIN (
    SELECT * FROM headline WHERE split = 'score'
    QUALIFY row_number() OVER (PARTITION BY label_id ORDER BY simulator) = 1
) h USING (label_id)
WHERE place = 1;
"""
