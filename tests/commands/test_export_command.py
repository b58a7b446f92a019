"""`experiments.export`: runs and trained models of studies as folders that other commands read."""

import re
import subprocess
import sys

import pytest

from qkv_jax.interop.pretrained import load_pretrained
from tests.support import commands
from tests.support.folders.command_place import TEMPLATE
from tests.support.folders.decoder_folders import LLAMA, write

SMALL = (
    "--config.model.layers=1", "--config.model.width=8", "--config.model.heads=2",
    "--config.train.steps=20", "--config.train.report_every=10", "--config.train.batch_size=4",
)  # fmt: skip
OF_TEXT = ("--config.task.options.files=('text.txt',)", "--config.task.options.length=8")
PAIRS = ("--config.task.options.pairs=pairs.tsv", "--config.task.options.tokenizer=bytes",
         "--config.task.options.length=12", "--config.task.options.validation_examples=4",
         "--config.task.options.test_examples=6")  # fmt: skip
GPT2 = ("--config.model.tied_embedding",)
RUNS = {
    "bytes": ("causal_bytes", (*OF_TEXT, *GPT2)),
    "tied": ("causal_tokens", (*OF_TEXT, "--config.task.options.vocabulary=260",
                               "--config.model.tie=K=V", "--config.model.positions=rotary")),
    "masked": ("masked_bytes", OF_TEXT),
    "digits": ("digits", ()),
    "translation": ("translation", PAIRS),
}  # fmt: skip
STUDY = {
    "name": "tiny", "model": {"layers": 1, "width": 8, "heads": 2},
    "train": {"steps": 20, "report_every": 10, "batch_size": 8},
    "arms": {"separate": {"model": {"tie": "separate"}}, "K=V": {"model": {"tie": "K=V"}}},
    "tasks": {"one": {"kind": "reverse", "options": {"length": 6, "validation_examples": 8,
                                                     "test_examples": 8}}},
    "study": {"protocol": "fixed", "learning_rates": (1e-2, 3e-2), "tune_seeds": 1,
              "eval_seeds": 5},
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def run(place):
    """Commands in a folder with these runs and a study."""
    (place / "text.txt").write_text("To be, or not to be: that is the question. " * 60)
    (place / "pairs.tsv").write_text("".join(f"text {i}\tTEXT {i}\n" for i in range(40)))
    (place / "study.py").write_text(TEMPLATE.format(STUDY))
    write(place / "llama", LLAMA)
    with commands.server(place) as run:
        for name, (kind, given) in RUNS.items():
            config = f"--config={commands.ROOT / 'configs' / 'train.py'}"
            more = (config, f"--config.task.kind={kind}", *given, *SMALL)
            code, _, err = run("experiments.train", f"--workdir={name}", *more)
            assert code == 0, err
        code, _, err = run("experiments.ablate", "--config=study.py", "--workdir=study")
        assert code == 0, err
        yield run


def follow(card, place):
    """Runs the card's first block of Python; returns the shape of the logits."""
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    assert len(code.splitlines()) <= 10
    done = subprocess.run([sys.executable, "-c", code + "print(logits.shape)"], cwd=place,
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_separate_language_model_goes_on_as_the_run_does(run, place):
    code, out, err = run("experiments.export", "--run=bytes", "--out=bytes-hf")
    assert (code, err) == (0, "")
    line = r"bytes-hf: model_type gpt2; read back, its logits differ by \S+ at most\n"
    assert re.fullmatch(line, out)
    card = (place / "bytes-hf" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n") and "| tie | `separate` |" in card
    assert re.search(r"test \d\.\d+ nats/byte, .*: one run, of seed 0, after 20 steps", card)
    assert "Token 256 is read and never foretold" in card
    assert follow(card, place) == "(1, 1, 256)"
    drawn = ("experiments.generate", "--prompt=To be", "--tokens=4", "--seed=3")
    assert run(*drawn, "--pretrained=bytes-hf")[1] == run(*drawn, "--run=bytes")[1]


def test_a_tied_one_is_of_our_own_kind_and_is_read_by_every_command(run, place):
    code, out, err = run("experiments.export", "--run=tied", "--out=tied-hf")
    assert (code, err) == (0, "")
    reason = "no published architecture computes the same"
    assert "model_type qkv_jax" in out and f"{reason.capitalize()}: its tie is 'K=V', " in out
    card = (place / "tied-hf" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: qkv_jax\n") and "its tie is 'K=V', " in card
    assert follow(card, place) == "(1, 1, 260)"
    drawn = ("experiments.generate", "--prompt=To be", "--tokens=4")
    assert run(*drawn, "--pretrained=tied-hf")[1] == run(*drawn, "--run=tied")[1]
    (place / "lines").write_text("to be\nthat\nor not\nis\n" * 2)
    for name, more in [
        ("explain", ("--text=To be",)),
        ("analyze", ("--texts=lines", "--workdir=analysis")),
    ]:
        code, out, err = run(f"experiments.{name}", "--pretrained=tied-hf", *more)
        assert code == 0 and "tie K=V" in " ".join(out.split()), err


def test_masked_models_and_images(run, place):
    """Which BERT would compute under other norms; a ViT that classifies images."""
    code, out, err = run("experiments.export", "--run=masked", "--out=masked-hf")
    assert code == 0 and "its norm_position is 'pre', 'post' in Bert" in out, err
    assert follow((place / "masked-hf" / "README.md").read_text(), place) == "(1, 1, 256)"
    model = load_pretrained(place / "masked-hf")
    assert model.encode(["To [MASK]e"])[0].tolist() == [[*b"To ", 256, *b"e"]]
    code, out, err = run("experiments.export", "--run=digits", "--out=digits-hf")
    assert code == 0 and "model_type vit" in out, err
    assert follow((place / "digits-hf" / "README.md").read_text(), place) == "(1, 10)"


def test_a_model_of_a_study_has_its_numbers_with_intervals(run, place):
    command = ("experiments.export", "--study=study", "--task=one", "--arm=K=V", "--out=arm-hf")
    code, out, err = run(*command)
    assert code == 0 and "model_type qkv_jax" in out, err
    card = (place / "arm-hf" / "README.md").read_text()
    number = r"[−+]?\d+\.\d+"
    interval = rf"{number} \[{number}, {number}\] accuracy"
    assert re.search(rf"arm K=V: {interval}, the mean of 5 seeds with its 95 % interval", card)
    assert re.search(rf"difference to separate: {interval}, with its 95 % interval; verdict:", card)
    assert re.search(rf"this run, of seed 0 at learning rate \S+: test {number} accuracy", card)
    assert follow(card, place).startswith("(1, 6, ")


def test_what_surgery_wrote_is_read_like_any_folder(run, place):
    for model in ("--run=bytes", "--pretrained=llama"):
        folder = f"operated{model.partition('=')[2]}"
        (place / "some").write_text("the hen\nthe sun\nhe sits\nthe rows\n")
        more = ["--texts=some"] if "llama" in model else []
        code, _, err = run("experiments.surgery", model, "--tie=K=V", "--method=fit", *more,
                           f"--workdir={folder}")  # fmt: skip
        assert code == 0, err
        tied = f"--pretrained={folder}/models/fit"
        code, out, err = run("experiments.generate", tied, "--prompt=the", "--tokens=3")
        assert code == 0 and out.startswith("the"), err


@pytest.mark.parametrize("flags, line", [
    ([], "--run: given None; name one model: --run, or --study"),
    (["--run=bytes", "--study=study"], "--run: given 'bytes'; name one model"),
    (["--run=bytes"], "--out: given None; name the folder to write"),
    (["--run=bytes", "--out=bytes"], "--out: given 'bytes'; holds files already"),
    (["--run=lost", "--out=x"], "--run: given 'lost'; is no run of experiments.train"),
    (["--run=bytes", "--out=x", "--step=7"], "checkpoint step: given 7; checkpoints there: 0, 20"),
    (["--run=bytes", "--out=x", "--seed=1"], "--seed: given 1; is for --study"),
    (["--run=bytes", "--out=x", "--arm=K=V"], "--arm: given 'K=V'; is for --study"),
    (["--study=study", "--out=x"], "--task: given None; a study needs --task and --arm"),
    (["--study=study", "--out=x", "--task=one", "--arm=Q"], "--arm: given 'Q'; this study has"),
    (["--study=study", "--out=x", "--task=one", "--arm=K=V", "--seed=99"], "--seed: given "),
    (["--study=study", "--out=x", "--task=one", "--arm=K=V", "--step=1"], "--step: given 1; is f"),
    (["--run=translation", "--out=x"], "--run: given 'translation'; is of an encoder-decoder"),
])  # fmt: skip
def test_what_cannot_be_is_one_line_and_leaves_nothing(run, place, flags, line):
    code, out, err = run("experiments.export", *flags)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert line in err
    assert not (place / "x").exists()
