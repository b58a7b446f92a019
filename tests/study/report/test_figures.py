"""What the figures of a report show: scales, marks, and which arms they have."""

import dataclasses

import pytest

from qkv_jax.output import style
from qkv_jax.study.protocol.contrasts import contrast_table
from qkv_jax.study.protocol.summary import summarise
from qkv_jax.study.report import wording
from qkv_jax.study.report.figures.cost_quality import (
    STATE,
    _aside,
    cost_quality,
    log_places,
    log_ticks,
    non_dominated,
)
from qkv_jax.study.report.figures.forest import forest
from qkv_jax.study.report.figures.lattice import (
    ROWS,
    _alike,
    colour_norm,
    covering_pairs,
    lattice,
    lattice_nodes,
    shade,
)
from qkv_jax.tie import Tie
from tests.support.studies.report_pages import points_of
from tests.support.studies.synthetic_study import make_study


def test_an_interval_that_is_cut_at_the_axis_has_an_arrow():
    """At the end that it passes, and nowhere else."""
    record, runs, costs, curve = make_study(tasks=("text",))
    rows = wording.all_rows(record, summarise(record, runs, costs, points=points_of(curve)))
    own = next(row for row in rows["text"].values() if row.get("delta") is not None)
    here, far = own["delta"], 1e6
    cases = ((-far, far, "<>"), (here, far, ">"), (-far, here, "<"), (here, here, ""))
    for low, high, marks in cases:
        wide = own | {"delta_low_simultaneous": low, "delta_high_simultaneous": high}
        axes = forest(record, {"text": {own["arm"]: wide}}, "text").axes[0]
        assert "".join(sorted(line.get_marker() for line in axes.lines
                              if line.get_marker() in ("<", ">"))) == marks  # fmt: skip


def test_a_margin_of_next_to_nothing_does_not_rule_the_axis():
    """As near a ceiling: ticks that can be told apart, and four digits at most."""
    record, runs, costs, curve = make_study(tasks=("text",))
    tiny = dataclasses.replace(record.tasks["text"].outcome, margin=2e-7)
    record = record.with_task("text", outcome=tiny, declared_margin=0.02)
    results = wording.all_rows(record, summarise(record, runs, costs, points=points_of(curve)))
    axes = forest(record, results, "text").axes[0]
    ticks = [tick for tick in axes.get_xticks() if tick]
    assert 2 < len(ticks) < 16 and min(map(abs, ticks)) > 1e-4
    assert wording.digits(record.tasks["text"]) == 4
    shown = [text.get_text() for text in axes.texts if "[" in text.get_text()]
    assert max(len(text.split()[0]) for text in shown[1:]) == len("+0.1234")


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("K=V", "K=V ▼"),
        ("copies, learned scale", "copies, learned\nscale ▼"),
        ("one_word_that_gives_no_place", "one_word_that_gives_\nno_place ▼"),
        ("more words than two lines of it have", "more words than two\nlines of it have ▼"),
        ("more than what two such lines could show", "more than what two\nsuch lines could sh… ▼"),
    ],
)
def test_the_name_above_a_panel_takes_two_lines_before_it_is_cut(name, title):
    figure, (axes,) = style.grid(1)
    text = style.panel_title(axes, name, " ▼")
    assert text.get_text() == title
    assert text.get_window_extent().y1 <= figure.bbox.y1


def test_contrasts_stand_below_the_arms():
    """With their own difference, interval and verdict."""
    record, runs, costs, curve = make_study(tasks=("text",))
    arms = record.arms | {"Q=K=V": dataclasses.replace(record.arms["Q=K=V"], against="Q=K")}
    record = dataclasses.replace(record, arms=arms)
    results = wording.all_rows(record, summarise(record, runs, costs, points=points_of(curve)))
    table = contrast_table(record, runs)
    contrasts = table.assign(verdict=table["verdict"].map(str)).to_dict("records")  # as read
    axes = forest(record, results, "text", contrasts).axes[0]
    places = {t.get_text(): y for t, y in zip(axes.get_yticklabels(), axes.get_yticks(),
                                              strict=True)}  # fmt: skip
    y = places.pop("Q=K=V \u2212 Q=K")
    assert y < min(places.values())
    mine = [line for line in axes.lines if set(line.get_ydata()) == {y}]
    assert [*mine[-1].get_xdata()] == [contrasts[0]["delta"]]
    assert "or as named" in axes.get_xlabel()
    assert "or as named" not in forest(record, results, "text").axes[0].get_xlabel()


def test_lattices_of_one_metric_have_one_scale():
    """So that equal colours are equal differences; the undecided are pale, whatever their size."""
    record, runs, costs, curve = make_study(tasks=("text", "digits"))
    results = wording.all_rows(record, summarise(record, runs, costs, points=points_of(curve)))
    ends = {}
    for name in record.tasks:
        figure = lattice(record, results, [name])
        ends[name] = [label.get_text() for label in figure.axes[-1].get_xticklabels()]
    assert ends["text"] != ends["digits"]  # nats are no accuracy
    twin = dataclasses.replace(record.tasks["text"], title="Other bytes")
    record = dataclasses.replace(record, tasks=record.tasks | {"twin": twin})
    smaller = {arm: row | ({"delta": row["delta"] / 2} if row.get("delta") else {})
               for arm, row in results["text"].items()}  # fmt: skip
    results |= {"twin": smaller}
    task = record.tasks["twin"]
    bar = lattice(record, results, ["twin"]).axes[-1]
    assert [label.get_text() for label in bar.get_xticklabels()] == ends["text"]
    values, margin = _alike(record, results, task)
    assert margin == 0.02 and _alike(record, results, record.tasks["text"]) == (values, margin)
    norm = colour_norm(values, margin)
    assert norm.vmax == max(abs(r["delta"]) for r in results["text"].values() if r.get("delta"))
    full, pale = (shade(task, norm, norm.vmax, kind) for kind in ("worse", "undecided"))
    assert style.ink_on(full) != style.INK == style.ink_on(pale)
    assert shade(task, norm, norm.vmax, "pending") == pale


def test_the_lattice_has_all_ties_and_the_edges_of_refinement():
    assert sorted(t for r in ROWS for t in r) == sorted(map(str, Tie.all()))
    for learned, ties in zip((3, 2, 1, 0), ROWS, strict=True):
        assert all(len(Tie.parse(tie).sources) == learned for tie in ties)
    edges = covering_pairs()
    # 6 + 18 + 7: of the partition lattice of four elements; each joins neighbouring rows.
    level = {tie: i for i, ties in enumerate(ROWS) for tie in ties}
    assert len(edges) == 31 and all(level[b] - level[a] == 1 for a, b in edges)


def test_lattice_nodes_are_arms_that_override_the_tie_alone():
    record = make_study(tasks=("text",), extra_arms=[("K=V wide", "K=V")])[0]
    nodes = lattice_nodes(record, "text")
    assert len(nodes) == 15 and nodes["K=V"] == "K=V" and nodes["Q=K=V=X"] == "copies"
    wider = {"model": {"tie": "Q=V", "heads": 2}}
    entry = dataclasses.replace(record.arms["Q=V"], overrides=wider)
    record = dataclasses.replace(record, arms=record.arms | {"Q=V": entry})
    assert "Q=V" not in lattice_nodes(record, "text")


def test_nothing_dominates_the_arms_on_the_front():
    points = [(1, 3.0, "a"), (1, 2.0, "b"), (2, 2.0, "c"), (3, 1.0, "d"), (3, 1.5, "e")]
    assert non_dominated(points, higher_is_better=False) == ["b", "d"]
    assert non_dominated(points, higher_is_better=True) == ["a"]


@pytest.mark.parametrize("costs, positions", [
    ((128, 256, 512, 256), (7, 8, 9, 8)),
    ((0, 64, 256), (4.5, 6, 8)),  # what has no state has a place of its own
    ((0, 0), (-1.5, -1.5)),
])  # fmt: skip
def test_state_lies_on_a_scale_of_powers_of_two(costs, positions):
    assert tuple(map(log_places(costs), costs)) == positions
    axes = style.new_figure(1.0, 1.0).add_axes((0, 0, 1, 1))
    log_ticks(axes, costs)
    ticks = axes.xaxis.get_major_locator().locs
    assert sorted(set(positions)) == sorted(ticks)
    many = range(3, 40)
    log_ticks(axes, many)
    labels = [axes.xaxis.get_major_formatter()(x) for x in axes.xaxis.get_major_locator().locs]
    assert labels == ["4", "8", "16", "32"]


def test_state_has_a_panel_where_arms_differ_in_it():
    record, runs, costs, _ = make_study(tasks=("text",))
    label = "state (bytes per token, log scale)"

    def panels(costs):
        results = wording.all_rows(record, summarise(record, runs, costs))
        figure = cost_quality(record, results, "text")
        return [axes.get_xlabel() for axes in figure.axes]

    assert panels(costs) == [label, "parameters"]
    for size in (0, 256):
        same = {arm: found | {STATE: size} for arm, found in costs["text"].items()}
        assert panels({"text": same}) == ["parameters"]
    some = {arm: found | {STATE: 64 * (arm != "K=V")} for arm, found in costs["text"].items()}
    assert panels({"text": some}) == [label, "parameters"]


def test_only_points_whose_intervals_overlap_stand_aside():
    rows = {arm: {"ci_low": y - 1, "ci_high": y + 1} for arm, y in zip("abcd", (0, 1, 5, 5.5),
                                                                    strict=True)}  # fmt: skip
    rows |= {"e": {}}
    column = [(8, 0, "a"), (8, 1, "b"), (8, 5, "c"), (9, 5.5, "d"), (8, 9, "e")]
    left, right, *others = _aside(column, rows, 1.0)
    assert left == -right < 0 and others == [0, 0, 0]
