"""`experiments.generate`: a trained run goes on with a prompt."""

import pytest

from tests.support import commands

SMALL = (
    "--config.model.layers=1", "--config.model.width=8", "--config.model.heads=2",
    "--config.train.steps=20", "--config.train.report_every=10", "--config.train.batch_size=4",
)  # fmt: skip
TEXT = "To be, or not to be: that is the question. " * 60
PROMPT = "To be"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Commands in a folder with a run for each kind of causal text, and one of another task."""
    folder = tmp_path_factory.mktemp("generate")
    (folder / "text.txt").write_text(TEXT)
    with commands.server(folder) as run:
        kinds = {"bytes": "causal_bytes", "characters": "causal_characters",
                 "pairs": "causal_tokens", "masked": "masked_bytes"}  # fmt: skip
        for name, kind in kinds.items():
            options = [f"--config={commands.ROOT / 'configs' / 'train.py'}",
                       f"--config.task.kind={kind}", "--config.task.options.files=('text.txt',)",
                       "--config.task.options.length=8"]  # fmt: skip
            if name == "pairs":
                options.append("--config.task.options.vocabulary=260")
            code, _, err = run("experiments.train", f"--workdir={name}", *options, *SMALL)
            assert code == 0, err
        yield run


@pytest.mark.parametrize("name", ["bytes", "characters", "pairs"])
def test_a_text_goes_on_from_its_prompt(run, name):
    """The same again at the same seed, and something else at another temperature or seed."""
    command = ("experiments.generate", f"--run={name}", f"--prompt={PROMPT}", "--tokens=3")
    code, out, err = run(*command, "--temperature=0")
    assert code == 0, err
    assert out.startswith(PROMPT) and len(out) > len(PROMPT) + 1
    assert "3 symbols in" in err and "KiB" in err
    assert run(*command, "--temperature=0")[1] == out
    drawn = {run(*command, "--temperature=5", f"--seed={seed}")[1] for seed in range(4)}
    assert len(drawn) > 1


def test_beams_are_printed_with_their_scores(run):
    command = ("experiments.generate", "--run=bytes", f"--prompt={PROMPT}", "--tokens=3")
    code, out, err = run(*command, "--beams=2")
    assert code == 0, err
    assert out.count(PROMPT) == 2 and err.count("nats:") == 2


@pytest.mark.parametrize(
    "flags, line",
    [
        (["--prompt=x"], "--run: given None; name the folder of a run"),
        (["--run=bytes"], "--prompt: given None; give a text to go on from"),
        (["--run=bytes", "--prompt="], "--prompt: given ''; give a text to go on from"),
        (["--run=nowhere", "--prompt=x"], "nowhere"),
        (["--run=masked", "--prompt=x"], "--run: given 'masked'; is of the task 'Masked bytes'"),
        (["--run=characters", "--prompt=Zebra"], "--prompt: given 'Zebra'; must be of characters"),
        (["--run=bytes", "--prompt=To be", "--tokens=9"], "learned positions end at 8"),
        (["--run=bytes", "--prompt=x", "--top_p=2"], "top_p"),
        (["--run=bytes", "--prompt=x", "--tokens=0"], "tokens"),
    ],
)
def test_what_cannot_be_is_one_line(run, flags, line):
    code, out, err = run("experiments.generate", *flags)
    assert code == 2 and not out
    assert line in err and len(err.strip().splitlines()) == 1
