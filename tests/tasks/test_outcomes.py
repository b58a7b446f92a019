"""Outcomes of tasks, and what tasks refuse."""

import numpy as np
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.tasks import REGISTRY, Outcome, make_task
from qkv_jax.tasks.text.files import read_bytes

NEEDS_FILES = {"idx", "images", "text_classification", "translation"}


def test_solved_looks_the_right_way():
    """Accuracies must reach the threshold from below, losses from above; both include it."""
    accuracy = Outcome("solve", "accuracy", "accuracy", 0.01, 0.1, threshold=0.9)
    assert accuracy.higher_is_better
    assert [accuracy.solved(value) for value in (0.89, 0.9, 1.0)] == [False, True, True]
    loss = Outcome("solve", "loss", "nats", 0.01, 5.0, threshold=0.5)
    assert not loss.higher_is_better
    assert [loss.solved(value) for value in (0.51, 0.5, 0.0)] == [False, True, True]
    assert not accuracy.solved(float("nan")) and not loss.solved(float("nan"))


def test_without_a_threshold_nothing_is_solved():
    """And an outcome that compares shares of solved runs cannot do without one."""
    assert not Outcome("mean", "loss", "nats", 0.01, 5.0).solved(0.0)
    with pytest.raises(ConfigError, match="threshold: given None"):
        Outcome("solve", "accuracy", "accuracy", 0.01, 0.1)


@pytest.mark.parametrize("kind", sorted(set(REGISTRY) - NEEDS_FILES))
def test_failing_counts_as_chance(kind):
    """What a diverged run counts as is the value of a uniform guess, in the metric's own unit."""
    task = make_task(kind, {})
    chance = np.log(task.classes) if task.outcome.metric == "loss" else 1 / task.classes
    assert np.isclose(task.outcome.failure_value, chance)


@pytest.mark.parametrize(
    ("kind", "options", "line"),
    [
        ("revers", {}, "kind: given 'revers'; did you mean 'reverse'? allowed: "
                       f"{', '.join(sorted(REGISTRY))}"),
        ("reverse", {"length": 1}, "length: given 1; must be at least 2"),
        ("reverse", {"symbols": 2}, "symbols: given 2; must be at least 3, to tell splits apart"),
        ("reverse", {"test_examples": 0}, "test_examples: given 0; must be a whole number above 0"),
        ("reverse", {"margin": 0.0}, "margin: given 0.0; must be a finite number above 0"),
        ("relation", {"labels": 2}, "labels: given 2; must be at least 3, to tell splits apart"),
        ("relation", {"names": 8}, "names: given 8; must be at least length = 32"),
        ("mnist5k", {"patch": 5}, "patch: given 5; must divide the side, 28"),
        ("mnist5k", {"margin": float("nan")}, "margin: given nan; must be a finite number above 0"),
    ],
)  # fmt: skip
def test_tasks_refuse_what_cannot_be(kind, options, line):
    """One line each: the field, what was given, what is allowed."""
    with pytest.raises(ConfigError) as refusal:
        make_task(kind, options)
    assert str(refusal.value) == f"task.{'' if line.startswith('kind') else 'options.'}{line}"


def test_the_share_of_masked_bytes_is_one_byte_at_least_and_not_all():
    """Bounded by the length of the window, which the line says."""
    for masked in (0.0, 0.01, 1.0, float("nan")):
        with pytest.raises(ConfigError, match=f"masked: given {masked}; .* least 0.0625 and"):
            make_task("masked_bytes", {"length": 16, "masked": masked})


def test_unreadable_empty_and_short_texts_are_refused_by_name(tmp_path):
    """The line names the file and what is wrong with it."""
    empty, short, middling = (tmp_path / name for name in ("empty", "short", "middling"))
    empty.write_bytes(b"")
    short.write_bytes(b"abc")
    middling.write_bytes(bytes(300))
    for path, message in [
        (tmp_path / "none", "cannot be read: No such file or directory"),
        (empty, "is empty"),
        (short, "holds 3 bytes; a sequence needs 16"),
    ]:
        with pytest.raises(ConfigError) as refusal:
            read_bytes(path, 16)
        assert str(refusal.value) == f"files: given {str(path)!r}; {message}"
    with pytest.raises(ConfigError, match="middling.*too short: the validation split"):
        make_task("masked_bytes", {"files": (str(middling),), "length": 16}).load()


@pytest.mark.parametrize("kind", [["reverse"], None, 3])
def test_a_kind_that_is_no_text_is_refused(kind, unchecked):
    with pytest.raises(ConfigError, match=r"task.kind: given .*[;?] allowed: causal_bytes, "):
        make_task(kind, {})
