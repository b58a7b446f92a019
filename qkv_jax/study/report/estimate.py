"""What a study would take: its plan, before anything runs."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qkv_jax.output import formats
from qkv_jax.study.arms import same_programs
from qkv_jax.study.plan import Study, TaskPlan
from qkv_jax.study.protocol.rounds import Part, expected, wave_count
from qkv_jax.study.record import StudyRecord
from qkv_jax.study.run.engine import Progress as Event
from qkv_jax.training import costs

_CELLS_LISTED = 24  # of larger grids --plan shows the total only


# For estimates only: what a replica on one core of a 2-core machine took, fitted to the quick
# study. A step is a fixed part and its FLOPs; compiling is per program.
_RUNS_A_PILOT_RUN = 3.0  # of a race in all, on the average of the quick study's tasks
_SECONDS_A_STEP, _FLOPS_A_SECOND, _SECONDS_A_COMPILATION = 8e-4, 5e10, 4.0


class Workload:
    """The share of a study's work that is done, in estimated seconds. What is not known before is
    added when it is; a race is taken for what one mostly comes to until it has gone further."""

    def __init__(self, study: Study):
        self.wave_work = {
            (plan.name, arm.name): _step_seconds(plan, arm) * arm.trainer.train_config.steps
            for plan in study.tasks
            for arm in plan.arms
        }
        record = study.describe()
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
            (plan.name, arm.name): (plan.name, arm.trainer)
            for plan in study.tasks
            for arm in plan.arms
        }
        self.compilations = len(set(self.program.values())) * _SECONDS_A_COMPILATION
        self.compiled: set = set()
        self.done = self.skipped = self.part = 0.0
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
            cost = wave + _SECONDS_A_COMPILATION * (program not in self.compiled)
            self.compiled.add(program)
            self.done += cost
            self.skipped += 0.0 if event.wave_finished else cost
        self.part = wave * event.step / max(event.steps, 1)
        self.waves, self.waves_done = waves, event.waves_done

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


def print_plan(study: Study, console: Console | None = None) -> None:
    """Prints the runs, compilations and estimated time of every task, and of all."""
    console = console or Console()
    record = study.describe()
    shape = record.wave
    table = Table(title=f"Study {study.file.name!r}: what would be run", title_justify="left")
    # Names give way where the terminal is narrow, numbers never.
    table.add_column("task", overflow="fold")
    races = record.protocol == "race"
    kinds = ("pilot", "about") if races else ("tuning", "evaluation")
    for heading in ("arms", *kinds, "steps", "programs", "minutes"):
        table.add_column(heading, justify="right", no_wrap=True)
    rows = [_plan_row(record, plan) for plan in study.tasks]
    families = dict.fromkeys(plan.family for plan in study.tasks)
    for family in families:
        mine = [(p, row) for p, row in zip(study.tasks, rows, strict=True) if p.family == family]
        if mine[0][0].cell.label:
            table.add_row(Text(f"{family}, {len(mine)} cells", style="bold"), *_total(mine))
        for plan, row in mine if len(mine) <= _CELLS_LISTED else ():
            name = f"  {plan.cell.label}" if plan.cell.label else plan.name
            table.add_row(name, *map(str, row[:-1]), f"{row[-1]:.1f}")
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
        f"Waves of {shape['size']} runs: {shape['devices']} devices × {shape['packing']} per "
        f"device. Programs are what is compiled. Minutes are estimated for two CPU cores; {more} "
        f"All runs together: {_petaflops(record, study):.2g} PFLOP of matrix products. Nothing was "
        "started."
    )
    for line in _to_know(study):
        console.print(line, highlight=False, markup=False)


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


def _parts(record: StudyRecord, plan: TaskPlan) -> list[Part]:
    return [part for found in expected(record, plan.name) for part in found.parts]


def _plan_row(record: StudyRecord, plan: TaskPlan) -> tuple:
    """Arms, tuning runs, evaluation runs, steps, compilations, minutes; of a race the runs of its
    pilot and about how many there are in all."""
    runs, seconds = {False: 0, True: 0}, 0.0
    arms = {arm.name: arm for arm in plan.arms}
    for part in _parts(record, plan):
        arm = arms[part.arm]
        runs[part.kind.compares] += len(part.runs)
        steps = wave_count(record, [part]) * arm.trainer.train_config.steps
        seconds += steps * _step_seconds(plan, arm) * record.wave["packing"]
    if record.protocol == "race":
        runs = {False: runs[False], True: round(_RUNS_A_PILOT_RUN * runs[False])}
        seconds *= _RUNS_A_PILOT_RUN
    programs = len({arm.trainer for arm in plan.arms})
    minutes = (seconds + programs * _SECONDS_A_COMPILATION) / 60
    steps = plan.baseline.trainer.train_config.steps
    return len(arms), runs[False], runs[True], steps, programs, minutes


def _total(mine: list[tuple[TaskPlan, tuple]]) -> list[str]:
    """The sums of the rows; the number of steps has none."""
    arms, tunes, evals, _, programs, minutes = map(sum, zip(*(row for _, row in mine), strict=True))
    return [str(arms), str(tunes), str(evals), "", str(programs), f"{minutes:.1f}"]


def _step_seconds(plan: TaskPlan, arm) -> float:
    return _SECONDS_A_STEP + _step_flops(plan, arm) / _FLOPS_A_SECOND


def _step_flops(plan: TaskPlan, arm) -> float:
    flops = costs.flops_per_token(arm.trainer) * plan.task.max_length
    return 3 * flops * arm.trainer.train_config.batch_size  # backward costs twice the forward


def _petaflops(record: StudyRecord, study: Study) -> float:
    """Of training, for machines other than the one that minutes are estimated for."""
    total, grows = 0.0, _RUNS_A_PILOT_RUN if record.protocol == "race" else 1.0
    for plan in study.tasks:
        arms = {arm.name: arm for arm in plan.arms}
        for part in _parts(record, plan):
            arm = arms[part.arm]
            steps = grows * len(part.runs) * arm.trainer.train_config.steps
            total += steps * _step_flops(plan, arm)
    return total / 1e15
