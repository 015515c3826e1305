"""The tables of the database: the public contract, as numbered, append-only migrations.

A migration is never edited once released; a new one is added at the end. `meta` carries the
number of migrations applied as `schema_version`; a database with more of them than this code
knows was made by a newer version and is refused.
"""

from __future__ import annotations

from typing import NamedTuple

from .first_tables import FIRST_TABLES
from .label_in_force import LABEL_IN_FORCE
from .label_words import LABEL_WORDS


class Migration(NamedTuple):
    """One step of the schema; its number is its place in `MIGRATIONS`, counted from 1."""

    name: str
    sql: str


MIGRATIONS: tuple[Migration, ...] = (
    Migration("the first tables", FIRST_TABLES),
    Migration(
        "logits beside output tokens, and how often neighbours fire together",
        """
        -- In the order of top_tokens_positive and top_tokens_negative: the logit per unit of
        -- activation, with the final norm's gain folded in and its division left out.
        ALTER TABLE features ADD COLUMN top_logits_positive FLOAT[];
        ALTER TABLE features ADD COLUMN top_logits_negative FLOAT[];
        -- Tokens of the background in which both fire; NULL for cosine.
        ALTER TABLE neighbours ADD COLUMN n_together BIGINT;
        """,
    ),
    Migration(
        "the tokens at which a feature is strongest",
        """
        -- Of split explain, by falling mean activation; empty where none stands out. What the
        -- means and counts are of is said in label/top_tokens.py.
        ALTER TABLE features ADD COLUMN top_tokens VARCHAR[];
        ALTER TABLE features ADD COLUMN top_token_means FLOAT[];
        ALTER TABLE features ADD COLUMN top_token_counts BIGINT[];
        """,
    ),
    Migration(
        "what an SAE's reconstruction costs the model",
        """
        -- Mean next-token losses in nats, where they were asked for: the model's own, with the
        -- reconstruction in place of what the SAE reconstructs, and with zeros there.
        ALTER TABLE saes ADD COLUMN loss DOUBLE;
        ALTER TABLE saes ADD COLUMN loss_spliced DOUBLE;
        ALTER TABLE saes ADD COLUMN loss_zeroed DOUBLE;
        ALTER TABLE saes ADD COLUMN n_loss_tokens BIGINT;
        """,
    ),
    Migration(
        "what calls share, calls made again, and the journals they came from",
        """
        -- The first messages of requests, the same for all features, each once.
        CREATE TABLE prompt_parts (static_hash VARCHAR PRIMARY KEY, messages JSON);
        ALTER TABLE calls ADD COLUMN static_hash VARCHAR;  -- calls.request lacks these messages
        ALTER TABLE calls ADD COLUMN draw INTEGER;
        ALTER TABLE calls ADD COLUMN created_at TIMESTAMPTZ;
        -- A cached token of gpt-4o-mini in a batch costs 0.0000000375 dollars: ten decimals.
        ALTER TABLE calls ALTER COLUMN usd TYPE DECIMAL(38, 18);

        -- What was sent again, and paid again, though `calls` has one row a request: failures
        -- that were tried once more, and replies after the first.
        CREATE TABLE repeated_calls AS FROM calls LIMIT 0;

        -- A journal is absorbed once, by its name.
        CREATE TABLE journals (
            journal VARCHAR PRIMARY KEY,
            n_calls BIGINT,
            n_dropped BIGINT,        -- lines that were not whole, as after a kill
            absorbed_at TIMESTAMPTZ
        );
        """,
    ),
    Migration(
        "contexts that did not fit into a label's prompt",
        """
        DROP VIEW current_labels;
        -- Left out because the model takes no longer prompt; NULL where no model was asked.
        ALTER TABLE labels ADD COLUMN n_dropped_contexts INTEGER;

        -- As it was, now with that column.
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
        """,
    ),
    Migration(
        "batches at a provider, and the requests in them",
        """
        DROP TABLE batches;  -- nothing ever stood in it
        CREATE TABLE batches (
            batch_id VARCHAR PRIMARY KEY,  -- ours, which the batch carries at the provider
            provider_id VARCHAR,           -- NULL until the provider is known to have it
            state VARCHAR,                 -- prepared, then the provider's word; refused, given up
            endpoint VARCHAR,
            model VARCHAR,
            n_requests BIGINT,
            n_tokens BIGINT,               -- about as many as the provider counts as enqueued
            most_usd DECIMAL(38, 18),      -- what it costs at most; NULL: no price is known
            lacking JSON,                  -- what requests go without, as the endpoint lacks it
            prepared_at TIMESTAMPTZ,
            submitted_at TIMESTAMPTZ,
            ended_at TIMESTAMPTZ,          -- all that came of it is in the record; NULL: under way
            n_answered BIGINT,             -- requests that need not be asked again
            reason VARCHAR                 -- why it failed as a whole
        );
        CREATE TABLE batch_requests (
            batch_id VARCHAR,
            request_hash VARCHAR,
            outcome VARCHAR                -- answered, unanswered, not counted; NULL: under way
        );
        """,
    ),
    Migration(
        "what predictions were made for, and what judges made of gold items",
        """
        -- simulation, shuffled_label (under another feature's label) or screen.
        ALTER TABLE simulations ADD COLUMN scorer VARCHAR DEFAULT 'simulation';
        -- Mean share of the model's probability that lay on ratings; NULL where not known.
        ALTER TABLE simulations ADD COLUMN captured_mass DOUBLE;

        -- A judge's predictions for a feature that follows a known rule, in one run.
        CREATE TABLE gold_scores (
            simulator VARCHAR,
            gold_version VARCHAR,   -- hash of all items
            item VARCHAR,
            run_id VARCHAR,
            value DOUBLE,           -- the correlation from the item's own label
            reason VARCHAR,
            wrong_value DOUBLE,     -- and from another item's
            wrong_reason VARCHAR,
            n_windows BIGINT,
            n_failed BIGINT,
            failures JSON,          -- counted by reason
            silent_mean DOUBLE,     -- mean prediction in silence, of the judge's full scale
            captured_mass DOUBLE,
            scored_at TIMESTAMPTZ,
            PRIMARY KEY (simulator, item, run_id)
        );
        """,
    ),
    Migration(
        "what was labelled again and why, and scores that newer text has overtaken",
        """
        DROP VIEW current_labels;
        -- One more each time the feature is labelled again because its contexts had changed.
        ALTER TABLE labels ADD COLUMN generation INTEGER DEFAULT 0;
        ALTER TABLE labels ADD COLUMN why VARCHAR;        -- why it was made: store/wanted_labels.py
        -- Up to which text its contexts are what would be shown (a value of meta.merged_part);
        -- NULL where that was not recorded.
        ALTER TABLE labels ADD COLUMN text_state VARCHAR;
        -- Since when windows that it was taken on are no longer kept; NULL while all are.
        ALTER TABLE scores ADD COLUMN stale_since TIMESTAMPTZ;

        -- As it was, but of labels that nothing else tells apart the one of the newest contexts.
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
                        l.generation DESC,
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
            h.lift_reason,
            h.stale_since AS score_stale_since
        FROM chosen c
        LEFT JOIN (
            SELECT * FROM headline WHERE split = 'score'
            QUALIFY row_number() OVER (PARTITION BY label_id ORDER BY simulator) = 1
        ) h USING (label_id)
        WHERE place = 1;
        """,
    ),
    Migration(
        "who ran it",
        """
        -- The flow run on a Prefect server, of a server that has outlived the run maybe.
        ALTER TABLE runs ADD COLUMN flow_run_id VARCHAR;
        """,
    ),
    Migration(
        "what each run left in force, to compare the next one with",
        """
        -- A row where a run left a feature otherwise than the run before; never changed later.
        CREATE TABLE label_history (
            run_id VARCHAR,
            sae_id VARCHAR,
            feature INTEGER,
            label_id VARCHAR,        -- NULL: none is in force any more
            simulator VARCHAR,       -- NULL: not scored yet
            score DOUBLE,
            reason VARCHAR,          -- why there is no score though it was computed
            recorded_at TIMESTAMPTZ
        );
        -- As the runs before this table left it.
        INSERT INTO label_history
        SELECT run_id, sae_id, feature, label_id, simulator, score, score_reason,
            coalesce((SELECT max(coalesce(finished_at, started_at)) FROM runs), now())
        FROM current_labels;
        """,
    ),
    Migration(
        "a row for each feature as it stands, and labels by people who had seen `score`",
        """
        DROP VIEW current_labels;
        -- Whether who wrote it had looked at contexts of `score`; NULL: not a person, or not said.
        ALTER TABLE labels ADD COLUMN saw_score BOOLEAN;

        -- As it was, now with that column.
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
                        l.generation DESC,
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
            h.lift_reason,
            h.stale_since AS score_stale_since
        FROM chosen c
        LEFT JOIN (
            SELECT * FROM headline WHERE split = 'score'
            QUALIFY row_number() OVER (PARTITION BY label_id ORDER BY simulator) = 1
        ) h USING (label_id)
        WHERE place = 1;

        -- Made anew from the other tables whenever a state is published: current_features.py.
        CREATE TABLE current_features (
            sae_id VARCHAR,
            feature INTEGER,
            n_active BIGINT,
            density DOUBLE,
            max_activation FLOAT,
            label_id VARCHAR,          -- in force; NULL: none is
            text VARCHAR,
            explainer VARCHAR,
            model VARCHAR,
            source VARCHAR,
            author VARCHAR,
            created_at TIMESTAMPTZ,
            simulator VARCHAR,         -- of its headline on `score`, as in current_labels
            score DOUBLE,
            score_reason VARCHAR,
            ci_low DOUBLE,
            ci_high DOUBLE,
            null_value DOUBLE,
            lift DOUBLE,
            lift_ci_low DOUBLE,
            lift_ci_high DOUBLE,
            score_stale_since TIMESTAMPTZ,
            -- How far apart the label's places are, 0 to 1, among those of its SAE, explainer and
            -- simulator: by headline, and by mean AUROC of detection and fuzzing.
            disagreement DOUBLE,
            n_labels BIGINT,           -- proposed, in force or not
            n_failed BIGINT,
            failure VARCHAR,           -- why there is none in force, where one was tried
            n_up BIGINT,               -- votes on the label in force
            n_down BIGINT,
            n_same BIGINT,             -- other features of the SAE whose label says the same
            text_key UBIGINT,          -- equal for labels that say the same
            place INTEGER              -- from 0, by sae_id and feature; lists end with it
        );
        -- Whose rows there and here are to be made anew, since the state they were made of.
        CREATE TABLE touched_features (sae_id VARCHAR, feature INTEGER);
        CREATE TABLE headlines (
            sae_id VARCHAR,
            feature INTEGER,
            explainer VARCHAR,
            simulator VARCHAR,
            scorer VARCHAR,            -- simulation, or shuffled_label: under another's label
            value DOUBLE,
            null_value DOUBLE,
            lift DOUBLE
        );
        """,
    ),
    Migration("a label that nobody has compared is in force by its kind", LABEL_IN_FORCE),
    Migration(
        "the mean of what each SAE reconstructs",
        """
        -- Over the tokens that fvu was measured on; NULL where only an older version collected.
        ALTER TABLE saes ADD COLUMN mean_vector DOUBLE[];
        """,
    ),
    Migration("the words of labels, to be searched", LABEL_WORDS),
)

SCHEMA_VERSION = len(MIGRATIONS)
