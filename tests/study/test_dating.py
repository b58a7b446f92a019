"""Claims and their rules are dated at the first start; what becomes of them later is on record."""

import dataclasses
import json

import pytest

from qkv_jax.config import ConfigError
from qkv_jax.study import dating
from qkv_jax.study.dating import amendments, digest
from qkv_jax.study.plan import Study
from qkv_jax.study.record import Change, StudyRecord
from qkv_jax.study.report.ledger import dating_sentences
from qkv_jax.study.run.workdir import Workdir
from tests.study.test_names import VALUES

TASK = VALUES["tasks"]["one"]
EVIDENCE = {"a": {"task": "one", "arm": "copies", "expect": "worse"}}


def described(evidence=EVIDENCE, text="so.", **more):
    options = {**TASK.get("options", {}), "outcome_kind": "mean"}
    tasks = {"one": TASK | {"options": options}}
    claims = {"1": {"text": text, "evidence": evidence, **more}}
    return Study(VALUES | {"tasks": tasks, "claims": claims}).describe()


@pytest.fixture
def started(tmp_path):
    workdir = Workdir(tmp_path / "study")
    return workdir, workdir.open(described())


def rewritten(workdir, change):
    known = json.loads(workdir.study_file.read_text())
    change(known)
    workdir.study_file.write_text(json.dumps(known))


def test_claims_are_dated_once(started):
    workdir, record = started
    (dated,) = record.claims_dated
    assert (dated.digest, dated.changes) == (digest(described()), ())
    assert workdir.read_study().claims_dated == workdir.open(described()).claims_dated == (dated,)
    (said,) = dating_sentences(record)
    assert f"fixed on {dated.at}, before the first run" in said and dated.digest[:16] in said


@pytest.mark.parametrize(
    "other",
    [{"text": "not so."}, {"enough": 0.5},
     {"evidence": {"a": EVIDENCE["a"] | {"margin": 0.3}}},
     {"evidence": {"a": EVIDENCE["a"] | {"expect": "better"}}},
     {"evidence": EVIDENCE | {"b": EVIDENCE["a"] | {"control": True}}}],
)  # fmt: skip
def test_the_digest_is_of_all_that_a_verdict_follows_from(other):
    assert digest(described(**other)) != digest(described())
    assert digest(described()) == digest(described(enough=1.0))  # said or by default


def test_the_digest_is_of_margins_alpha_and_rules_as_well(started, monkeypatch):
    _, record = started
    whole = digest(record)
    assert digest(dataclasses.replace(record, alpha=0.01)) != whole
    outcome = dataclasses.replace(record.tasks["one"].outcome, margin=0.33)
    assert digest(record.with_task("one", outcome=outcome)) != whole
    assert digest(StudyRecord.read(json.loads(json.dumps(record.as_dict())))) == whole
    monkeypatch.setattr(dating, "RULES", 99)
    assert digest(record) != whole


def test_other_claims_are_refused_unless_they_are_accepted(started):
    """And are an amendment, which the report lists."""
    workdir, _ = started
    before = workdir.study_file.read_bytes()
    changed = described(evidence=EVIDENCE | {"b": EVIDENCE["a"] | {"expect": "better"}}, enough=0.5)
    with pytest.raises(ConfigError) as refused:
        workdir.open(changed)
    line = str(refused.value)
    assert line.startswith("claims.1.evidence.b: given {'task': 'one', 'arm': 'copies', 'expect': "
                           "'better'}; was not there when the claims")  # fmt: skip
    assert "accept_changes" in line and "\n" not in line
    assert workdir.study_file.read_bytes() == before
    workdir.accept_changes(changed)
    workdir.accept_changes(changed)  # once is enough
    record = workdir.open(changed)
    first, amendment = record.claims_dated
    assert first.changes == () and amendment.digest == digest(changed) != first.digest
    assert Change("claims.1.enough", 1.0, 0.5) in amendment.changes
    assert Change("claims.1.evidence.b", None, EVIDENCE["a"] | {"expect": "better"}) in (
        amendment.changes
    )
    assert set(record.claims["1"].evidence) == {"a", "b"} and record.accepted == ()
    said = dating_sentences(record)
    assert len(said) == 2 and said[1].startswith(f"Amended on {amendment.at}, after runs")
    assert "claims.1.enough was 1.0, then 0.5" in said[1]
    assert "claims.1.evidence.b was not there, then {'task': 'one'" in said[1]
    assert workdir.open(changed) == record
    with pytest.raises(
        ConfigError, match=r"given None; was \{.*\} when the claims .*\(and 1 more\)"
    ):
        workdir.open(described())  # as it was is another change


def test_other_rules_are_an_amendment(started, monkeypatch):
    workdir, _ = started
    monkeypatch.setattr(dating, "RULES", 99)
    with pytest.raises(ConfigError, match="claims, rules of their verdicts: given 99; was 2 when"):
        workdir.open(described())
    workdir.accept_changes(described())
    record = workdir.open(described())
    assert record.claims_dated[-1].rules == 99 and amendments(record, described()) == []


def test_a_study_from_before_is_not_dated(started):
    workdir, _ = started
    rewritten(workdir, lambda known: known.pop("claims_dated"))
    record = workdir.open(described())
    assert record.claims_dated == () and "not dated" in dating_sentences(record)[0]
    changed = described(text="not so.")
    workdir.accept_changes(changed)
    record = workdir.open(changed)
    said = dating_sentences(record)
    assert "not dated" in said[0] and "claims.1.text was 'so.', then 'not so.'" in said[1]


def test_a_study_without_claims_has_nothing_to_date(tmp_path):
    record = Workdir(tmp_path / "study").open(Study(VALUES).describe())
    assert record.claims_dated == () and "claims_dated" not in record.as_dict()
