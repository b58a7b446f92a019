"""When the claims of a study and the rules of their verdicts were fixed, and what became of them.

A verdict is worth what was laid down before the data were seen. study.json keeps, from the first
start on, the date and a digest of all that a verdict follows from: claims with their evidence,
margins, alpha, and the rules' version. Whoever changes any of it later must say so, and the record
lists it as an amendment.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qkv_jax.config import ConfigError, as_dict
from qkv_jax.runtime.files import json_text
from qkv_jax.study.claims import RULES
from qkv_jax.study.record import Change, Dated, StudyRecord


def digest(record: StudyRecord) -> str:
    """SHA-256 of the claims and the rules by which they are judged."""
    text = json.dumps(_stated(record), sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def dated(record: StudyRecord, at: str) -> StudyRecord:
    """A new study with its claims, if it has any, dated."""
    if not record.claims:
        return record
    return dataclasses.replace(record, claims_dated=(Dated(at, digest(record), RULES),))


def amendments(known: StudyRecord, asked: StudyRecord) -> list[Change]:
    """In what the claims that are asked for, or the rules, differ from those of a study."""
    rules = known.claims_dated[-1].rules if known.claims_dated else None
    found = []
    if rules not in (None, RULES) and asked.claims:
        found.append(Change("claims, rules of their verdicts", rules, RULES))
    return found + list(_differences(_stated(known), _stated(asked)))


def refuse_amendments(found: Sequence[Change]) -> None:
    """Refuses claims or rules that are not those of a study.

    Raises:
      ConfigError: naming the first field.
    """
    if found:
        first, *others = found
        more = f" (and {len(others)} more)" if others else ""
        before = "not there" if first.before is None else f"{first.before!r}"
        allowed = (
            f"was {before} when the claims of this study were fixed{more}; set it back, "
            "name another folder, or go on under accept_changes: the report lists the amendment"
        )
        raise ConfigError(first.field, first.now, allowed)


def amended(known: StudyRecord, asked: StudyRecord, at: str) -> StudyRecord:
    """A study with the claims that are asked for, the change noted; as it was if there is none."""
    found = amendments(known, asked)
    if not found:
        return known
    entry = Dated(at, digest(asked), RULES, tuple(found))
    for name, task in asked.tasks.items():
        known = known.with_task(name, outcome=task.outcome)  # its margin
    return dataclasses.replace(
        known, claims=asked.claims, claims_dated=(*known.claims_dated, entry),
        config=known.config | {"claims": asked.config.get("claims", {})},
    )  # fmt: skip


def _stated(record: StudyRecord) -> dict[str, Any]:
    """All that verdicts follow from, but for the data, as study.json would give it back."""
    tasks = {task for claim in record.claims.values() for entry in claim.evidence.values()
             for task in entry.tasks}  # fmt: skip
    margins = {name: record.tasks[name].outcome.margin for name in sorted(tasks)}
    found = {"claims": as_dict(record.claims), "margins": margins, "alpha": record.alpha}
    return json.loads(json_text(found | {"rules": RULES}))


def _differences(before: Any, now: Any, path: str = "") -> Iterator[Change]:
    """In what two trees differ; what only one of them has, as a whole."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys([*before, *now]):
            yield from _differences(before.get(name), now.get(name), f"{path}.{name}".lstrip("."))
    elif before != now:
        yield Change(path, _given(before), _given(now))


def _given(value: Any) -> Any:
    """Without what is not used."""
    if not isinstance(value, Mapping):
        return value
    return {name: _given(x) for name, x in value.items() if x not in (None, "", False)}
