"""Several labels for a feature, and a scripted model that tells the good ones: the best wins."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from scopenote.evaluate.scored_windows import few_windows

from .asking_runs import (
    ALL_CALLS,
    KEY,
    assert_the_ledger_is_the_servers,
    command,
    files_with_the_key,
    rows,
)
from .fake_openai import Answer, Asked, error, serve
from .planted_feature import make_contexts, make_stratum
from .rating_runs import (
    ACTIVE,
    N_DRAWS,
    N_FEATURES,
    NONSENSE,
    SILENT,
    SIMULATOR,
    runs_that_rate,
    write_and_rate,
)


def test_the_first_windows_still_stand_for_the_whole_stratum() -> None:
    active = make_stratum([[1], [2], [3]], [[1.0], [2.0], [3.0]], population=30, n_tokens=1)
    silent = make_stratum([[4], [5]], population=200, first_id=10, n_tokens=1)
    top = make_stratum([[3]] * 9, [[3.0]] * 9, n_tokens=1, first_id=2)
    whole = make_contexts(active, silent, top, split="score")
    few = few_windows(whole, 2, 60)
    assert few.active.windows.token_ids.tolist() == [[1], [2]]
    assert few.active.activations.tolist() == [[1.0], [2.0]]
    assert few.active.weights.sum() == whole.active.weights.sum() == 30
    assert len(few.silent) == 2
    assert few.silent.weights.sum() == 200
    assert len(few.top) == 5


@pytest.fixture
def asking(collected: Path, tmp_path: Path) -> Any:
    return runs_that_rate(collected, tmp_path, gold=False)


RIVALS = f"""
    SELECT l.feature, l.sae_id, l.label_id, l.text, s.value FROM labels l
    LEFT JOIN (
        FROM scores WHERE simulator = '{SIMULATOR}' AND split = 'select' AND metric = 'correlation'
    ) s USING (label_id)
    WHERE l.explainer = 'highlighted' AND l.status = 'done'
"""


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_of_several_labels_the_best_on_select_is_in_force_and_scored(asking: Any) -> None:
    with serve(write_and_rate, keeps_requests=False) as fake:
        run, config = asking(fake)
        explained = command("explain", run, "--config", config, key=KEY)
        assert explained.returncode == 0, explained.stderr
        n_explain = fake.n_asked
        little = command("score", run, "--budget-usd", "0.03", key=KEY)
        assert little.returncode == 1, little.stderr
        assert "The budget does not cover the next call." in little.stderr
        ((usd,),) = rows(run, f"SELECT sum(usd) FROM {ALL_CALLS}")
        assert 0.02 < usd <= Decimal("0.03")
        scored = command("score", run, key=KEY)
        assert scored.returncode == 0, scored.stderr
        assert "labels compared on `select`" in scored.stderr
        # A draw of a label is the same conversation again; a rating is asked for once.
        assert len(fake.sent_after_reply) == n_explain - len(
            rows(run, "SELECT DISTINCT request FROM calls WHERE purpose = 'explain'")
        )
        assert_the_ledger_is_the_servers(run, fake)
        n_asked = fake.n_asked
        again = command("score", run, key=KEY)
        assert "nothing to do" in again.stderr
        assert fake.n_asked == n_asked
    assert files_with_the_key(run) == []

    best: dict[tuple[str, int], tuple[float, str]] = {}
    n_rivals = 0
    for feature, sae_id, label_id, text, value in rows(run, RIVALS):
        n_rivals += 1
        if value is not None:
            assert text != NONSENSE, "what predicts the same everywhere has no correlation"
            best[sae_id, feature] = (value, label_id)
    assert n_rivals == N_FEATURES * N_DRAWS
    assert len(best) >= N_FEATURES / 2
    in_force = rows(
        run,
        "SELECT sae_id, feature, label_id, simulator, score, ci_low, ci_high, null_value "
        "FROM current_labels WHERE explainer = 'highlighted'",
    )
    chosen = {(sae_id, feature): row for sae_id, feature, *row in in_force}
    for feature_id, (_, best_id) in best.items():
        label_id, simulator, score, low, high, null = chosen[feature_id]
        assert label_id == best_id
        assert simulator == SIMULATOR
        assert None not in (score, low, high, null)
        assert low <= score <= high
    # The others are not scored where it is paid for without need.
    ((n_scored,),) = rows(
        run,
        f"SELECT count(DISTINCT label_id) FROM scores WHERE simulator = '{SIMULATOR}' "
        "AND split = 'score' AND scorer = 'simulation'",
    )
    assert n_scored == N_FEATURES
    # And some features under the label of another.
    shuffled = rows(
        run,
        f"SELECT label_id, value, reason, design->>'label_of' FROM scores "
        f"WHERE simulator = '{SIMULATOR}' AND scorer = 'shuffled_label'",
    )
    assert len(shuffled) >= 2
    own = {row[0]: row[2] for row in chosen.values()}
    assert all(other for *_, other in shuffled)
    assert all(reason for _, value, reason, _ in shuffled if value is None)
    wrong = [value or 0.0 for _, value, _, _ in shuffled]
    right = [own[label_id] for label_id, *_ in shuffled]
    assert sum(wrong) < sum(right)
    ((design,),) = rows(
        run,
        f"SELECT any_value(design) FROM scores WHERE simulator = '{SIMULATOR}' "
        "AND scorer = 'simulation' AND split = 'score' AND metric = 'correlation' "
        "AND value IS NOT NULL",
    )
    facts = json.loads(design)
    assert facts["captured_mass"] == pytest.approx(1.0)
    assert (facts["n_active_windows"], facts["n_silent_windows"]) == (ACTIVE, SILENT)


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_a_judge_that_refuses_the_key_stops_the_scoring(asking: Any) -> None:
    def refuses(asked: Asked) -> Answer:
        if "⟦label⟧\n" in asked.text:
            return error(401, "Incorrect API key", code="invalid_api_key")
        return write_and_rate(asked)

    with serve(refuses) as fake:
        run, config = asking(fake)
        assert command("explain", run, "--config", config, key=KEY).returncode == 0
        stopped = command("score", run, key=KEY)
        assert stopped.returncode == 2, stopped.stderr
        assert "the endpoint refuses the key" in stopped.stderr
    assert rows(run, f"SELECT count(*) FROM scores WHERE simulator = '{SIMULATOR}'") == [(0,)]


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_windows_without_a_reply_are_failures_until_they_are_asked_for_again(asking: Any) -> None:
    is_down = True

    def down_at_first(asked: Asked) -> Answer:
        if is_down and "⟦label⟧\n" in asked.text and int(asked.conversation, 16) % 4 == 0:
            return error(400, "not now")
        return write_and_rate(asked)

    failed = (
        f"SELECT count(*) FROM simulations WHERE simulator = '{SIMULATOR}' AND status = 'failed' "
        "AND reason = 'no reply from the model: bad request'"
    )
    with serve(down_at_first) as fake:
        run, config = asking(fake)
        assert command("explain", run, "--config", config, key=KEY).returncode == 0
        scored = command("score", run, key=KEY)
        assert scored.returncode == 3, scored.stderr
        ((n_failed,),) = rows(run, failed)
        assert n_failed > 50
        assert f"{n_failed:,} failed: windows to be rated: no reply" in scored.stderr
        is_down = False
        n_asked = fake.n_asked
        again = command("score", run, "--retry-failed", key=KEY)
        assert again.returncode == 0, again.stderr
        assert rows(run, failed) == [(0,)]
        assert fake.n_asked > n_asked
        assert_the_ledger_is_the_servers(run, fake)
    ((n_scored,),) = rows(
        run,
        f"SELECT count(*) FROM scores WHERE simulator = '{SIMULATOR}' AND split = 'score' "
        "AND scorer = 'simulation' AND metric = 'correlation'",
    )
    assert n_scored >= N_FEATURES
