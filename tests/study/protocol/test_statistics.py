"""The protocol's numbers against closed forms and libraries, and every rule of the verdict."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import ttost_paired

from qkv_jax.study.protocol import inference, summary
from qkv_jax.study.protocol.inference import Level
from qkv_jax.study.protocol.selection import choose_rates, extension_needed
from qkv_jax.study.protocol.summary import COLUMNS, evaluations
from qkv_jax.study.protocol.verdicts import Verdict
from qkv_jax.study.record import ArmRecord, StudyRecord, TaskRecord
from qkv_jax.study.report import headlines, sentences, tables, wording
from qkv_jax.study.report.methods import protocol
from qkv_jax.tasks.base import Outcome

GRID = [1e-3, 2e-3, 4e-3, 8e-3]
SEEDS = list(range(100, 106))


def make_study(arms=("separate", "placebo", "K=V"), seeds=SEEDS, **fields):
    """A record of one task; `fields` are of it or of its outcome."""
    outcome = {"kind": "mean", "metric": "loss", "unit": "nats", "margin": 0.1}
    outcome |= {"failure_value": 9.0}
    outcome |= {f.name: fields.pop(f.name) for f in dataclasses.fields(Outcome) if f.name in fields}
    task = TaskRecord(
        title="t", description="", outcome=Outcome(**outcome), steps=1000, arms=tuple(arms),
        family="task", family_title="t", **({"learning_rates": tuple(GRID)} | fields),
    )  # fmt: skip
    roles = {"separate": "baseline", "placebo": "placebo"}
    return StudyRecord(
        name="made up", baseline="separate", placebo="placebo", alpha=0.05, looks=(len(seeds),),
        tune_seeds=(0, 1), eval_seeds=tuple(seeds), tasks={"task": task}, wave={}, claims={},
        arms={arm: ArmRecord(arm, roles.get(arm, "arm")) for arm in arms}, config={},
    )  # fmt: skip


def rows(arm, phase, rate, values, seeds, status=None, steps=None):
    count = len(values)
    return pd.DataFrame(
        {
            "task": "task", "arm": arm, "phase": phase, "learning_rate": rate, "seed": list(seeds),
            "status": status or ["done"] * count, "metric": "loss",
            "value": np.asarray(values, float), "steps": 1000, "seconds": 1.0,
            "steps_to_solve": np.full(count, np.nan) if steps is None else steps,
        }
    )  # fmt: skip


def tuned(arm, means, rates=GRID, **kwargs):
    return [rows(arm, "tune", r, [m - 0.01, m + 0.01], [0, 1], **kwargs)
            for r, m in zip(rates, means, strict=True)]  # fmt: skip


def make_runs(scores, rate=2e-3, seeds=SEEDS, tune=(0.5, 0.1, 0.3, 0.9), status=None, steps=None):
    """Runs where every arm is best at `rate` and its evaluation scores are `scores[arm]`."""
    tables = []
    for arm, values in scores.items():
        tables += tuned(arm, tune)
        tables.append(
            rows(arm, "eval", rate, values, seeds[: len(values)], (status or {}).get(arm),
                 (steps or {}).get(arm))
        )  # fmt: skip
    return pd.concat(tables, ignore_index=True)


def scores(*shifts, sd=0.02, n=6, seed=0, arms=("separate", "placebo", "K=V")):
    noise = np.random.default_rng(seed).normal(0, sd, (len(arms), n))
    return {arm: 1 + shift + e for arm, shift, e in zip(arms, shifts, noise, strict=True)}


def worse_at_one_percent():
    """Two arms whose paired t is 4.0 with 5 degrees of freedom: p = 0.0103."""
    base = scores(0, arms=("separate",))["separate"]
    z = np.array([-1.2, -0.7, -0.1, 0.3, 0.6, 1.1])
    return {"separate": base, "K=V": base + 0.02 * (4 / np.sqrt(6) + z / z.std(ddof=1))}


def summarise(*args, **kwargs):
    """The summary with verdicts and notes as summary.csv has them."""
    table = summary.summarise(*args, **kwargs)
    for cell in table.verdict:
        assert Verdict.read(str(cell)) == cell
    return table.assign(verdict=table.verdict.map(str), note=table.note.map(str))


def verdict(record, runs, arm="K=V", **kwargs):
    return summarise(record, runs, **kwargs).set_index("arm").loc[arm]


# --- the numbers are those of the libraries -------------------------------------------------


def test_mean_row_equals_scipy_and_statsmodels():
    """Interval, paired t-test, TOST and both Holm corrections, each against its library."""
    arms = ("separate", "placebo", "K=V", "Q=K", "Q=V")
    data = scores(0, 0.01, 0.05, -0.03, 0.2, sd=0.04, arms=arms)
    table = summarise(make_study(arms), make_runs(data)).set_index("arm")
    tests = {a: stats.ttest_rel(data[a], data["separate"]) for a in arms[1:]}
    tost = [ttost_paired(data[a], data["separate"], -0.1, 0.1)[0] for a in arms[1:]]
    p_holm = multipletests([t.pvalue for t in tests.values()], method="holm")[1]
    p_tost = multipletests(tost, method="holm")[1]
    assert list(table.columns) == [c for c in COLUMNS if c != "arm"]
    np.testing.assert_allclose(table.p_value[1:], [t.pvalue for t in tests.values()], rtol=1e-9)
    np.testing.assert_allclose(table.p_holm[1:].astype(float), p_holm, rtol=1e-9)
    np.testing.assert_allclose(table.p_equivalence[1:].astype(float), p_tost, rtol=1e-9)
    for arm, test in tests.items():
        row = table.loc[arm]
        plain, wide = test.confidence_interval(0.95), test.confidence_interval(1 - 0.025 / 4)
        np.testing.assert_allclose([row.delta_low, row.delta_high], plain, rtol=1e-9)
        np.testing.assert_allclose(
            [row.delta_low_simultaneous, row.delta_high_simultaneous], wide, rtol=1e-9
        )
        own = stats.ttest_1samp(data[arm], 0).confidence_interval(0.95)
        np.testing.assert_allclose([row.ci_low, row.ci_high], own, rtol=1e-9)
        assert row.delta == pytest.approx(np.mean(data[arm] - data["separate"]))
        assert row.sd == pytest.approx(np.std(data[arm] - data["separate"], ddof=1))


@settings(max_examples=15, deadline=None)  # each costs a garbage collection
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_equals_statsmodels(p):
    np.testing.assert_allclose(inference.holm(p), multipletests(p, method="holm")[1])


def test_a_test_that_could_not_be_made_stays_in_the_family():
    np.testing.assert_allclose(inference.holm([0.01, np.nan]), [0.02, np.nan])


def test_constant_differences_use_barnards_exact_test():
    """One arm always 1, the other always 0: no t-test; p is scipy's Barnard test of n to 0."""
    level = Level.of_analysis(0.05, 1)
    result = inference.compare_means(
        np.zeros((1, 6)), np.ones(6), margin=0.1, level=level, higher_is_better=True
    )
    barnard = stats.barnard_exact([[6, 0], [0, 6]], pooled=True)
    assert result["p_value"][0] == pytest.approx(barnard.pvalue, rel=1e-3)
    assert str(result["verdict"][0]) == "worse"
    assert np.isnan(result["delta_low"][0]) and np.isnan(result["p_equivalence"][0])
    # With arms that vary together the constant difference has the sign test only: no verdict.
    base = np.array([1.0, 2, 3, 5, 8, 13])
    result = inference.compare_means(
        base[None] + 1, base, margin=0.1, level=level, higher_is_better=True
    )
    assert result["p_value"][0] == pytest.approx(stats.binomtest(6, 6).pvalue)
    assert str(result["verdict"][0]) == "undecided"


def test_sampling_error_is_that_of_the_seed_averaged_difference():
    rng = np.random.default_rng(0)
    arm, base = rng.normal(size=(2, 6, 50))
    expected = stats.sem((arm - base).mean(0))
    assert inference.sampling_error(arm, base) == pytest.approx(expected)
    arm[2] = np.nan  # a diverged run: left out of both
    keep = [0, 1, 3, 4, 5]
    expected = stats.sem((arm - base)[keep].mean(0))
    assert inference.sampling_error(arm, base) == pytest.approx(expected)
    assert np.isnan(inference.sampling_error(None, base))
    assert np.isnan(inference.sampling_error(arm, base[:, :-1]))


def test_seeds_to_decide_is_the_smallest_sufficient_number():
    """At the number given the adjusted half-width is within the margin, one seed less it is not."""
    text = inference.seeds_to_decide(0.05, 6, 0.1, family=3, alpha=0.0125)
    sd = 0.05 * np.sqrt(5 / stats.chi2.ppf(0.2, 5))

    def half(n):
        return stats.t.ppf(1 - 0.0125 / 6, n - 1) * sd / np.sqrt(n)

    assert half(int(text)) <= 0.1 < half(int(text) - 1)
    assert inference.seeds_to_decide(5.0, 6, 0.1, 3, 0.0125) == ">100"
    assert inference.seeds_to_decide(0.0, 6, 0.1, 3, 0.0125) == ""


# --- verdicts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shift, sd, expected",
    [(0.0, 0.02, "equivalent"), (0.5, 0.02, "worse"), (-0.5, 0.02, "better"),
     (0.1, 0.2, "undecided")],
)  # fmt: skip
def test_verdict_words(shift, sd, expected):
    table = summarise(make_study(), make_runs(scores(0, 0, shift, sd=sd))).set_index("arm")
    assert table.verdict["K=V"] == expected
    assert table.verdict["separate"] == "baseline" and np.isnan(table.delta["separate"])
    assert (table.seeds_to_decide["K=V"] != "") == (expected == "undecided")


def test_equivalent_comes_before_worse():
    """A difference that is certain but within the margin is `equivalent`."""
    row = verdict(make_study(), make_runs(scores(0, 0, 0.05, sd=0.005)))
    assert row.p_holm < 0.025 and row.verdict == "equivalent"


def test_identical_outcomes_are_at_the_ceiling():
    same = {arm: [1.0] * 6 for arm in ("separate", "placebo", "K=V")}
    row = verdict(make_study(), make_runs(same))
    assert row.verdict == "undecided (ceiling)" and row.seeds_to_decide == ""


def judged(record, runs, arm="K=V"):
    """The row, the sentence about it, and the lines at the top of the report."""
    results = wording.all_rows(record, summary.summarise(record, runs))
    row = summarise(record, runs).set_index("arm").loc[arm]
    (found,) = [f for f in sentences.task_findings(record, results, "task") if arm in f.arms]
    top = [*headlines.overview(record, results), *headlines.warnings(record, runs, results)]
    return row, found.text, top


@pytest.mark.parametrize("kind", ["mean", "solve"])
def test_the_same_program_under_another_name_is_not_at_the_ceiling(kind):
    """Known from the configs it is said for certain, at whatever the seeds scored; seen in the
    numbers alone it is a question."""
    data = scores(0, 0, 0)
    twins = data | {"K=V": data["separate"]}
    task = {"kind": kind, "threshold": 1.5 if kind == "solve" else None}
    row, text, _ = judged(make_study(**task), make_runs(twins))
    assert row.verdict == "undecided (same scores)" and row.seeds_to_decide == ""
    assert "The same numbers as separate at every seed: is it the same program?" in text
    for some in (twins, dict.fromkeys(twins, np.ones(6))):
        record = make_study(same_program={"K=V": "separate"}, **task)
        row, text, top = judged(record, make_runs(some))
        assert row.verdict == "undecided (same program)" and row.seeds_to_decide == ""
        assert "the program of separate under another name: there is nothing to decide" in text
    both = record.tasks | {"other": record.tasks["task"]}
    record = dataclasses.replace(record, tasks=both)
    runs = pd.concat([make_runs(twins), make_runs(twins).assign(task="other")])
    top = headlines.overview(record, wording.all_rows(record, summary.summarise(record, runs)))
    assert "The program of separate under another name: K=V." in top
    assert not any("Still open" in line for line in top)
    other = twins | {"placebo": twins["separate"]}  # it is no arm that the configs make the same
    assert judged(make_study(**task), make_runs(other), "placebo")[0].verdict.endswith("scores)")


LOST = {"tune": "diverged", "eval": "failed"}


def lose(runs, *arms):
    """The runs with every one of those arms failed."""
    gone = runs["arm"].isin(arms)
    status = runs["status"].where(~gone, runs["phase"].map(LOST))
    return runs.assign(status=status, value=runs["value"].where(~gone, np.nan))


def test_an_arm_that_fails_at_every_rate_is_worse_and_is_counted():
    """The baseline works: no edge, no further rates for anybody, and nothing left open."""
    record, runs = make_study(), lose(make_runs(scores(0, 0, 0)), "K=V")
    runs = runs[~((runs.arm == "K=V") & (runs.phase == "eval"))]
    lost = rows("K=V", "eval", GRID[0], [np.nan] * 6, SEEDS, ["failed"] * 6)
    runs = pd.concat([runs, lost], ignore_index=True)
    assert extension_needed(record, runs, "task") == []
    row, text, top = judged(record, runs)
    assert row.verdict == "worse" and row.edge == "" and row.learning_rate == GRID[0]
    assert row.n_failed == 6 and row.note == "K=V failed at every rate tried (14 of 14)"
    assert any(line.endswith("K=V failed at every rate tried (14 of 14).") for line in top)
    assert not any("Still open" in line or "edge" in line for line in top)
    assert np.isinf(evaluations(record, runs)["task", "K=V"].lead)


@pytest.mark.parametrize("kind", ["mean", "solve"])
def test_arms_that_all_failed_are_not_at_the_ceiling(kind):
    record = make_study(kind=kind, threshold=0.5 if kind == "solve" else None)
    data = scores(0, 0, 0)
    works = make_runs({"placebo": data.pop("placebo")})
    runs = pd.concat([lose(make_runs(data, rate=GRID[0]), "K=V", "separate"), works])
    row, text, top = judged(record, runs)
    assert row.verdict == "undecided (all failed)" and row.seeds_to_decide == ""
    assert "No run came through, nor did one of separate: there is nothing to compare." in text
    assert any("separate failed at every rate tried (14 of 14)" in line for line in top)
    row, text, _ = judged(record, runs, "placebo")
    assert row.verdict == ("better" if kind == "mean" else row.verdict)
    assert "separate failed at every rate tried (14 of 14)" in row.note


def test_one_run_that_came_through_is_not_every_run_failed():
    runs = lose(make_runs(scores(0, 0, 0)), "K=V")
    place = runs[(runs.arm == "K=V") & (runs.phase == "eval")].index[0]
    runs.loc[place, ["status", "value"]] = ["done", 1.0]
    assert "every rate" not in judged(make_study(), runs)[0].note


def test_step_times_carry_the_error_that_the_placebo_shows():
    ratios = {"separate": 1.0, "placebo": 0.78, "K=V": 0.9}
    costs = {"task": {arm: {"step_time_ratio": ratio} for arm, ratio in ratios.items()}}
    data = make_runs(scores(0, 0, 0))
    table = summary.summarise(make_study(), data, costs)
    assert np.allclose(table.step_time_noise, 0.22)
    assert summarise(make_study(), data).step_time_noise.isna().all()
    record = make_study()
    table = tables._cost_table("separate", wording.all_rows(record, table)["task"])
    shown = {row["arm"]: row["cells"][-1] for row in table["rows"]}
    assert shown == {"separate": "1.00 ×", "placebo": "0.78 × ± 0.22", "K=V": "0.90 × ± 0.22"}


def test_arms_with_their_own_steps_are_judged_at_them():
    """A seed that never solved counts with the budget of its own arm, in tuning as well."""
    record = make_study(kind="solve", threshold=0.5, steps_of={"K=V": 4000})
    never = {arm: np.full(6, np.inf) for arm in ("separate", "placebo", "K=V")}
    data = dict.fromkeys(never, np.ones(6))
    table = summarise(record, make_runs(data, steps=never)).set_index("arm")
    assert table.steps_to_solve.to_dict() == {"separate": 1000, "placebo": 1000, "K=V": 4000}
    late = tuned("K=V", [0.1, 0.1, 0.1, 0.1], steps=[3000.0, 3000.0])
    late[2]["steps_to_solve"] = [2000.0, 2000.0]  # beyond the baseline's steps all are one
    assert chosen(late, record, "K=V").learning_rate == GRID[2]
    lines = protocol(record, make_runs(data), wording.all_rows(record, None))
    (sentence,) = [line for line in lines if line.startswith("t:")]
    assert "1,000 steps per run, 4,000 for K=V, judged at its own; " in sentence


def test_four_seeds_give_no_verdict():
    row = verdict(make_study(), make_runs(scores(0, 0, 5.0, n=4)))
    assert row.verdict == "undecided (few seeds)" and row.n == 4
    row = verdict(make_study(), make_runs(scores(0, 0, 5.0, n=5)))
    assert row.verdict == "worse" and "5 of 6 seeds" in row.note


@pytest.mark.parametrize("whose", ["K=V", "separate"])
def test_rate_at_the_edge_gives_no_verdict(whose):
    data = scores(0, 0, 0.5)
    runs = make_runs({arm: v for arm, v in data.items() if arm != whose})
    edge = tuned(whose, [0.05, 0.1, 0.3, 0.9]) + [rows(whose, "eval", 1e-3, data[whose], SEEDS)]
    table = summarise(make_study(), pd.concat([runs, *edge])).set_index("arm")
    assert table.edge[whose] == "low"
    assert table.verdict["K=V"] == "undecided (edge)"
    assert (table.verdict["placebo"] == "undecided (edge)") == (whose == "separate")


def test_holm_is_applied():
    """The same arm that is worse alone is undecided among seven others."""
    lone = worse_at_one_percent()
    record = make_study(("separate", "K=V"), margin=0.001)
    assert verdict(record, make_runs(lone)).verdict == "worse"
    names = [f"null{i}" for i in range(7)]
    rng = np.random.default_rng(1)
    crowd = lone | {name: lone["separate"] + rng.normal(0, 0.05, 6) for name in names}
    row = verdict(make_study(tuple(crowd), margin=0.001), make_runs(crowd))
    alone = verdict(record, make_runs(lone))
    assert row.p_value == pytest.approx(alone.p_value)
    assert row.p_holm == pytest.approx(8 * row.p_value)
    assert row.verdict == "undecided"


def test_later_looks_are_stricter():
    """The k-th interim analysis tests at alpha / 2**k, and planning uses the level after it."""
    data = worse_at_one_percent()
    record = make_study(("separate", "K=V"), margin=0.001)
    verdict_at = {}
    for looks in ([6], [5, 6], [4, 5, 6], [3, 4, 5, 6]):
        row = verdict(dataclasses.replace(record, looks=tuple(looks)), make_runs(data))
        assert row.alpha_look == 0.05 / 2 ** len(looks) and row.look == len(looks)
        verdict_at[len(looks)] = row.verdict == "worse"
        assert verdict_at[len(looks)] == (row.p_holm <= row.alpha_look)
    assert list(verdict_at.values()) == [True, True, False, False]
    noisy = make_runs(scores(0, 0.05, sd=0.1, arms=("separate", "K=V")))
    record = make_study(("separate", "K=V"))
    row = verdict(record, noisy)
    assert row.seeds_to_decide == inference.seeds_to_decide(row.sd, 6, 0.1, 1, 0.05 / 4)


def test_margin_below_the_sampling_error_is_refused():
    rng = np.random.default_rng(0)
    runs = make_runs(scores(0, 0, 0))
    noise = {arm: rng.normal(size=(6, 400)) for arm in ("separate", "placebo", "K=V")}
    quiet = verdict(make_study(), runs, examples=lambda task, arm: noise[arm] * 0.1)
    loud = verdict(make_study(), runs, examples=lambda task, arm: noise[arm] * 10)
    assert quiet.verdict == "equivalent" and 2 * quiet.sampling_error < 0.1
    assert loud.verdict == "undecided" and "sampling error" in loud.note
    assert np.isnan(loud.p_equivalence)
    assert verdict(make_study(), runs, examples=lambda task, arm: None).verdict == "equivalent"


def test_failed_runs_count_and_are_never_dropped():
    """A diverged run enters the mean at the failure value and forbids `equivalent`."""
    data = scores(0, 0, 0)
    status = {"K=V": ["done"] * 4 + ["diverged", "failed"]}
    row = verdict(make_study(), make_runs(data, status=status))
    assert row.n == 6 and row.n_diverged == 1 and row.n_failed == 1
    assert row["mean"] == pytest.approx((data["K=V"][:4].sum() + 2 * 9.0) / 6)
    mild = make_study(failure_value=1.0)  # even where the failure value itself is harmless
    assert verdict(mild, make_runs(data)).verdict == "equivalent"
    row = verdict(mild, make_runs(data, status=status))
    assert row.verdict == "undecided" and "runs failed" in row.note
    data["K=V"][0] = np.nan  # "done" without a number is a failure as well
    assert verdict(make_study(), make_runs(data)).n_failed == 1


def test_a_placebo_that_fails_forbids_equivalence_to_its_baseline():
    status = {"placebo": ["done"] * 5 + ["diverged"]}
    row = verdict(make_study(), make_runs(scores(0, 0, 0), status=status))
    assert row.n_diverged == 0 and row.verdict == "undecided" and "runs failed" in row.note
    record = dataclasses.replace(make_study(), placebo="none of these")
    assert verdict(record, make_runs(scores(0, 0, 0), status=status)).verdict == "equivalent"


@pytest.mark.parametrize(
    "lead, rate, expected",
    [(0.001, 4e-3, "undecided"), (0.2, 4e-3, "worse"), (0.001, 2e-3, "worse")],
)
def test_a_difference_that_tuning_may_have_made_is_undecided(lead, rate, expected):
    """An arm that chose another rate than the baseline, by a hair, may have lost to its tuning."""
    data = worse_at_one_percent()
    record = make_study(("separate", "K=V"), margin=0.001)
    runs = make_runs({"separate": data["separate"]})
    means = [0.9, 0.1 + lead, 0.1, 0.9] if rate == 4e-3 else [0.9, 0.1, 0.1 + lead, 0.9]
    tables = [*tuned("K=V", means), rows("K=V", "eval", rate, data["K=V"], SEEDS)]
    row = verdict(record, pd.concat([runs, *tables]))
    assert row.learning_rate == rate and row.p_holm == pytest.approx(0.0103, abs=1e-4)
    assert row.verdict == expected
    assert ("learning rates" in row.note) == (expected == "undecided")


def test_doubt_about_tuning_is_doubt_about_the_side_that_lost():
    """A baseline with an uncertain rate does not excuse an arm that is worse than it."""
    data = worse_at_one_percent()
    record = make_study(("separate", "K=V"), margin=0.001)
    close = make_runs({"separate": data["separate"]}, tune=(0.9, 0.1, 0.101, 0.9))
    sure = [*tuned("K=V", [0.9, 0.8, 0.1, 0.9])]
    worse = pd.concat([close, *sure, rows("K=V", "eval", 4e-3, data["K=V"], SEEDS)])
    assert verdict(record, worse).verdict == "worse"
    better = 2 * data["separate"] - data["K=V"]
    better = pd.concat([close, *sure, rows("K=V", "eval", 4e-3, better, SEEDS)])
    assert verdict(record, better).verdict == "undecided"


@pytest.mark.parametrize("lead, expected", [(0.001, "undecided"), (0.2, "equivalent")])
def test_equivalence_does_not_survive_doubt_about_rates(lead, expected):
    """Equal at the chosen rates is not equal at the best ones where the choice was a close one."""
    data = worse_at_one_percent()  # by 0.033 with SD 0.02
    record = make_study(("separate", "K=V"), margin=0.06)
    # The arm is behind, so it is the baseline's better rate that would take it out of the margin.
    runs = make_runs({"separate": data["separate"]}, tune=(0.9, 0.1, 0.1 + lead, 0.9))
    tables = [*tuned("K=V", [0.9, 0.8, 0.1, 0.9])]
    tables += [rows("K=V", "eval", 4e-3, data["K=V"], SEEDS)]
    row = verdict(record, pd.concat([runs, *tables]))
    assert row.p_equivalence <= 0.025 and row.verdict == expected


def test_size_of_the_doubt():
    """Regret t * sd / sqrt(seeds) - lead, and the t-test repeated against it."""
    n, sd = np.array([6]), np.ones(1)
    regret = inference.tuning_regret(sd, n, 0.5, 2)
    assert regret[0] == pytest.approx(stats.t.ppf(0.95, 5) / np.sqrt(2) - 0.5)
    assert inference.tuning_regret(sd, n, 2.0, 2)[0] == 0
    needed = regret + stats.t.ppf(1 - 0.025 / 2, 5) / np.sqrt(6)
    for delta, expected in ((needed + 1e-6, False), (needed - 1e-6, True)):
        result = {"n": n, "sd": sd, "delta": delta, "verdict": np.array([Verdict("worse")])}
        doubt = inference.tuning_may_explain(
            result, regret=regret, regret_base=np.zeros(1), margin=None,
            level=Level.of_analysis(0.05, 1), higher_is_better=False,
        )  # fmt: skip
        assert doubt[0] == expected


# --- properties -------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_order_of_arms_seeds_and_rows_changes_nothing(seed, random):
    arms = ["separate", "placebo", "K=V", "Q=K"]
    runs = make_runs(scores(0, 0, 0.06, 0.2, sd=0.06, seed=seed, arms=arms))
    before = summarise(make_study(arms), runs).set_index("arm")
    shuffled, seeds = arms[:], SEEDS[:]
    random.shuffle(shuffled)
    random.shuffle(seeds)
    order = list(range(len(runs)))
    random.shuffle(order)
    after = summarise(make_study(shuffled, seeds=seeds), runs.iloc[order]).set_index("arm")
    pd.testing.assert_frame_equal(before, after.loc[arms], rtol=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_flipping_the_metric_flips_nothing_but_signs(seed):
    """-value with higher_is_better reversed is the same study; without it better becomes worse."""
    data = scores(0, 0.0, 0.15, sd=0.05, seed=seed)
    runs = make_runs(data)
    mirrored = runs.assign(value=-runs.value)
    before = summarise(make_study(), runs)
    after = summarise(make_study(metric="accuracy", failure_value=-9.0), mirrored)
    assert list(before.verdict) == list(after.verdict)
    np.testing.assert_allclose(before.delta_low.astype(float), -after.delta_high.astype(float))
    only = runs.assign(value=np.where(runs.phase == "eval", -runs.value, runs.value))
    swap = {"better": "worse", "worse": "better"}
    reversed_ = summarise(make_study(), only).verdict
    assert list(reversed_) == [swap.get(word, word) for word in before.verdict]


# --- studies that are still running -------------------------------------------------------------


def test_unfinished_studies_are_summarised():
    data = scores(0, 0, 0.5)
    data["K=V"] = []
    table = summarise(make_study(), make_runs(data)).set_index("arm")
    assert table.n["K=V"] == 0 and np.isnan(table["mean"]["K=V"]) and table.verdict["K=V"] == ""
    assert table.verdict["placebo"] == "equivalent"
    empty = summarise(make_study(threshold=1.0), make_runs(data).iloc[:0])
    assert list(empty.verdict) == ["baseline", "", ""] and (empty.n == 0).all()
    assert len(choose_rates(make_study(), make_runs(data).iloc[:0])) == 0


def test_pairs_are_of_common_seeds_at_the_chosen_rate():
    data = scores(0, 0, 0.5)
    runs = make_runs(data)
    missing = runs[~((runs.arm == "K=V") & (runs.seed == 100))]
    stray = [rows("K=V", "eval", 8e-3, [99.0], [100]), rows("K=V", "eval", 2e-3, [99.0], [777])]
    row = verdict(make_study(), pd.concat([missing, *stray]))
    assert row.n == 5 and row.delta == pytest.approx((data["K=V"] - data["separate"])[1:].mean())


def test_costs_are_merged():
    costs = {"task": {"K=V": {"params": 7, "step_time_ratio": None}}}
    row = verdict(make_study(), make_runs(scores(0, 0, 0)), costs=costs)
    assert row.params == 7 and np.isnan(row.step_time_ratio) and np.isnan(row.flops_per_token)


# --- learning rates -----------------------------------------------------------------------------


def chosen(tables, record=None, arm="separate"):
    return choose_rates(record or make_study(), pd.concat(tables)).loc[("task", arm)]


def test_best_validation_mean_is_chosen():
    choice = chosen(tuned("separate", [0.5, 0.3, 0.1, 0.4]))
    assert choice.learning_rate == 4e-3 and choice.edge == "" and choice["mean"] == 0.1
    up = make_study(metric="accuracy")
    assert chosen(tuned("separate", [0.5, 0.3, 0.1, 0.4]), up).edge == "low"
    assert chosen(tuned("separate", [0.5, 0.3, 0.1, 0.05])).edge == "high"


def test_failures_count_against_a_rate():
    tables = tuned("separate", [0.5, 0.3, 0.1, 0.4])
    tables[2].loc[1, "status"] = "diverged"
    tables[2].loc[1, "value"] = np.nan
    assert chosen(tables).learning_rate == 2e-3


def test_ties_go_to_fewer_steps_then_to_the_lower_rate():
    tables = tuned("separate", [0.5, 0.1, 0.1, 0.5])
    assert chosen(tables).learning_rate == 2e-3
    tables[1]["steps_to_solve"] = [100.0, np.nan]  # 550 on average, censored at 1000
    tables[2]["steps_to_solve"] = [400.0, 500.0]
    assert chosen(tables).learning_rate == 4e-3
    tables[1]["steps_to_solve"] = [100.0, 200.0]
    assert chosen(tables).learning_rate == 2e-3


def test_a_plateau_is_no_edge_nor_is_one_of_failures():
    flat = tuned("separate", [0.1] * 4)
    assert tuple(chosen(flat)[["learning_rate", "edge"]]) == (1e-3, "")
    dead = tuned("separate", [0.1] * 4, status=["diverged"] * 2)
    assert tuple(chosen(dead)[["learning_rate", "edge"]]) == (1e-3, "")
    assert extension_needed(make_study(("separate",)), pd.concat(dead), "task") == []
    half = tuned("separate", [0.5, 0.5, 0.5, 0.5])  # one rate works, at the end
    for table in half[1:]:
        table["status"] = "diverged"
    assert tuple(chosen(half)[["learning_rate", "edge"]]) == (1e-3, "low")


def test_extension_keeps_the_spacing_and_stops_after_two():
    """An arm at the edge extends the grid for all; interior arms ask for nothing."""
    record = make_study(("separate", "K=V"))

    def extend(rates, means):
        tables = tuned("separate", means, rates)
        tables += tuned("K=V", [abs(np.log(r / 3e-3)) for r in rates], rates)
        return extension_needed(record, pd.concat(tables), "task")

    assert extend(GRID, [0.5, 0.1, 0.3, 0.4]) == []
    assert extend(GRID, [0.5, 0.4, 0.3, 0.1]) == [1.6e-2]
    assert extend(GRID, [0.1, 0.3, 0.4, 0.5]) == [5e-4]
    assert extend([5e-4, *GRID], [0.05, 0.1, 0.3, 0.4, 0.5]) == [2.5e-4]
    assert extend([*GRID, 1.6e-2], [0.5, 0.4, 0.3, 0.1, 0.05]) == [3.2e-2]
    assert extend([2.5e-4, 5e-4, *GRID], [0.01, 0.05, 0.1, 0.3, 0.4, 0.5]) == []
    assert extend([2.5e-4, 5e-4, *GRID], [0.5, 0.4, 0.3, 0.2, 0.1, 0.05]) == [1.6e-2]
    record = record.with_task("task", learning_rates=(1e-3,))
    assert extend([1e-3], [0.1]) == []


def test_both_edges_extend_at_once():
    record = make_study(("separate", "K=V"))
    tables = tuned("separate", [0.1, 0.2, 0.3, 0.4]) + tuned("K=V", [0.4, 0.3, 0.2, 0.1])
    assert extension_needed(record, pd.concat(tables), "task") == [5e-4, 1.6e-2]


# --- tasks that are solved or not -----------------------------------------------------------------


def solve_study(n=6, arms=("separate", "K=V"), **task):
    seeds = list(range(100, 100 + n))
    spec = {"kind": "solve", "metric": "accuracy", "threshold": 0.9, "failure_value": 0.0}
    return make_study(arms, seeds=seeds, **(spec | task)), seeds


def solve_runs(seeds, **solved):
    data = {arm: np.where(won, 1.0, 0.5) for arm, won in solved.items()}
    return make_runs(data, rate=2e-3, seeds=seeds, tune=(0.1, 0.9, 0.3, 0.2))


def test_solved_seeds_mcnemar_and_clopper_pearson():
    record, seeds = solve_study(20)
    base, arm = [1] * 18 + [0] * 2, [0] * 14 + [1] * 4 + [0, 1]
    runs = solve_runs(seeds, separate=base, **{"K=V": arm})
    row = verdict(record, runs)
    assert row.p_value == pytest.approx(stats.binomtest(1, 15).pvalue)
    assert row.verdict == "worse" and row.n_solved == 5 and np.isnan(row.p_equivalence)
    low, high = proportion_confint(5, 20, method="beta")
    assert (row.solve_low, row.solve_high) == pytest.approx((low, high))
    runs = solve_runs(seeds, separate=arm, **{"K=V": base})
    assert verdict(record, runs).verdict == "better"


def test_six_solved_seeds_cannot_decide_and_say_how_many_would():
    record, seeds = solve_study(6)
    row = verdict(record, solve_runs(seeds, separate=[1] * 6, **{"K=V": [0] * 6}))
    assert row.p_value == pytest.approx(2 * 0.5**6) and row.verdict == "undecided"
    assert row.seeds_to_decide == "8"  # 2 * 0.5**8 <= 0.05 / 4 < 2 * 0.5**7
    row = verdict(record, solve_runs(seeds, separate=[1] * 6, **{"K=V": [1] * 6}))
    assert row.verdict == "undecided" and row.seeds_to_decide == ">100"


def test_a_run_that_failed_has_not_solved():
    record, seeds = solve_study(6, failure_value=1.0)  # a failure value declared by mistake
    runs = solve_runs(seeds, separate=[1] * 6, **{"K=V": [1] * 6})
    runs.loc[(runs.arm == "K=V") & (runs.seed == 100), "status"] = "diverged"
    assert verdict(record, runs).n_solved == 5


def test_lower_is_better_thresholds():
    record, seeds = solve_study(6, metric="loss", threshold=0.5, failure_value=9.0)
    runs = solve_runs(seeds, separate=[1] * 6, **{"K=V": [0, 0, 1, 1, 1, 1]})
    runs.loc[runs.phase == "tune", "value"] = 1 - runs.value
    assert verdict(record, runs).n_solved == 2


def test_steps_to_solve_is_a_restricted_mean():
    """Runs that never solve count with the whole budget; `mean` tasks report it as well."""
    steps = {"K=V": [100, 200, 300, 400, np.nan, np.nan]}
    runs = make_runs(scores(0, 0, 0), steps=steps)
    row = verdict(make_study(threshold=2.0), runs)
    censored = [100, 200, 300, 400, 1000, 1000]
    interval = stats.ttest_1samp(censored, 0).confidence_interval(0.95)
    assert row.steps_to_solve == pytest.approx(500) and row.n_solved == 6
    assert row.steps_to_solve_low == pytest.approx(max(interval.low, 0))
    assert row.steps_to_solve_high == pytest.approx(interval.high)
    nothing = verdict(make_study(), runs)
    assert np.isnan(nothing.steps_to_solve) and np.isnan(nothing.n_solved)
