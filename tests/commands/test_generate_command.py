"""`experiments.generate`: a trained run goes on with a prompt, or translates."""

import json
import math
import re

import numpy as np
import pytest

from qkv_jax.interop.pretrained import load_pretrained
from qkv_jax.model.generate import Generator
from tests.support import commands
from tests.support.folders import decoder_folders

SMALL = (
    "--config.model.layers=1", "--config.model.width=8", "--config.model.heads=2",
    "--config.train.steps=20", "--config.train.report_every=10", "--config.train.batch_size=4",
)  # fmt: skip
TEXT = "To be, or not to be: that is the question. " * 60
PROMPT = "To be"
OF_TEXT = {"files": "('text.txt',)", "length": 8}
RUNS = {
    "bytes": ("causal_bytes", OF_TEXT),
    "characters": ("causal_characters", OF_TEXT),
    "pairs": ("causal_tokens", OF_TEXT | {"vocabulary": 260}),
    "masked": ("masked_bytes", OF_TEXT),
    "rows": ("causal_bytes", {"dataset": "table", "length": 16}),
    "translation": ("translation", {"pairs": "pairs.tsv", "tokenizer": "bytes", "length": 12,
                                    "validation_examples": 4, "test_examples": 6}),
}  # fmt: skip

SAID: dict[str, str] = {}  # by the training of each


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("generate")


@pytest.fixture(scope="module")
def run(place):
    """Commands in a folder with these runs."""
    folder = place
    (folder / "text.txt").write_text(TEXT)
    (folder / "table").mkdir()
    (folder / "table" / "train.csv").write_text("text\n" + "To be or not\n" * 60)
    (folder / "pairs.tsv").write_text("".join(f"text {i}\tTEXT {i}\n" for i in range(40)))
    with commands.server(folder) as run:
        for name, (kind, given) in RUNS.items():
            options = [f"--config={commands.ROOT / 'configs' / 'train.py'}",
                       f"--config.task.kind={kind}"]  # fmt: skip
            options += [f"--config.task.options.{field}={value}" for field, value in given.items()]
            code, out, err = run("experiments.train", f"--workdir={name}", *options, *SMALL)
            assert code == 0, err
            SAID[name] = out
        # Of as many tokens as the tokenizer has, of which one begins a text.
        bos = decoder_folders.LLAMA | {"bos_token_id": 0, "vocab_size": 22}
        folders = {"llama": decoder_folders.LLAMA, "gpt2": decoder_folders.GPT2, "bos": bos}
        for name, config in folders.items():
            decoder_folders.write(folder / name, config)
        yield run


def test_training_says_where_how_large_and_how_fast(run):
    """The first report's time went into compiling, and after the last no time is left."""
    first, compiled, last, done = SAID["bytes"].splitlines()
    assert re.fullmatch(r"On \d+ CPU cores?.*: [\d,]+ parameters, 32 tokens a step. .*", first)
    assert compiled.startswith("step     10 of 20") and "tokens/s" not in compiled
    assert re.search(r"^step     20 of 20 .*   [\d,]+ tokens/s$", last)
    assert done.startswith("done: test ")
    nats, bits, perplexity = (float(word) for word in re.fullmatch(
        r"done: test ([\d.]+) nats/byte \(bits per byte ([\d.]+), perplexity ([\d.]+)\). Written.*",
        done).groups())  # fmt: skip
    assert bits == pytest.approx(nats / math.log(2), rel=1e-3)
    assert perplexity == pytest.approx(math.exp(nats), rel=1e-3)
    assert "bits per byte" in SAID["pairs"] and "(" not in SAID["masked"].splitlines()[-1]


def test_more_beams_than_there_are_continuations_are_those_that_there_are(run):
    """Of one byte there are 256."""
    code, out, err = run("experiments.generate", "--run=bytes", "--prompt=To", "--tokens=1",
                         "--beams=300")  # fmt: skip
    assert code == 0 and err.count("nats:") == 256 and "inf" not in err


@pytest.mark.parametrize("name", ["bytes", "characters", "pairs"])
def test_a_text_goes_on_from_its_prompt(run, name):
    """The same again at the same seed, and something else at another temperature or seed."""
    command = ("experiments.generate", f"--run={name}", f"--prompt={PROMPT}", "--tokens=3")
    code, out, err = run(*command, "--temperature=0")
    assert code == 0, err
    assert out.startswith(PROMPT) and len(out) > len(PROMPT) + 1
    assert re.match("On .*: the prompt goes on by .*\n3 symbols; a cache of .*KiB", err)
    assert run(*command, "--temperature=0")[1] == out
    drawn = {run(*command, "--temperature=5", f"--seed={seed}")[1] for seed in range(4)}
    assert len(drawn) > 1


@pytest.mark.parametrize("folder", ["llama", "gpt2"])
def test_a_pretrained_model_goes_on_in_its_own_tokens(run, folder):
    """What is streamed is what a beam of one finds."""
    command = ("experiments.generate", f"--pretrained={folder}", "--prompt=the hen", "--tokens=4")
    code, out, err = run(*command, "--temperature=0")
    assert code == 0 and "4 symbols; " in err, err
    assert out.startswith("the hen") and len(out) > len("the hen") + 1
    assert run(*command, "--beams=1")[1] == out


def test_the_space_behind_the_prompt_is_no_space_before_a_text(run, place):
    """Tokenizers of SentencePiece leave out the space of the first token they are given."""
    import tokenizers as t

    words = {f"\N{LOWER ONE EIGHTH BLOCK}w{number}": number for number in range(23)}
    tokenizer = t.Tokenizer(t.models.WordLevel(words, unk_token=[*words][0]))
    tokenizer.pre_tokenizer = t.pre_tokenizers.Metaspace()
    tokenizer.decoder = t.decoders.Metaspace()
    decoder_folders.write(place / "metaspace", decoder_folders.LLAMA)
    tokenizer.save(str(place / "metaspace" / "tokenizer.json"))
    command = ("experiments.generate", "--pretrained=metaspace", "--prompt=w1 w2", "--tokens=3")
    for way in (["--temperature=0"], ["--beams=1"], ["--samples=2"]):
        code, out, err = run(*command, *way)
        assert code == 0, err
        assert all(re.fullmatch(r"w1 w2( w\d+){3}", line) for line in out.splitlines())


def test_a_pretrained_model_ends_a_text_itself(run, place):
    """At its eos_token_id, which is no part of the text; generation_config.json, which may name
    several, comes before config.json. Here the third of the tokens that the model draws."""
    command = ("experiments.generate", "--pretrained=gpt2", "--prompt=the hen", "--tokens=4")
    found = load_pretrained(place / "gpt2")
    prompt = np.array(found.reader.tokens(["the hen"]), np.int32)
    drawn = Generator(found.encoder, 4)(found.variables, prompt)[0].tolist()
    assert drawn[2] not in drawn[:2]
    until = f"the hen{found.reader.text(drawn[:2])}\n"
    ways = (["--temperature=0"], ["--beams=1"], ["--temperature=1e-6", "--samples=2"])
    whole = [run(*command, *way)[1] for way in ways]
    config, generation = place / "gpt2/config.json", place / "gpt2/generation_config.json"
    before = config.read_text()
    config.write_text(json.dumps(json.loads(before) | {"eos_token_id": drawn[2]}))
    for way in ways:
        code, out, err = run(*command, *way)
        assert (code, out) == (0, until * (1 + ("--samples=2" in way))), err
    other = next(token for token in range(22) if token not in drawn)
    for given, said in [([other, drawn[2]], until), (other, whole[0])]:
        generation.write_text(json.dumps({"eos_token_id": given}))
        assert [run(*command, *way)[1] for way in ways[:2]] == [said, said]
    generation.write_text(json.dumps({"eos_token_id": 23}))
    code, out, err = run(*command)
    assert (code, out) == (2, "") and "generation_config.json eos_token_id: given 23" in err
    generation.unlink()
    config.write_text(before)


def test_beams_are_printed_with_their_scores(run):
    command = ("experiments.generate", "--run=bytes", f"--prompt={PROMPT}", "--tokens=3")
    code, out, err = run(*command, "--beams=2")
    assert code == 0, err
    assert out.count(PROMPT) == 2 and err.count("nats:") == 2


@pytest.mark.parametrize("source", ["--run=bytes", "--pretrained=llama"])
def test_several_samples_are_drawn_together(run, source):
    command = ("experiments.generate", source, "--prompt=the", "--tokens=4", "--temperature=5")
    code, out, err = run(*command, "--samples=3")
    assert code == 0, err
    first, *others = err.splitlines()
    assert first.startswith("On ") and others == ["sample 1:", "sample 2:", "sample 3:"]
    assert out.count("the") >= 3 and run(*command, "--samples=3")[1] == out
    assert run(*command, "--samples=3", "--seed=1")[1] != out


def test_a_text_ends_where_a_stop_would_come(run):
    """In what is streamed or drawn together; it is cut in the middle of tokens."""
    command = ("experiments.generate", "--run=bytes", "--prompt=To", "--tokens=6")
    whole = run(*command, "--temperature=0")[1]
    stop = whole[5:7]
    until = whole[2:-1].partition(stop)[0]
    code, out, err = run(*command, "--temperature=0", f"--stop={stop}")
    assert code == 0 and out == f"To{until}\n", err
    assert run(*command, "--temperature=0", "--stop=\N{SNOWMAN}")[1] == whole
    drawn = [*command, "--samples=2", "--temperature=5"]
    texts = run(*drawn)[1]
    stop = texts.splitlines()[0][3]
    assert stop not in run(*drawn, f"--stop={stop}")[1].splitlines()[0][2:]


def test_a_prompt_is_read_from_stdin(run):
    """Without the newline that ends it."""
    given = ("experiments.generate", "--run=bytes", "--tokens=3", "--temperature=0")
    for text, code in [(r"To be\n", 0), (r"To be", 0), (r"\xff", 2)]:
        before = f"!import io; sys.stdin = io.TextIOWrapper(io.BytesIO(b'{text}'))"
        found = run(before, *given, "--prompt=-")
        assert found[0] == code, found
        if code:
            assert (found[1], "--prompt: given b'\\xff'; is no UTF-8" in found[2]) == ("", True)
        else:
            assert found[1] == run(*given, "--prompt=To be")[1]


def test_an_empty_prompt_goes_on_from_the_symbol_that_begins_a_text(run):
    """Where rows of a data set have one, and from a folder's bos_token_id."""
    code, out, err = run("experiments.generate", "--run=rows", "--prompt=", "--tokens=4")
    assert code == 0 and len(out) > 1, err
    code, out, err = run("experiments.generate", "--pretrained=bos", "--prompt=", "--tokens=4")
    assert code == 0 and len(out) > 1, err


def test_a_source_that_is_too_long_is_said_to_be_cut(run):
    long = "text 3 and more of it"
    code, out, err = run("experiments.generate", "--run=translation", f"--source={long}")
    assert code == 0 and out.count("\n") == 1
    assert err == "warning: --source is cut: the model reads 12 tokens, and leaves out 10\n"
    assert out == run("experiments.generate", "--run=translation", f"--source={long[:12]}")[1]


def test_a_sentence_is_translated_and_bleu_counted(run):
    """By a beam, without draws; with the signature of sacrebleu."""
    command = ("experiments.generate", "--run=translation", "--source=text 3")
    code, out, err = run(*command)
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert run(*command)[1] == out
    code, scored, err = run(*command, "--bleu", "--examples=3", "--beams=2")
    assert (code, err) == (0, "")
    _, score, signature = scored.splitlines()
    assert re.fullmatch(r"BLEU \d+\.\d\d on 3 test pairs, beam of 2", score)
    assert signature.startswith("nrefs:1|") and "|tok:13a|" in signature
    assert "on 6 test pairs, beam of 4" in run(*command[:2], "--bleu")[1]


@pytest.mark.parametrize("name", ["analyze", "explain", "surgery"])
def test_a_run_on_translation_is_not_looked_into(run, name):
    """Those commands read the layers of one stack of self-attention."""
    code, out, err = run(f"experiments.{name}", "--run=translation")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--run: given 'translation'; is of an encoder-decoder" in err


@pytest.mark.parametrize(
    "flags, line",
    [
        (["--prompt=x"], "--run: given None; name the folder of a run"),
        (["--run=bytes"], "--prompt: given None; give a text to go on from"),
        (["--run=bytes", "--prompt="], "--prompt: given ''; must be a text: this task has no sym"),
        (["--pretrained=llama", "--prompt="], "--prompt: given ''; must be a text: the model has"),
        (["--run=bytes", "--prompt=x", "--stop="], "--stop: given ''; must be a text"),
        (["--run=bytes", "--prompt=x", "--samples=0"], "--samples: given '0'; allowed: "),
        (["--run=bytes", "--prompt=x", "--beams=2", "--samples=2"], "--samples: given 2; is for d"),
        (["--run=bytes", "--prompt=x", "--temperature=0", "--samples=2"], "--samples: given 2; te"),
        (["--run=translation", "--source=x", "--stop=y"], "--stop: given 'y'; is not for a run on"),
        (["--run=nowhere", "--prompt=x"], "nowhere"),
        (["--run=bytes", "--pretrained=llama", "--prompt=x"], "--run: given 'bytes'; name"),
        (["--pretrained=llama", "--source=x"], "--source: given 'x'; is for a run on translation"),
        (["--pretrained=llama", "--prompt=x", "--step=2"], "--step: given 2; is of a run"),
        (["--pretrained=bytes", "--prompt=x"], "--pretrained: given 'bytes'; is a run of experime"),
        (["--pretrained=lost", "--prompt=x"], "--pretrained: given 'lost'; is no folder, and no o"),
        (["--run=masked", "--prompt=x"], "--run: given 'masked'; is of the task 'Masked bytes'"),
        (["--run=characters", "--prompt=Zebra"], "--prompt: given 'Zebra'; must be of characters"),
        (["--run=bytes", "--prompt=To be", "--tokens=9"], "learned positions end at 8: 4 may come"),
        (["--run=bytes", "--prompt=x", "--top_p=2"], "top_p"),
        (["--run=bytes", "--prompt=x", "--tokens=0"], "tokens"),
        (["--run=bytes", "--source=x"], "is of the task 'Causal bytes', which is no translation"),
        (["--run=bytes", "--bleu"], "is of the task 'Causal bytes', which is no translation"),
        (["--run=translation", "--prompt=x"], "'Translation', which is no language model"),
        (["--run=bytes", "--prompt=a\udcffb"], "--prompt: given b'a\\xffb'; is no UTF-8 at byte 1"),
        (["--run=translation", "--source=\udcff"], "--source: given b'\\xff'; is no UTF-8"),
        (["--run=characters", "--prompt=To Zé"], "training texts have, not 'Zé'"),
        (["--run=bytes", "--prompt=x", "--temperature=0", "--top_k=2"], "temperature 0 draws no"),
        (["--run=translation", "--prompt=x", "--bleu"], "--prompt: given 'x'; is not for a run on"),
        (["--run=translation", "--source= "], "--source: given ' '; must have a symbol at least"),
        (["--run=translation", "--bleu", "--examples=0"], "examples"),
        (["--run=translation", "--source=x", "--examples=2"], "--examples: given 2; is for --bleu"),
        (["--run=translation", "--source=x", "--top_k=2"], "--top_k: given 2; is not for a run on"),
        (["--run=bytes", "--prompt=x", "--beams=2", "--seed=1"], "--seed: given 1; is for draws"),
        (["--run=bytes", "--prompt=x", "--beams=2", "--stop=y"], "--stop: given 'y'; is for draws"),
    ],
)
def test_what_cannot_be_is_one_line(run, flags, line):
    code, out, err = run("experiments.generate", *flags)
    assert code == 2 and not out
    assert line in err and len(err.strip().splitlines()) == 1
