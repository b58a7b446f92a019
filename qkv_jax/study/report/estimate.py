"""What a study would take: its plan, before anything runs."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qkv_jax.output import formats
from qkv_jax.runtime.devices import devices_in_words
from qkv_jax.study.arms import same_programs
from qkv_jax.study.plan import Arm, Study, TaskPlan
from qkv_jax.study.protocol.rounds import Part, expected, wave_count
from qkv_jax.study.record import StudyRecord
from qkv_jax.study.run.engine import Progress as Event
from qkv_jax.training import costs
from qkv_jax.training.shared import program_of
from qkv_jax.training.speed import USUAL, Speed

_CELLS_LISTED = 24  # of larger grids --plan shows the total only


_RUNS_A_PILOT_RUN = 3.0  # of a race in all, on the average of the quick study's tasks


class Workload:
    """The share of a study's work that is done, in estimated seconds. What is not known before is
    added when it is; a race is taken for what one mostly comes to until it has gone further."""

    def __init__(self, study: Study):
        record = study.describe()
        self.wave_work = {
            (plan.name, arm.name): _wave_seconds(arm, record, USUAL)
            for plan in study.tasks
            for arm in plan.arms
        }
        self.known = {
            plan.name: sum(
                wave_count(record, [part]) * self.wave_work[part.task, part.arm]
                for part in _parts(record, plan)
            )
            for plan in study.tasks
        }
        grows = _RUNS_A_PILOT_RUN if record.protocol == "race" else 1.0
        self.likely = {name: grows * work for name, work in self.known.items()}
        self.program = {
            (plan.name, arm.name): (plan.name, program_of(arm.trainer))
            for plan in study.tasks
            for arm in plan.arms
        }
        self.compilations = len(set(self.program.values())) * USUAL.compilation
        self.compiled: set = set()
        self.done = self.skipped = self.part = 0.0
        self.shown = 0.0  # the share, but where work is added it waits, and does not go back
        self.waves: int | None = None
        self.waves_done = 0

    def count(self, event: Event) -> None:
        wave = self.wave_work[event.task, event.arm]
        waves = event.waves_total
        for name in self.likely:  # tasks before this one have come to what is known
            if name == event.task:
                break
            self.likely[name] = 0.0
        if self.waves is not None and waves > self.waves:
            self.known[event.task] += (waves - self.waves) * wave
        if self.waves is not None and event.waves_done > self.waves_done:
            program = self.program[event.task, event.arm]
            cost = wave + USUAL.compilation * (program not in self.compiled)
            self.compiled.add(program)
            self.done += cost
            self.skipped += 0.0 if event.wave_finished else cost
        self.part = wave * event.step / max(event.steps, 1)
        self.waves, self.waves_done = waves, event.waves_done
        self.shown = max(self.shown, self.share)

    @property
    def total(self) -> float:
        work = (max(self.known[name], self.likely[name]) for name in self.known)
        return sum(work) + self.compilations

    @property
    def share(self) -> float:
        return min((self.done + self.part) / self.total, 1.0)

    @property
    def fresh(self) -> float:
        """The share done in this session: what was found finished tells nothing of speed."""
        return (self.done + self.part - self.skipped) / self.total


def print_plan(study: Study, speed: Speed, console: Console | None = None) -> None:
    """Prints the runs, compilations and estimated time of every task, and of all.

    Args: speed: of the machine that the time is estimated for.
    """
    console = console or Console()
    record = study.describe()
    shape = record.wave
    table = Table(title=f"Study {study.file.name!r}: what would be run", title_justify="left")
    # Names give way where the terminal is narrow, numbers never.
    table.add_column("task", overflow="fold")
    races = record.protocol == "race"
    kinds = ("pilot", "about") if races else ("tuning", "evaluation")
    for heading in ("arms", *kinds, "steps", "programs", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    rows = [_plan_row(record, plan, speed) for plan in study.tasks]
    families = dict.fromkeys(plan.family for plan in study.tasks)
    for family in families:
        mine = [(p, row) for p, row in zip(study.tasks, rows, strict=True) if p.family == family]
        if mine[0][0].cell.label:
            table.add_row(Text(f"{family}, {len(mine)} cells", style="bold"), *_total(mine))
        for plan, row in mine if len(mine) <= _CELLS_LISTED else ():
            name = f"  {plan.cell.label}" if plan.cell.label else plan.name
            table.add_row(name, *map(str, row[:-1]), duration(row[-1]))
    table.add_section()
    table.add_row("all", *_total(list(zip(study.tasks, rows, strict=True))))
    console.print(table)
    more = "a grid extended at its edge adds runs."
    if races:
        more = (
            f"a race takes about {_RUNS_A_PILOT_RUN} runs for each of its pilot, fewer where arms "
            f"differ much and more where they hardly do, to {record.analyses[-1]} seeds at most."
        )
    console.print(
        f"{shape['size']} runs at once: {shape['devices']} devices × {shape['packing']} per "
        f"device. Programs are what is compiled. Times are for {devices_in_words()}, as busy as "
        f"they were just now; {more} All runs together: "
        f"{_petaflops(record, study):.2g} PFLOP of matrix products. Nothing was started."
    )
    for line in _to_know(study):
        console.print(line, highlight=False, markup=False)


def duration(seconds: float) -> str:
    """"48 s", "9 min", "2.4 h"."""
    if seconds > 5400:
        return f"{seconds / 3600:,.1f} h"
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"


def _to_know(study: Study) -> list[str]:
    """What to know of a study before it is run: of its data, and arms that are one program."""
    found: dict[str, list[str]] = {}  # line: tasks
    for plan in study.tasks:
        lines = list(study.facts(plan).notes)
        same = same_programs(plan.arms)
        lines += [f"arm {arm!r} is the program of {other!r}" for arm, other in same.items()]
        for line in lines:
            found.setdefault(line, []).append(plan.name)
    return [f"{formats.join(tasks)}: {line}" for line, tasks in found.items()]


def setting_out(study: Study) -> str:
    """What a study sets out to do, in a sentence."""
    record, name = study.describe(), study.file.name
    arms = len(record.arms) - 1  # beside the placebo
    runs = sum(len(part.runs) for plan in study.tasks for part in _parts(record, plan))
    tasks = "1 task" if len(study.tasks) == 1 else f"{len(study.tasks)} tasks"
    more = " to begin with; --plan says how long it takes" if record.protocol == "race" else ""
    return f"study {name!r}, {arms} arms on {tasks}, {runs:,} runs{more}."


def _parts(record: StudyRecord, plan: TaskPlan) -> list[Part]:
    return [part for found in expected(record, plan.name) for part in found.parts]


def _plan_row(record: StudyRecord, plan: TaskPlan, speed: Speed) -> tuple:
    """Arms, tuning runs, evaluation runs, steps, compilations, seconds; of a race the runs of its
    pilot and about how many there are in all."""
    runs, seconds = {False: 0, True: 0}, 0.0
    arms = {arm.name: arm for arm in plan.arms}
    for part in _parts(record, plan):
        runs[part.kind.compares] += len(part.runs)
        seconds += wave_count(record, [part]) * _wave_seconds(arms[part.arm], record, speed)
    if record.protocol == "race":
        runs = {False: runs[False], True: round(_RUNS_A_PILOT_RUN * runs[False])}
        seconds *= _RUNS_A_PILOT_RUN
    programs = len({program_of(arm.trainer) for arm in plan.arms})
    seconds += programs * speed.compilation
    steps = plan.baseline.trainer.train_config.steps
    return len(arms), runs[False], runs[True], steps, programs, seconds


def _total(mine: list[tuple[TaskPlan, tuple]]) -> list[str]:
    """The sums of the rows; the number of steps has none."""
    arms, tunes, evals, _, programs, seconds = map(sum, zip(*(row for _, row in mine), strict=True))
    return [str(arms), str(tunes), str(evals), "", str(programs), duration(seconds)]


def _wave_seconds(arm: Arm, record: StudyRecord, speed: Speed) -> float:
    steps = arm.trainer.train_config.steps
    return steps * speed.seconds(arm.trainer, record.wave["packing"])


def _petaflops(record: StudyRecord, study: Study) -> float:
    """Of training, for machines other than the one that minutes are estimated for."""
    total, grows = 0.0, _RUNS_A_PILOT_RUN if record.protocol == "race" else 1.0
    for plan in study.tasks:
        arms = {arm.name: arm for arm in plan.arms}
        for part in _parts(record, plan):
            arm = arms[part.arm]
            steps = grows * len(part.runs) * arm.trainer.train_config.steps
            total += steps * costs.step_flops(program_of(arm.trainer))
    return total / 1e15
