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
from statsmodels.stats.weightstats import ttost_ind

from qkv_jax.study.protocol import inference, summary
from qkv_jax.study.protocol.comparison import Design, Tuning, compare_means
from qkv_jax.study.protocol.inference import Difference, Doubt
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
    """Two arms whose Welch's t is 3.1692 with 10 degrees of freedom: p = 0.0100. They go against
    each other, so that there is no correlation to reckon with."""
    z = np.array([-1.2, -0.7, -0.1, 0.3, 0.6, 1.1])
    z = 0.02 * z / z.std(ddof=1)
    return {"separate": 1 + z, "K=V": 1 - z + 3.1692 * 0.02 * np.sqrt(2 / 6)}


def summarise(*args, **kwargs):
    """The summary with verdicts and notes as summary.csv has them."""
    table = summary.summarise(*args, **kwargs)
    for cell in table.verdict:
        assert Verdict.read(str(cell)) == cell
    return table.assign(verdict=table.verdict.map(str), note=table.note.map(str))


def verdict(record, runs, arm="K=V", **kwargs):
    return summarise(record, runs, **kwargs).set_index("arm").loc[arm]


# --- the numbers are those of the libraries -------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 9), st.integers(2, 9), st.floats(0.1, 9), st.integers(0, 10**6))
def test_a_difference_is_welchs(n, n_other, spread, seed):
    """Error, degrees of freedom, p, interval and TOST, with seeds missing on either side."""
    rng = np.random.default_rng(seed)
    x, y = np.full((2, 9), np.nan)
    x[:n], y[:n_other] = rng.normal(0.3, 1, n), rng.normal(0, spread, n_other)
    effect = inference.difference([(1, x), (-1, y)])
    welch = stats.ttest_ind(x[:n], y[:n_other], equal_var=False)
    assert effect.df == pytest.approx(welch.df) and effect.n == min(n, n_other)
    assert inference.p_difference(effect) == pytest.approx(welch.pvalue)
    np.testing.assert_allclose(inference.interval(effect), welch.confidence_interval(0.95))
    tost = ttost_ind(x[:n], y[:n_other], -0.5, 0.5, usevar="unequal")[0]
    assert inference.p_equivalence(effect, -0.5, 0.5) == pytest.approx(tost)


def test_an_effect_of_several_samples_is_satterthwaites():
    """Of one sample it is the one-sample t-test; of four, variances add up."""
    rng = np.random.default_rng(0)
    rows = rng.normal(0.4, [[1], [2], [3], [4]], (4, 7))
    alone = stats.ttest_1samp(rows[0], 0)
    effect = inference.difference([(1, rows[0])])
    assert effect.df == pytest.approx(6)
    assert inference.p_difference(effect) == pytest.approx(alone.pvalue)
    effect = inference.difference(list(zip((1, -1, -1, 1), rows, strict=True)))
    parts = rows.var(1, ddof=1) / 7
    assert effect.error == pytest.approx(np.sqrt(parts.sum()))
    assert effect.df == pytest.approx(parts.sum() ** 2 / (parts**2 / 6).sum())
    assert effect.delta == pytest.approx(rows.mean(1) @ [1, -1, -1, 1])


def test_rows_of_the_summary_reckon_with_the_task_as_a_whole():
    """The error takes the correlation that arms show on the whole, and no variance below their
    median; p is multiplied by the number of arms that are asked about."""
    arms = ("separate", "placebo", "K=V", "Q=K", "Q=V")
    data = scores(0, 0.01, 0.05, -0.03, 0.2, sd=0.04, arms=arms)
    shared = np.random.default_rng(5).normal(0, 0.08, 6)
    data = {arm: values + shared for arm, values in data.items()}
    data["Q=V"] = 1.2 + 0.1 * (data["Q=V"] - 1.2)  # quiet by chance
    table = summarise(make_study(arms), make_runs(data)).set_index("arm")
    assert list(table.columns) == [c for c in COLUMNS if c != "arm"]
    base = data["separate"]
    z = [np.arctanh(min(np.corrcoef(data[a], base)[0, 1], 0.99)) for a in arms[1:]]
    rho = np.tanh(np.mean(z) - 1 / np.sqrt(4 * 3))
    assert rho > 0.5 and np.allclose(table.correlation[1:].astype(float), rho)
    variances = {a: v.var(ddof=1) for a, v in data.items()}
    least = np.median(list(variances.values())) * 5 / stats.chi2.median(5)
    for arm in arms[1:]:
        v, v0 = (max(variances[a], least) for a in (arm, "separate"))
        error = np.sqrt((v + v0 - 2 * rho * np.sqrt(v * v0)) / 6)
        df = (v + v0) ** 2 / ((v**2 + v0**2) / 5)
        row, delta = table.loc[arm], np.mean(data[arm] - base)
        assert row.delta == pytest.approx(delta) and row.sd == pytest.approx(variances[arm] ** 0.5)
        p = 2 * stats.t.sf(abs(delta) / error, df)
        assert row.p_value == pytest.approx(p) and row.p_adjusted == pytest.approx(min(3 * p, 1))
        tost = stats.t.sf((0.1 - abs(delta)) / error, df)
        assert row.p_equivalence == pytest.approx(min(3 * tost, 1))
        for ends, level in (("delta_{}", 0.05), ("delta_{}_simultaneous", 0.05 / 3)):
            half = stats.t.ppf(1 - level / 2, df) * error
            low, high = (row[ends.format(end)] for end in ("low", "high"))
            np.testing.assert_allclose([low, high], [delta - half, delta + half])
        own = stats.ttest_1samp(data[arm], 0).confidence_interval(0.95)
        np.testing.assert_allclose([row.ci_low, row.ci_high], own, rtol=1e-9)
    assert variances["Q=V"] < least / 9


def test_a_correlation_that_is_not_certain_is_not_reckoned_with():
    rng = np.random.default_rng(0)
    drawn = [inference.pooled_correlation(x[1:], x[0]) for x in rng.normal(size=(400, 5, 6))]
    assert np.mean(drawn) < 0.1 and min(drawn) == 0
    pair = rng.normal(size=6)
    assert inference.pooled_correlation([pair], pair) < 0.99  # three degrees of freedom
    assert inference.pooled_correlation([pair] * 40, pair) > 0.95
    assert inference.pooled_correlation([-pair, np.ones(6), np.full(6, np.nan)], pair) == 0


@settings(max_examples=15, deadline=None)  # each costs a garbage collection
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_equals_statsmodels(p):
    np.testing.assert_allclose(inference.holm(p), multipletests(p, method="holm")[1])


def test_a_test_that_could_not_be_made_stays_in_the_family():
    np.testing.assert_allclose(inference.holm([0.01, np.nan]), [0.02, np.nan])


def one_arm(values, baseline, margin=0.1, **fields):
    """The comparison of one arm that was sure of its learning rate."""
    n = len(baseline)
    design = {"analyses": (n,), "alpha": 0.05, "arms": 1, "higher_is_better": True}
    design = Design(**design | {"margin": margin} | fields)
    values, refused = np.asarray(values, float)[None], np.zeros((1, n), bool)
    (found,), _ = compare_means(values, np.asarray(baseline), design, [Tuning()] * 2, refused)
    return found


def test_scores_without_spread_use_an_exact_test():
    """One arm always 1, the other always 0: no t-test; p is scipy's Barnard test of n to 0."""
    found = one_arm(np.zeros(6), np.ones(6))
    barnard = stats.barnard_exact([[6, 0], [0, 6]], pooled=True)
    assert found.p == pytest.approx(barnard.pvalue, rel=1e-3) == 2 * 0.25**6
    assert found.verdict == Verdict("worse")
    assert np.isnan(found.low) and np.isnan(found.p_equivalence)
    sign = inference.difference([(1, np.full(6, 0.2))])  # against a constant
    assert inference.p_difference(sign) == stats.binomtest(6, 6).pvalue


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


def test_at_the_number_of_seeds_given_the_test_has_its_power():
    """Simulated at that number, an effect as large as the estimate is found in four of five."""
    effect = Difference(6, 0.4, 0.3, 10.0)
    seeds = inference.seeds_needed(effect, 0.4, 0.05)
    assert seeds == np.ceil(6 * ((1.96 + 0.8416) * 0.3 / 0.4) ** 2)
    sd = 0.3 * np.sqrt(6 / 2)
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, sd, (2, 2000, int(seeds)))
    found = np.mean(stats.ttest_ind(x + 0.4, y, axis=1, equal_var=False).pvalue < 0.05)
    assert found == pytest.approx(inference.POWER, abs=0.04)
    assert np.isnan(inference.seeds_needed(effect, 0.0, 0.05))
    assert np.isnan(inference.seeds_needed(Difference(6, 0.4), 0.4, 0.05))
    assert inference.seeds_needed(effect, 100.0, 0.05) == 7  # what there is was not enough


# --- verdicts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shift, sd, expected",
    [(0.0, 0.02, "equivalent"), (0.5, 0.02, "worse"), (-0.5, 0.02, "better"),
     (0.15, 0.1, "undecided (power)")],
)  # fmt: skip
def test_verdict_words(shift, sd, expected):
    table = summarise(make_study(), make_runs(scores(0, 0, shift, sd=sd))).set_index("arm")
    assert table.verdict["K=V"] == expected
    assert table.verdict["separate"] == "baseline" and np.isnan(table.delta["separate"])
    assert (table.seeds_to_decide["K=V"] > 6) == (expected == "undecided (power)")
    assert (table.decided_at["K=V"] == 6) == (expected != "undecided (power)")


def test_equivalent_comes_before_worse():
    """A difference that is certain but within the margin is `equivalent`."""
    row = verdict(make_study(), make_runs(scores(0, 0, 0.05, sd=0.005)))
    assert row.p_adjusted < 0.05 and row.verdict == "equivalent"


def test_identical_outcomes_are_at_the_ceiling():
    same = {arm: [1.0] * 6 for arm in ("separate", "placebo", "K=V")}
    row = verdict(make_study(), make_runs(same))
    assert row.verdict == "undecided (ceiling)" and np.isnan(row.seeds_to_decide)


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
    assert row.verdict == "undecided (same scores)" and np.isnan(row.seeds_to_decide)
    assert "The same numbers as separate at every seed: is it the same program?" in text
    for some in (twins, dict.fromkeys(twins, np.ones(6))):
        record = make_study(same_program={"K=V": "separate"}, **task)
        row, text, top = judged(record, make_runs(some))
        assert row.verdict == "undecided (same program)" and np.isnan(row.seeds_to_decide)
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
    assert row.verdict == "undecided (all failed)" and np.isnan(row.seeds_to_decide)
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


def test_arms_that_are_asked_about_share_the_level():
    """What is worse alone is undecided among seven others, but not among seven controls."""
    lone = worse_at_one_percent()
    names = [f"null{i}" for i in range(7)]
    rng = np.random.default_rng(1)
    crowd = lone | {name: rng.permutation(lone["separate"]) for name in names}
    record = make_study(tuple(crowd), margin=0.001)
    row = verdict(record, make_runs(crowd))
    assert row.p_adjusted == pytest.approx(8 * row.p_value) and row.p_adjusted > 0.05
    assert row.verdict == "undecided (power)"
    for role in ("control", "matched", "placebo"):
        arms = {name: ArmRecord(name, role) for name in names}
        among = dataclasses.replace(record, arms=record.arms | arms)
        row = verdict(among, make_runs(crowd))
        assert row.p_adjusted == row.p_value and row.verdict == "worse"
        other = verdict(among, make_runs(crowd), "null3")
        assert other.p_adjusted == other.p_value


def test_the_planned_analysis_has_all_of_alpha_and_those_added_half_as_much_each():
    data = worse_at_one_percent()
    record = make_study(("separate", "K=V"), margin=0.001)
    rows_at = {}
    for looks in ([6], [5, 6], [4, 5, 6]):
        row = verdict(dataclasses.replace(record, looks=tuple(looks)), make_runs(data))
        assert row.alpha_look == 0.05 / 2 ** (len(looks) - 1) and row.look == len(looks)
        rows_at[len(looks)] = row
    assert rows_at[1].p_adjusted == rows_at[1].p_value < 0.05
    assert rows_at[3].p_adjusted <= 4 * rows_at[3].p_value


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(-0.3, 0.3))
def test_verdicts_are_final(seed, shift):
    """Whatever seeds bring that are added: a verdict that was given stays, with its seeds, and the
    adjusted p-values never rise."""
    data = scores(0, 0, 0, sd=0.1, n=14, seed=seed)
    data["K=V"][:6] += shift
    data["K=V"][6:] -= shift  # what follows speaks against it
    seeds = list(range(100, 114))
    runs = make_runs(data, seeds=seeds)
    given = None
    for looks in ((6,), (6, 9), (6, 9, 14)):
        record = dataclasses.replace(make_study(seeds=seeds[: looks[-1]]), looks=looks)
        row = verdict(record, runs)
        if given is not None:
            assert row.p_adjusted <= given.p_adjusted
            assert row.p_equivalence <= given.p_equivalence
            if not given.verdict.startswith("undecided"):
                assert (row.verdict, row.decided_at) == (given.verdict, given.decided_at)
        assert row.n == looks[-1] and row.delta != (given is not None and given.delta)
        given = row


def test_margin_below_the_sampling_error_is_refused():
    rng = np.random.default_rng(0)
    runs = make_runs(scores(0, 0, 0))
    noise = {arm: rng.normal(size=(6, 400)) for arm in ("separate", "placebo", "K=V")}
    quiet = verdict(make_study(), runs, examples=lambda task, arm: noise[arm] * 0.1)
    loud = verdict(make_study(), runs, examples=lambda task, arm: noise[arm] * 10)
    assert quiet.verdict == "equivalent" and 2 * quiet.sampling_error < 0.1
    assert loud.verdict == "undecided (power)" and "sampling error" in loud.note
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
    assert row.verdict == "undecided (power)" and "runs failed" in row.note
    data["K=V"][0] = np.nan  # "done" without a number is a failure as well
    assert verdict(make_study(), make_runs(data)).n_failed == 1


def test_a_placebo_that_fails_forbids_equivalence_to_its_baseline():
    status = {"placebo": ["done"] * 5 + ["diverged"]}
    row = verdict(make_study(), make_runs(scores(0, 0, 0), status=status))
    assert row.n_diverged == 0 and row.verdict == "undecided (power)" and "runs failed" in row.note
    record = dataclasses.replace(make_study(), placebo="none of these")
    assert verdict(record, make_runs(scores(0, 0, 0), status=status)).verdict == "equivalent"


@pytest.mark.parametrize("rate", [4e-3, 2e-3])
@pytest.mark.parametrize("lead, expected", [(0.001, "undecided (tuning)"), (0.2, "worse")])
def test_a_difference_that_tuning_may_have_made_is_undecided(lead, expected, rate):
    """An arm that chose its rate by a hair may have lost to its tuning, and that the baseline chose
    the same is no defence: it may have been right."""
    data = worse_at_one_percent()
    record = make_study(("separate", "K=V"), margin=0.001)
    runs = make_runs({"separate": data["separate"]})
    means = [0.9, 0.1 + lead, 0.1, 0.9] if rate == 4e-3 else [0.9, 0.1, 0.1 + lead, 0.9]
    tables = [*tuned("K=V", means), rows("K=V", "eval", rate, data["K=V"], SEEDS)]
    row = verdict(record, pd.concat([runs, *tables]))
    assert row.learning_rate == rate and row.p_adjusted < 0.05
    assert row.verdict == expected
    assert ("would be 'worse'" in row.note) == (expected != "worse")


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
    assert verdict(record, better).verdict == "undecided (tuning)"


@pytest.mark.parametrize("lead, expected", [(0.001, "undecided (tuning)"), (0.2, "equivalent")])
def test_equivalence_does_not_survive_doubt_about_rates(lead, expected):
    """Equal at the chosen rates is not equal at the best ones where the choice was a close one."""
    data = worse_at_one_percent()
    data["K=V"] = data["K=V"] - 0.018  # behind, but not for certain
    record = make_study(("separate", "K=V"), margin=0.06)
    # It is the baseline's better rate that would take the arm out of the margin.
    runs = make_runs({"separate": data["separate"]}, tune=(0.9, 0.1, 0.1 + lead, 0.9))
    tables = [*tuned("K=V", [0.9, 0.8, 0.1, 0.9])]
    tables += [rows("K=V", "eval", 4e-3, data["K=V"], SEEDS)]
    row = verdict(record, pd.concat([runs, *tables]))
    assert row.p_equivalence <= 0.05 and row.verdict == expected


def test_size_of_the_doubt():
    """Regret t * sd * sqrt(2 / seeds) - lead, and the tests repeated against it."""
    regret = inference.tuning_regret(1.0, 6, 0.5, 2)
    assert regret == pytest.approx(stats.t.ppf(0.95, 5) - 0.5)
    assert all(inference.tuning_regret(1.0, 6, lead, 2) == 0 for lead in (2.1, np.inf))
    error, df = np.sqrt(2 / 6), 10.0
    needed = regret + stats.t.ppf(0.975, df) * error
    for delta, sure in ((needed + 1e-6, True), (needed - 1e-6, False)):
        p = inference.judge(Difference(6, delta, error, df), None, Doubt(down=regret))
        assert (p.surely_different <= 0.05) == sure and p.different < 0.05
        p = inference.judge(Difference(6, -delta, error, df), None, Doubt(down=regret))
        assert p.surely_different == p.different < 0.05
    inside = stats.t.ppf(0.95, df) * error + regret
    for margin, sure in ((inside + 1e-6, True), (inside - 1e-6, False)):
        p = inference.judge(Difference(6, 0.0, error, df), margin, Doubt(up=regret))
        assert (p.surely_equivalent <= 0.05) == sure and p.equivalent < 0.05


def test_what_no_number_of_seeds_can_decide_is_open_for_its_tuning():
    """Doubt as large as the effect, and too large for the margin: more seeds are no remedy."""
    effect = Difference(6, 0.5, 0.4, 10.0)
    found, needed = inference.plan(effect, None, Doubt(down=0.6), 0.05)
    assert str(found) == "undecided (tuning)" and np.isnan(needed)
    found, needed = inference.plan(effect, None, Doubt(down=0.3), 0.05)
    assert str(found) == "undecided (power)"
    assert needed == inference.seeds_needed(effect, 0.5 - 0.3, 0.05)
    found, needed = inference.plan(effect, 2.0, Doubt(down=0.6), 0.05)
    assert needed == inference.seeds_needed(effect, 1.5, 0.05)  # equivalence is nearer


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


def test_only_runs_at_the_chosen_rate_and_on_the_seeds_of_the_study_count():
    data = scores(0, 0, 0.5)
    runs = make_runs(data)
    missing = runs[~((runs.arm == "K=V") & (runs.seed == 100))]
    stray = [rows("K=V", "eval", 8e-3, [99.0], [100]), rows("K=V", "eval", 2e-3, [99.0], [777])]
    row = verdict(make_study(), pd.concat([missing, *stray]))
    assert row.n == 5
    assert row.delta == pytest.approx(data["K=V"][1:].mean() - data["separate"].mean())


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


def test_solved_seeds_boschloo_and_clopper_pearson():
    record, seeds = solve_study(20)
    base, arm = [1] * 18 + [0] * 2, [0] * 14 + [1] * 4 + [0, 1]
    runs = solve_runs(seeds, separate=base, **{"K=V": arm})
    row = verdict(record, runs)
    assert row.p_value == pytest.approx(stats.boschloo_exact([[5, 18], [15, 2]]).pvalue)
    assert row.verdict == "worse" and row.n_solved == 5 and np.isnan(row.p_equivalence)
    low, high = proportion_confint(5, 20, method="beta")
    assert (row.solve_low, row.solve_high) == pytest.approx((low, high))
    runs = solve_runs(seeds, separate=arm, **{"K=V": base})
    assert verdict(record, runs).verdict == "better"


def test_six_solved_against_none_decide_and_less_says_how_many_would():
    record, seeds = solve_study(6)
    row = verdict(record, solve_runs(seeds, separate=[1] * 6, **{"K=V": [0] * 6}))
    assert row.p_value == pytest.approx(2 * 0.25**6) and row.verdict == "worse"
    row = verdict(record, solve_runs(seeds, separate=[1] * 6, **{"K=V": [0] * 2 + [1] * 4}))
    apart = 2 * np.arcsin(1) - 2 * np.arcsin(np.sqrt(4 / 6))
    z = stats.norm.ppf(1 - 0.025 / 2) + stats.norm.ppf(0.8)  # the next analysis has half of alpha
    assert row.verdict == "undecided (power)"
    assert row.seeds_to_decide == np.ceil(2 * (z / apart) ** 2)
    row = verdict(record, solve_runs(seeds, separate=[1] * 6, **{"K=V": [1] * 6}))
    assert row.verdict == "undecided (ceiling)"


def test_seeds_that_could_decide_nothing_are_few():
    """Among 400 arms not even all against none of five seeds would be told apart."""
    arms = ("separate", "K=V", *(f"arm{i}" for i in range(399)))
    record, seeds = solve_study(5, arms)
    runs = solve_runs(seeds, separate=[1] * 5, **{"K=V": [0] * 5})
    assert verdict(record, runs).verdict == "undecided (few seeds)"
    record, seeds = solve_study(5)
    assert verdict(record, runs).verdict == "worse"


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
