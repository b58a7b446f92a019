"""Generation: what comes out is what the model says, one full pass per token."""

import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.model.beam import beam_search
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.encoder import Encoder
from qkv_jax.model.generate import Generator, Sampling, _next
from qkv_jax.model.stems import TokenStem

SYMBOLS, MOST = 6, 12
PROMPTS = np.random.default_rng(2).integers(0, SYMBOLS, (3, 4))
LENGTHS = np.array([4, 1, 3])


@pytest.fixture(scope="module")
def decoder():
    config = ModelConfig(layers=2, width=8, heads=2, tie="K=V", positions="rotary")
    model = Encoder(config, TokenStem((SYMBOLS,), 8), SYMBOLS, MOST, is_causal=True)
    shapes = jax.eval_shape(model.init, jax.random.key(0), PROMPTS)
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda leaf: jnp.float32(rng.normal(size=leaf.shape)), shapes)


@pytest.fixture(scope="module")
def nats(decoder):
    """The log-probabilities of what follows the first prompt and each text of up to two symbols."""
    texts = np.array([*itertools.product(range(SYMBOLS), repeat=3)])
    whole = np.concatenate([np.tile(PROMPTS[:1], (len(texts), 1)), texts], axis=1)
    logits = decoder[0].apply(decoder[1], jnp.asarray(whole))[:, 3:-1]
    found = np.asarray(jax.nn.log_softmax(logits))
    return {
        tuple(text[:count]): rows[count]
        for text, rows in zip(texts.tolist(), found, strict=True)
        for count in range(3)
    }


def continued(model, variables, prompt, new):
    """Greedy, by a full pass for every token."""
    text = list(prompt)
    for _ in range(new):
        text.append(int(model.apply(variables, jnp.array([text]))[0, -1].argmax()))
    return text[len(prompt) :]


@pytest.mark.parametrize("chunk", [None, 1, 3])
def test_greedy_is_the_likeliest_token_of_a_full_pass(decoder, chunk):
    """For prompts of unequal length, read at once or in chunks; streamed or not."""
    generator = Generator(decoder[0], 5, chunk=chunk)
    found = generator(decoder[1], PROMPTS, lengths=LENGTHS)
    for row, length, tokens in zip(PROMPTS, LENGTHS, found, strict=True):
        assert tokens.tolist() == continued(*decoder, row[:length], 5)
    streamed = list(generator.stream(decoder[1], PROMPTS, lengths=LENGTHS))
    np.testing.assert_array_equal(np.stack(streamed, 1), found)


def test_a_window_keeps_its_own_tokens_only(decoder):
    model = decoder[0].clone(config=dataclasses.replace(decoder[0].config, window=3))
    generator = Generator(model, 6, chunk=2)
    cache, _ = generator.read(decoder[1], jnp.asarray(PROMPTS), jnp.asarray(LENGTHS))
    assert cache.slots == 4
    found = generator(decoder[1], PROMPTS, lengths=LENGTHS)
    for row, length, tokens in zip(PROMPTS, LENGTHS, found, strict=True):
        assert tokens.tolist() == continued(model, decoder[1], row[:length], 6)


def test_a_window_that_is_longer_than_the_text_changes_nothing(decoder):
    model = decoder[0].clone(config=dataclasses.replace(decoder[0].config, window=64))
    given = decoder[1], PROMPTS
    np.testing.assert_array_equal(Generator(model, 6)(*given), Generator(decoder[0], 6)(*given))
    np.testing.assert_array_equal(beam_search(Generator(model, 3), *given, 2)[0],
                                  beam_search(Generator(decoder[0], 3), *given, 2)[0])  # fmt: skip


def test_what_is_kept_is_exact_with_ties_and_at_any_temperature():
    tied = jnp.array([[1.0, 3.0, 3.0, 3.0], [2.0, 0.0, 1.0, 2.0]])
    kept = lambda logits, **options: np.isfinite(Sampling(**options).kept(logits)).tolist()
    assert kept(tied, top_k=1) == [[False, True, False, False], [True, False, False, False]]
    assert kept(tied, top_k=2) == [[False, True, True, False], [True, False, False, True]]
    large = jnp.array([[900.0, 899.0, 1000.0, 0.0]])
    cold = Sampling(temperature=1e-37)
    assert cold.kept(large)[0, 2] == 0 and int(cold.pick(jax.random.key(0), large)[0]) == 2
    for options in ({}, {"top_p": 0.5}, {"top_k": 2}):  # 0 in float32
        none = Sampling(temperature=1e-40, **options)
        assert int(none.pick(jax.random.key(0), large)[0]) == 2


def test_a_row_ends_at_any_of_the_stop_tokens(decoder):
    """That token is repeated, streamed or not."""
    free = Generator(decoder[0], 6)(decoder[1], PROMPTS)
    stop = (int(free[0, 2]), int(free[1, 4]))
    generator = Generator(decoder[0], 6, stop=stop)
    found = generator(decoder[1], PROMPTS)
    for tokens, other in zip(found, free, strict=True):
        ends = np.append(np.flatnonzero(np.isin(other, stop)), 5)[0]
        np.testing.assert_array_equal(tokens[: ends + 1], other[: ends + 1])
        assert {*tokens[ends:].tolist()} == {int(other[ends])}
    streamed = list(generator.stream(decoder[1], PROMPTS))
    np.testing.assert_array_equal(np.stack(streamed, 1), found)


def test_rows_that_have_all_ended_repeat_each_its_own_token(decoder):
    free = Generator(decoder[0], 1)(decoder[1], PROMPTS)
    stop = tuple(range(SYMBOLS))
    found = Generator(decoder[0], 4, stop=stop)(decoder[1], PROMPTS)
    np.testing.assert_array_equal(found, free.repeat(4, axis=1))


@pytest.mark.parametrize("stop", [(SYMBOLS,), (0, -1), (True,)])
def test_stops_that_are_no_tokens_are_refused(decoder, stop):
    with pytest.raises(ConfigError, match="^stop: given "):
        Generator(decoder[0], 2, stop=stop)


@pytest.mark.parametrize(
    "sampling, kept",
    [
        (Sampling(), 5), (Sampling(temperature=0.5), 5), (Sampling(top_k=2), 2),
        (Sampling(top_p=0.5), 2), (Sampling(top_p=0.4), 1), (Sampling(top_p=1.0), 5),
        (Sampling(temperature=2.0, top_k=3, top_p=0.99), 3), (Sampling(top_k=9), 5),
    ],
)  # fmt: skip
def test_tokens_are_drawn_as_often_as_they_are_likely(sampling, kept):
    """Of those that are kept, in proportion to their probability at that temperature."""
    p = np.array([0.08, 0.42, 0.3, 0.15, 0.05])
    allowed = np.argsort(-p)[:kept]
    expected = np.zeros(5)
    expected[allowed] = p[allowed] ** (1 / sampling.temperature)
    expected /= expected.sum()
    logits = jnp.tile(jnp.log(p).astype(jnp.float32), (20_000, 1))
    drawn = np.bincount(sampling.pick(jax.random.key(0), logits), minlength=5) / len(logits)
    np.testing.assert_allclose(drawn, expected, atol=0.015)
    assert not drawn[expected == 0].any()


def test_seeds_draw_different_texts_and_the_same_seed_the_same(decoder):
    generator = Generator(decoder[0], 8, Sampling(temperature=3.0))
    one, again, other = (generator(decoder[1], PROMPTS, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any() and len({*map(tuple, one)}) == 3


def test_the_cache_of_a_step_is_written_in_place(decoder):
    """The compiled step aliases every array of the cache with one that it returns."""
    generator = Generator(decoder[0], 5)
    cache = decoder[0].init_cache(3, 9)
    arguments = (generator, decoder[1], cache, jnp.zeros(3, jnp.int32), jax.random.key(0))
    text = _next.lower(*arguments).compile().as_text()
    aliased = re.search(r"input_output_alias=\{(.*?)\}, entry", text, re.DOTALL)[1]
    assert aliased.count("alias") == len(jax.tree.leaves(cache))
    _next(*arguments)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(cache.sources))


@pytest.mark.parametrize("penalty, stops", [(0.0, 0), (0.0, 1), (1.0, 2)])
def test_a_beam_of_all_texts_finds_the_likeliest(decoder, nats, penalty, stops):
    """Against the scores of every continuation, also where the likeliest first token ends a text;
    a beam of one is greedy."""
    new, stop = 3, tuple(np.argsort(-nats[()])[:stops].tolist())
    scores = {}
    for text in itertools.product(range(SYMBOLS), repeat=new):
        ends = next((i + 1 for i in range(new) if text[i] in stop), new)
        if any(token != text[ends - 1] for token in text[ends:]):
            continue
        total = sum(float(nats[text[:i]][text[i]]) for i in range(ends))
        scores[text] = total / ((5 + ends) / 6) ** penalty
    generator = Generator(decoder[0], new, stop=stop)
    tokens, found = beam_search(
        generator, decoder[1], PROMPTS[:1], SYMBOLS**2, length_penalty=penalty
    )
    best = sorted(scores, key=scores.get, reverse=True)[:5]
    assert [tuple(row) for row in tokens[0, :5].tolist()] == best
    np.testing.assert_allclose(found[0, :5], [scores[text] for text in best], rtol=1e-4)
    alone, _ = beam_search(generator, decoder[1], PROMPTS, 1, LENGTHS)
    greedy = generator(decoder[1], PROMPTS, lengths=LENGTHS)
    np.testing.assert_array_equal(alone[:, 0], greedy)


def searched(nats, beams, stop, penalty):
    """The texts of three symbols that a beam finds, and their scores: none that has ended is
    forgotten, and no search is cut short."""
    live, ended = [((), 0.0)], []
    score = lambda text, total: total / ((5 + len(text)) / 6) ** penalty
    for _ in range(3):
        longer = [
            ((*text, token), total + float(more))
            for text, total in live
            for token, more in enumerate(nats[text])
        ]
        longer.sort(key=lambda one: one[1], reverse=True)
        ended += [one for one in longer[:beams] if one[0][-1] in stop]
        live = [one for one in longer if one[0][-1] not in stop][:beams]
    found = sorted([*ended, *live], key=lambda one: score(*one), reverse=True)[:beams]
    texts = [[*text, *[text[-1]] * (3 - len(text))] for text, _ in found]
    return texts, [score(*one) for one in found]


@pytest.mark.parametrize(
    "beams, stops, penalty",
    [(1, 1, 1.0), (2, 0, 0.6), (2, 1, 0.0), (2, 2, 1.0), (3, 1, -1.0), (4, 2, 0.0), (7, 3, 0.6)],
)
def test_a_narrow_beam_keeps_what_has_ended(decoder, nats, beams, stops, penalty):
    """As a search by lists does, for end tokens from the likeliest second on."""
    stop = tuple(np.argsort(-nats[()])[1 : 1 + stops].tolist())
    generator = Generator(decoder[0], 3, stop=stop)
    found = beam_search(generator, decoder[1], PROMPTS[:1], beams, length_penalty=penalty)
    texts, scores = searched(nats, beams, stop, penalty)
    assert found[0][0].tolist() == texts
    np.testing.assert_allclose(found[1][0], scores, rtol=1e-4)


def bigrams(table):
    """A model that has these probabilities of the next symbol by the last, and reads no other."""
    size = len(table)
    config = ModelConfig(layers=1, width=size, heads=1, positions="none", norm="rms")
    model = Encoder(config, TokenStem((size,), size), size, MOST, is_causal=True)
    shapes = jax.eval_shape(model.init, jax.random.key(0), PROMPTS)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)["params"]
    params["stem"]["field_0"]["embedding"] = jnp.eye(size)
    params["norm"]["scale"] = jnp.full(size, size**-0.5)  # of a row of the embedding, its own mean
    params["readout"]["kernel"] = jnp.log(jnp.asarray(table, jnp.float32))
    return model, {"params": params}


def test_a_text_that_ends_at_once_is_not_forgotten_for_longer_ones():
    """Two longer texts are likelier at first than the one that ends, and then less likely."""
    table = np.full((10, 10), 0.1)
    table[9] = [0.3, 0.62, *[0.01] * 8]
    table[1] = [1e-9, 1e-9, 0.5, 0.5, *[1e-9] * 6]
    model, variables = bigrams(table)
    generator = Generator(model, 3, stop=(0,))
    tokens, scores = beam_search(generator, variables, np.array([[9]]), 2)
    assert tokens[0, 0].tolist() == [0, 0, 0]
    np.testing.assert_allclose(scores[0], np.log([0.3, 0.62 * 0.5 * 0.1]), rtol=1e-4)


def test_beams_without_a_text_score_minus_infinity():
    """Of two symbols, one of which ends a text, there are three texts of up to two."""
    model, variables = bigrams(np.array([[0.5, 0.5], [0.25, 0.75]]))
    generator = Generator(model, 2, stop=(0,))
    tokens, scores = beam_search(generator, variables, np.array([[1]]), 5)
    assert tokens.shape == (1, 5, 2) and tokens[0, :3].tolist() == [[1, 1], [0, 0], [1, 0]]
    np.testing.assert_allclose(np.exp(scores[0]), [0.5625, 0.25, 0.1875, 0, 0], rtol=1e-4)


@pytest.mark.parametrize(
    "prompts, lengths, message",
    [
        (np.zeros((1, 0), int), None, "prompts: .*must have a token at least"),
        (np.full((1, 2), SYMBOLS), None, f"prompts: .*{SYMBOLS}"),
        (np.full((1, 2), -1), None, "prompts: "),
        (PROMPTS, np.array([4, 0, 1]), "lengths: .*must be from 1 to 4"),
        (PROMPTS, np.array([4, 5, 1]), "lengths: .*must be from 1 to 4"),
        (PROMPTS / 2, None, "prompts: "),
    ],
)
def test_prompts_that_cannot_be_continued_are_refused(decoder, prompts, lengths, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        Generator(decoder[0], 2)(decoder[1], prompts, lengths=lengths)


@pytest.mark.parametrize("seed", [True, -1, 2**32])
def test_seeds_that_no_key_is_made_of_are_refused(decoder, seed):
    with pytest.raises(ConfigError, match="^seed: given "):
        Generator(decoder[0], 2)(decoder[1], PROMPTS, seed)
    with pytest.raises(ConfigError, match="^seed: given "):
        next(Generator(decoder[0], 2).stream(decoder[1], PROMPTS, seed))


@pytest.mark.parametrize("penalty", [1e6, -11.0, float("nan")])
def test_penalties_that_no_sum_survives_are_refused(decoder, penalty):
    with pytest.raises(ConfigError, match="^length_penalty: given "):
        beam_search(Generator(decoder[0], 2), decoder[1], PROMPTS, 2, length_penalty=penalty)


def test_texts_longer_than_learned_positions_are_refused(decoder):
    config = ModelConfig(layers=1, width=8, heads=2)
    model = decoder[0].clone(config=config)
    variables = model.init(jax.random.key(0), jnp.asarray(PROMPTS))
    Generator(model, MOST - 3)(variables, PROMPTS)
    with pytest.raises(ConfigError, match=f"4 tokens and 10 to come.* end at {MOST}"):
        Generator(model, MOST - 2)(variables, PROMPTS)


@pytest.mark.parametrize(
    "options", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}]
)
def test_samplings_that_cannot_be_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        Sampling(**options)
