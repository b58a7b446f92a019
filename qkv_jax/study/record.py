"""What is kept of a study: the format of study.json, the columns of its runs."""

FORMAT = 1

RUN_COLUMNS = (
    "task", "arm", "phase", "learning_rate", "seed", "status", "metric", "value", "steps",
    "steps_to_solve", "seconds",
)  # fmt: skip


KEY = ("task", "arm", "phase", "learning_rate", "seed")
