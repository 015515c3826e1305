"""Which label of a feature is in force: the text of a migration, never edited.

A person's label comes before all others, then the one that scores best on `select`. Among those
that nobody has compared an imported one comes last, since it would put a label without a score in
the place of one that may have one; and the token lookup's, which is the baseline, after ours in
words. Their names, by which they were in order before, say nothing.
"""

from __future__ import annotations

LABEL_IN_FORCE = """
DROP VIEW current_labels;
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
                (l.source = 'imported'),
                (l.explainer = 'token_lookup'),
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
"""
