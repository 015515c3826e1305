"""Judges of all kinds over a whole run: what each is asked, what comes of it, what is kept."""

from __future__ import annotations

import importlib.resources
import json
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pytest

from .asking_runs import ALL_CALLS, KEY, assert_the_ledger_is_the_servers, command, rows
from .fake_openai import Answer, Asked, error, refusal, reply, serve
from .rating_runs import (
    N_FEATURES,
    by_gold_rule,
    runs_that_rate,
    says_gold_rule,
    write_and_rate,
)
from .test_vllm_simulator import in_vllm_form

OPINIONS = ("detection", "fuzzing", "discrimination")
ALL_SCORES = "SELECT * EXCLUDE (run_id) FROM scores ORDER BY ALL"
# In these windows share calls.
EXAMS = ("detection", "fuzzing")
# All labels are good: the one draw that there is names the strongest token.
ALWAYS_GOOD = {"candidates": 1}


@pytest.fixture
def asking(collected: Path, tmp_path: Path) -> Any:
    return runs_that_rate(collected, tmp_path, **ALWAYS_GOOD)


def good_labels(asked: Asked) -> Answer:
    while asked.times_before != int(asked.conversation, 16) % 3:
        asked = Asked(
            asked.body, asked.headers, asked.text, asked.conversation, (asked.times_before + 1) % 3
        )
    return write_and_rate(asked)


def make_neighbours(run: Path) -> None:
    """Features near the labelled ones, as if by their decoder rows: labelled ones first."""
    for database in ("work.duckdb", "scopenote.duckdb"):
        with duckdb.connect(str(run / database)) as connection:
            connection.execute(
                """
                WITH labelled AS (SELECT DISTINCT sae_id, feature FROM labels)
                INSERT INTO neighbours BY NAME
                SELECT l.sae_id, l.feature, 'cosine' AS kind, 0.5 AS value,
                    f.feature AS neighbour, row_number() OVER (
                        PARTITION BY l.sae_id, l.feature
                        ORDER BY other.feature IS NULL, f.n_active DESC
                    ) AS rank
                FROM labelled l
                JOIN features f ON f.sae_id = l.sae_id AND f.feature <> l.feature
                LEFT JOIN labelled other
                    ON other.sae_id = f.sae_id AND other.feature = f.feature
                QUALIFY rank <= 10
                """
            )


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
def test_second_opinions_and_gold_items_stand_beside_the_score(asking: Any) -> None:
    with serve(good_labels, keeps_requests=False) as fake:
        run, config = asking(fake, second_opinions=OPINIONS, opinion_windows=9, shuffled_labels=0)
        assert command("explain", run, "--config", config, key=KEY).returncode == 0
        make_neighbours(run)
        scored = command("score", run, key=KEY)
        assert scored.returncode == 0, scored.stderr
        assert_the_ledger_is_the_servers(run, fake)
        n_asked = fake.n_asked
        again = command("score", run, key=KEY)
        assert "nothing to do" in again.stderr
        before = rows(run, ALL_SCORES)
        with duckdb.connect(str(run / "work.duckdb")) as work:
            work.execute("UPDATE scores SET value = 0.5, ci_low = -1 WHERE scorer = 'fuzzing'")
        recomputed = command("score", run, "--recompute")
        assert recomputed.returncode == 0, recomputed.stderr
        assert rows(run, ALL_SCORES) == before
        # What would be asked otherwise now is not on record, and stays as it was.
        config.write_text(config.read_text().replace("opinion_windows = 9", "opinion_windows = 8"))
        otherwise = command("score", run, "--config", config, "--recompute")
        assert "about other windows than `score.chat` says now" in otherwise.stderr
        assert fake.n_asked == n_asked
    assert [row for row in rows(run, ALL_SCORES) if row[1] in EXAMS] == [
        row for row in before if row[1] in EXAMS
    ]

    assert "on features that are known (gold" in scored.stderr
    purposes = dict(rows(run, f"SELECT purpose, count(*) FROM {ALL_CALLS} GROUP BY purpose"))
    assert set(purposes) == {"explain", "simulate", "gold", *OPINIONS}
    assert purposes["gold"] == 96
    found = rows(
        run,
        "SELECT scorer, metric, value, reason, null_value, n_windows FROM scores "
        "WHERE simulator = 'chat/gpt-4o-mini' AND scorer <> 'simulation'",
    )
    assert Counter(scorer for scorer, *_ in found) == {
        "detection": 6 * N_FEATURES,
        "fuzzing": 6 * N_FEATURES,
        "discrimination": 3 * N_FEATURES,
    }
    assert all(reason for *_, value, reason, _, _ in found if value is None)
    by_metric: dict[tuple[str, str], list[float]] = {}
    for scorer, metric, value, *_ in found:
        if value is not None:
            by_metric.setdefault((scorer, metric), []).append(value)
    for key in (("detection", "auroc_random"), ("fuzzing", "auroc_random")):
        assert sum(by_metric[key]) / len(by_metric[key]) > 0.5
    assert by_metric["detection", "auroc_near_miss"]
    gold = rows(run, "SELECT item, value, reason, n_failed, run_id FROM gold_scores")
    assert len(gold) == 8
    assert all(n_failed == 0 for *_, n_failed, _ in gold)
    page = command("status", run)
    assert "Second opinions" in page.stdout
    assert "Gold items" in page.stdout
    shown = json.loads(command("status", run, "--json").stdout)
    assert {row["scorer"] for row in shown["opinions"]} == set(OPINIONS)
    assert shown["gold"][0]["drift"]["n_runs"] == 0


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
def test_each_run_asks_the_gold_items_anew_and_notices_another_judge(asking: Any) -> None:
    is_worse = False

    def may_change(asked: Asked) -> Answer:
        is_rating = asked.body["messages"][0]["content"].startswith("You predict")
        if is_rating and says_gold_rule(asked.text) and not is_worse:
            return by_gold_rule(asked)
        return good_labels(asked)

    with serve(may_change) as fake:
        run, config = asking(fake, shuffled_labels=0)
        assert command("explain", run, "--config", config, key=KEY).returncode == 0
        first = command("score", run, key=KEY)
        assert first.returncode == 0, first.stderr
        assert "chat/gpt-4o-mini scores 1.00" in first.stderr
        is_worse = True
        more = config.read_text().replace(
            f"features = {N_FEATURES}", f"features = {N_FEATURES + 2}"
        )
        config.write_text(more)
        assert command("explain", run, "--config", config, key=KEY).returncode == 0
        second = command("score", run, key=KEY)
        assert second.returncode == 4, second.stderr
    assert "is not the judge it was" in second.stderr
    assert rows(run, "SELECT count(DISTINCT run_id), count(*) FROM gold_scores") == [(2, 16)]
    assert rows(run, "SELECT count(*) FROM calls WHERE purpose = 'gold'") == [(192,)]
    assert "is not the judge it was" in command("status", run).stdout


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
def test_many_windows_a_call_and_a_screen_made_of_them(asking: Any) -> None:
    with serve(good_labels, keeps_requests=False) as fake:
        run, config = asking(
            fake,
            ("chat", "chat_sparse"),
            screen="chat_sparse",
            screened_windows=48,
            shuffled_labels=2,
            gold=False,
        )
        assert command("explain", run, "--config", config, key=KEY).returncode == 0
        scored = command("score", run, key=KEY)
        assert scored.returncode == 0, scored.stderr
        assert_the_ledger_is_the_servers(run, fake)
        before = rows(run, ALL_SCORES)
        n_asked = fake.n_asked
        assert command("score", run, "--recompute").returncode == 0
        assert fake.n_asked == n_asked
    assert rows(run, ALL_SCORES) == before
    headlines = rows(
        run,
        "SELECT simulator, count(*), count(value), any_value(design->>'screen') FROM scores "
        "WHERE scorer = 'simulation' AND metric = 'correlation' AND split = 'score' "
        "AND simulator <> 'token_lookup' GROUP BY simulator ORDER BY simulator",
    )
    assert [(name, n) for name, n, *_ in headlines] == [
        ("chat/gpt-4o-mini", N_FEATURES),
        ("chat_sparse/gpt-4o-mini", N_FEATURES),
    ]
    assert {screen for *_, screen in headlines} == {"chat_sparse/gpt-4o-mini"}
    assert all(n_defined >= N_FEATURES / 2 for _, _, n_defined, _ in headlines)
    # What both say of the same labels is much the same, at a fraction of the calls.
    values = rows(
        run,
        "SELECT list(value ORDER BY simulator) FROM scores WHERE scorer = 'simulation' "
        "AND metric = 'correlation' AND split = 'score' AND value IS NOT NULL "
        "GROUP BY label_id HAVING count(*) = 2",
    )
    assert values
    assert all(abs(dense - sparse) < 0.35 for ((dense, sparse),) in values)
    screened = rows(run, "SELECT count(*) FROM simulations WHERE scorer = 'screen'")
    assert screened[0][0] > 40 * N_FEATURES


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
def test_questions_without_an_answer_are_failures_that_can_be_asked_again(asking: Any) -> None:
    is_down = True

    def down_at_first(asked: Asked) -> Answer:
        if is_down and asked.body["messages"][0]["content"].startswith("You say which stretches"):
            return error(400, "not now")
        return good_labels(asked)

    undefined = "SELECT count(*) FROM scores WHERE scorer = 'detection' AND value IS NULL"
    with serve(down_at_first) as fake:
        run, config = asking(
            fake, second_opinions=["detection"], opinion_windows=9, shuffled_labels=0, gold=False
        )
        assert command("explain", run, "--config", config, key=KEY).returncode == 0
        command("score", run, key=KEY)
        assert rows(run, undefined) == [(6 * N_FEATURES,)]
        is_down = False
        again = command("score", run, "--retry-failed", key=KEY)
        assert again.returncode == 0, again.stderr
    # The collected run has no neighbours.
    assert rows(run, undefined) == [(3 * N_FEATURES,)]


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
def test_a_model_that_only_reads_judges_without_a_call(collected: Path, tmp_path: Path) -> None:
    toy = importlib.resources.files("scopenote.extract.toy").joinpath("toy-gemma-2")
    with serve(good_labels) as fake:
        run, config = runs_that_rate(collected, tmp_path, **ALWAYS_GOOD)(fake)
        assert command("explain", run, "--config", config, key=KEY).returncode == 0
        n_asked = fake.n_asked
        judged = config.read_text().split("[score]")[0]
        config.write_text(
            f"""{judged}
            [score]
            simulators = ["local"]
            [score.chat]
            model = {json.dumps(str(toy))}
            local = true
            active_windows = 5
            silent_windows = 6
            shuffled_labels = 0
            concurrency = 4
            """
        )
        scored = command("score", run, "--config", config)
        assert scored.returncode == 0, scored.stderr
        assert fake.n_asked == n_asked
    name = f"local/{toy}"
    assert f"{name} scores" in scored.stderr or f"{name} gives no score" in scored.stderr
    headlines = rows(
        run,
        "SELECT value, reason, design->>'captured_mass' FROM scores WHERE simulator = "
        f"'{name}' AND scorer = 'simulation' AND metric = 'correlation' AND split = 'score'",
    )
    assert len(headlines) == N_FEATURES
    assert all(value is not None or reason for value, reason, _ in headlines)
    assert all(0 < float(mass) <= 1 for *_, mass in headlines)
    kept = rows(
        run,
        f"SELECT count(*), min(len(predicted)) FROM simulations WHERE simulator = '{name}' "
        "AND status = 'done'",
    )
    assert kept[0][0] >= 11 * N_FEATURES
    assert rows(run, "SELECT count(*) FROM calls WHERE purpose <> 'explain'") == [(0,)]
    assert rows(run, "SELECT count(*) FROM gold_scores") == [(8,)]


# By how a conversation's hash falls: what is answered, and what the window's failure then says.
BAD = {
    0: ("no lines at all, sorry", "some tokens have no rating"),
    1: ("1\t3\n", "some tokens have no rating"),
    2: ("".join(f"{n}\t12\n" for n in range(1, 65)), "some tokens have no rating"),
    3: ("".join(f"{n}\t0\n{n}\t7\n" for n in range(1, 65)), "some tokens have no rating"),
    4: ("".join(f"{n}\t0\n" for n in range(1000, 1065)), "some tokens have no rating"),
    5: (None, "the model declined to answer"),
}


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_replies_that_cannot_be_used_are_recorded_and_counted_and_never_zero(asking: Any) -> None:
    def often_bad(asked: Asked) -> Answer:
        first = asked.body["messages"][1]["content"]
        kind = zlib.crc32(first.encode()) % 12
        if not asked.body["messages"][0]["content"].startswith("You predict") or kind not in BAD:
            return good_labels(asked)
        text, _ = BAD[kind]
        return refusal() if text is None else reply(text, 10, 0, 10)

    with serve(often_bad) as fake:
        run, config = asking(fake, gold=False, shuffled_labels=0)
        assert command("explain", run, "--config", config, key=KEY).returncode == 0
        scored = command("score", run, key=KEY)
        assert scored.returncode == 3, scored.stderr
        assert_the_ledger_is_the_servers(run, fake)
    failed = dict(
        rows(
            run,
            "SELECT reason, count(*) FROM simulations WHERE status = 'failed' GROUP BY reason",
        )
    )
    assert set(failed) == {reason for _, reason in BAD.values()}
    assert min(failed.values()) > 10
    for reason, n in failed.items():
        assert f"{n:,} failed: windows to be rated: {reason}" in scored.stderr
    unrated = "SELECT count(*) FROM simulations WHERE status = 'failed' AND predicted IS NOT NULL"
    assert rows(run, unrated) == [(0,)]
    # Each bad reply is on record as it came, the second attempt at it too.
    for text, _ in BAD.values():
        if text is not None:
            found = f"SELECT count(*) FROM calls WHERE reply->>'text' = '{text}'"
            assert rows(run, found)[0][0] >= 10
    designs = rows(
        run,
        "SELECT (design->>'n_failed_windows')::INT, value, reason FROM scores "
        "WHERE metric = 'correlation' AND split = 'score' AND simulator LIKE 'chat/%'",
    )
    assert sum(n for n, *_ in designs) > 20
    assert all(value is not None or reason for _, value, reason in designs)


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
def test_a_vllm_server_judges_by_the_probabilities_of_its_prompt(asking: Any) -> None:
    def served(asked: Asked) -> Answer:
        if "prompt_logprobs" not in asked.body:
            return good_labels(asked)
        label = asked.body["messages"][1]["content"].split("⟦label⟧\n")[1].split("\n⟦end")[0]

        def shares(line: str) -> dict[int, float]:
            return {9: 0.8, 3: 0.1} if line.split("\t")[1].strip() in label.split() else {0: 0.9}

        return in_vllm_form(asked, shares=shares)

    with serve(served, keeps_requests=False) as fake:
        run, config = asking(
            fake, ("vllm",), shuffled_labels=0, gold=False, active_windows=6, silent_windows=6
        )
        assert command("explain", run, "--config", config, key=KEY).returncode == 0
        scored = command("score", run, key=KEY)
        assert scored.returncode == 0, scored.stderr
        assert_the_ledger_is_the_servers(run, fake)
    found = rows(
        run,
        "SELECT value, reason, (design->>'captured_mass')::DOUBLE FROM scores WHERE simulator = "
        "'vllm/gpt-4o-mini' AND metric = 'correlation' AND split = 'score'",
    )
    assert len(found) == N_FEATURES
    assert sum(value is not None and value > 0 for value, *_ in found) >= N_FEATURES / 2
    assert all(0.85 < mass < 0.95 for *_, mass in found)
    ((longest,),) = rows(
        run, "SELECT max(strlen(reply::VARCHAR)) FROM calls WHERE purpose = 'simulate_vllm'"
    )
    assert longest < 20_000, "only the digits' log probabilities are kept"
