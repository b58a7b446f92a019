"""A part of a study: some of its tasks and arms, which says of itself that it is no more.

    values = part(values, tasks=("relation",), arms=("Q=K",))
    Study(values)       # one task, Q=K beside the baseline
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qkv_jax.config import ConfigError, nearest
from qkv_jax.output import formats
from qkv_jax.study.plan import Study


def listed(text: str, names: Iterable[str], field: str) -> tuple[str, ...]:
    """The names in a list with commas, of which names may hold some themselves.

    Raises:
      ConfigError: for one that is not there.
    """
    names, found, left = list(names), [], text.strip()
    while left:
        # The longest that there is: after "copies" may come "copies, learned scale".
        fits = [name for name in names if left == name or left.startswith(f"{name},")]
        if not fits:
            item = left.partition(",")[0].strip()
            raise ConfigError(field, item, nearest(item, names))
        found.append(max(fits, key=len))
        left = left[len(found[-1]) + 1 :].strip()
    return tuple(dict.fromkeys(found))


def part(values: Mapping[str, Any], tasks: Sequence[str], arms: Sequence[str]) -> dict[str, Any]:
    """The study file with some of its tasks and arms; the baseline is always one of them.

    Claims, contrasts and published numbers that need what is left out are left out as well, and so
    are tasks that none of the arms but the baseline has.

    Args:
      values: see `StudyFile`; tasks, arms: their names, none for all of them.

    Raises:
      ConfigError: if the whole study is none, or nothing is left of it.
    """
    whole = Study(values)
    kept = {whole.config.baseline, *(arms or whole.arm_entries)}
    entries = {}
    for name in tasks or whole.file.tasks:
        entry = dict(whole.file.tasks[name])
        if arms:
            entry["arms"] = tuple(a for a in entry.get("arms") or whole.arm_entries if a in kept)
            columns = entry.get("published", {}).items()
            entry["published"] = {c: {a: of[a] for a in of if a in kept} for c, of in columns}
            if not set(entry["arms"]) - {whole.config.baseline}:
                continue
        entries[name] = entry
    if not entries:
        raise ConfigError("--arms", ",".join(arms), f"none of them is an arm of {','.join(tasks)}")
    named = {n: dict(entry) for n, entry in whole.file.arms.items() if n in kept}
    for entry in named.values():
        if entry.get("against") not in kept:
            entry.pop("against", None)
    families = {plan.name: plan.family for plan in whole.tasks}
    claims = {
        name: values["claims"][name]
        for name, claim in whole.claims.items()
        if {families[task] for e in claim.evidence.values() for task in e.tasks} <= set(entries)
        and {arm for e in claim.evidence.values() for arm in (e.arm, e.against) if arm} <= kept
    }
    said = [
        _of("tasks", entries, whole.file.tasks), _of("arms", named, whole.arm_entries),
        _of("claims", claims, whole.claims),
    ]  # fmt: skip
    what = "; ".join(filter(None, said))
    return {**values, "tasks": entries, "arms": named, "claims": claims, "part": what}


def _of(what: str, kept: Iterable[str], all_of_them: Iterable[str]) -> str:
    kept, count = list(kept), len(list(all_of_them))
    if len(kept) == count:
        return ""
    return f"of its {count} {what} {formats.join(kept) if kept else 'none'}"
