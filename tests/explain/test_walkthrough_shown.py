"""What is shown of a walk is what was computed, and fits where it is shown."""

import base64
import io
import itertools
import re

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from qkv_jax.explain.heat import heat_map
from qkv_jax.explain.page import write_page
from qkv_jax.explain.panels import Panel, number
from qkv_jax.explain.terminal import print_walks
from qkv_jax.output.colours import colour_of, colours_of, contrast, ink_on
from qkv_jax.tie import Tie
from tests.support.walks import digits_model, explained, quick_compilation, walked, walked_digits  # noqa: F401


def printed(walks, width):
    out = io.StringIO()
    print_walks(Console(file=out, width=width), explained(*walks))
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 100])
def test_the_terminal_shows_the_numbers_in_its_width(width):
    """No line is wider, and the printed weights are those of the walk."""
    walk, _ = walked(text="to be or not to be that is the question and more")
    text = printed([walk], width)
    assert max(map(len, text.splitlines())) <= width
    rows = re.findall(
        r"^ +\d+ (?:to|be|or) +((?:0\.\d\d +)+)", text.partition("A (head 1)")[2], re.M
    )
    shown = np.array([[float(cell) for cell in row.split()] for row in rows[:3]])
    np.testing.assert_allclose(shown, walk.weights[0, :3, : shown.shape[1]], atol=0.0051)
    assert shown.shape[1] >= 6


@pytest.mark.parametrize("width", [80, 100])
def test_ties_are_compared_in_a_table(width):
    """A row each in words and figures that are not cut off; then the remarks, then the answer."""
    walks = [walked(tie)[0] for tie in ("separate", "Q=K", "copies")]
    text = printed(walks, width)
    assert max(map(len, text.splitlines())) <= width and "paramete…" not in text
    found = [re.search(rf"^ *{walk.name}  +(.*\S)", text.partition("What is to be")[2], re.M)[1]
             for walk in walks]  # fmt: skip
    for walk, row, parameters in zip(walks, found, (256, 192, 64), strict=True):
        own = np.mean([np.diag(head) for head in walk.weights])
        assert row.split()[3] == f"{own:.2f}" and row.split()[-1] == str(parameters)
    assert [row.split()[0] for row in found] == ["none", "Q=K", "X=Q=K=V"]
    answer = text.partition("Are Q, K and V copies of X here?")[2]
    assert "copies: Yes. All three are X itself" in answer and "separate: No. None of" in answer


def test_what_the_matrices_are_made_of_is_said():
    """Adapters, a latent source and grouped heads, beside the products that are shown; the scale
    of each head where it is not the usual one."""
    for options, line in [
        ({"tie": "Q=K=V", "adapters": {"query": "head:1.0", "value": "diag"}},
         "Multiplied in: the adapters head:1.0 on the query and diag on the value."),
        ({"latent_dim": 3}, "W_K and W_V lead through 3 numbers that they share."),
        ({"kv_heads": 1}, "Keys and values have 1 head, repeated here for the 2 heads of"),
        ({"tie": "copies", "adapters": {"key": "diag"}}, "Multiplied in: the adapter diag on"),
        ({"scale": 0.2}, "Scale by head: 0.200, 0.200"),
        ({"qk_norm": True}, "q̃₂·k̃₁ = "),
    ]:  # fmt: skip
        text = printed([walked_digits(digits_model(**options))], 100)
        assert line in " ".join(text.split()), line
        assert ("/ √d_k" in text) == ("scale" not in options)
    assert "No W_K" not in printed(
        [walked_digits(digits_model(tie="copies", adapters={"key": "diag"}))], 100
    )


def test_what_is_the_same_is_not_printed_twice():
    walks = [walked(tie)[0] for tie in ("separate", "Q=K", "copies")]
    text = printed(walks, 100)
    assert "E embeddings, P positions, X: as under separate" in text
    assert "W_Q = W_K [8 × 8]: as W_Q [8 × 8] under separate" in text
    assert re.search(r"K \(head 1\): as Q \(head 1\) *\n", text)
    assert "No W_V: V is X itself, cut into heads." in text
    assert text.count("W_O [8 × 8]: as under separate") == 2 and text.count("W_O [8 × 8]") == 3


def test_large_arrays_are_shown_by_their_corner(tmp_path):
    """Width 384 and 12 heads: six columns, four rows, two heads."""
    walk = walked_digits(digits_model(width=384, heads=12, mlp_width=8))
    text = printed([walk], 100)
    assert "… of 384 columns" in text and "… of 384 rows" in text and "… of 12 heads" in text
    assert len(text.splitlines()) < 200 and max(map(len, text.splitlines())) <= 100
    write_page(tmp_path / "page.html", explained(walk))
    page = (tmp_path / "page.html").read_text()
    assert "<small>first 64 × 64</small>" in page and len(page) < 1_000_000
    assert "The first 4 of 12 heads." in page and "(the first 4 of 12)" in page


@pytest.mark.parametrize(
    ("value", "limit", "text"),
    [(-0.001, 1.0, "0.00"), (-1.234, 2.0, "−1.23"), (-12.34, 20.0, "−12.3"), (123.4, 200.0, "123"),
     (-0.0123, 0.05, "−.012"), (12345.0, 2e4, "1e4"), (-2e-7, 3e-7, "−2e−7"),
     (0.0, 0.0, ".000"), (9.996, 9.996, "10.0")],
)  # fmt: skip
def test_numbers_fit_their_cells(value, limit, text):
    assert number(value, limit) == text and len(text) <= 5


def test_a_heat_map_writes_its_numbers():
    walk, _ = walked()
    panel = Panel("A", walk.weights[0], walk.tokens, walk.tokens, "weights")
    drawn = heat_map(panel, 1.0)
    texts = re.findall(r'<text x="(\d+)" y="(\d+)"[^>]*>([\d.]+)</text>', drawn)
    by_place = sorted((int(y), int(x), float(text)) for x, y, text in texts)
    cells = np.array([text for _, _, text in by_place]).reshape(3, 3)
    np.testing.assert_allclose(cells, walk.weights[0], atol=0.0051)
    assert 'role="img"' in drawn and "the: 0." in drawn and drawn.count("<rect") == 9


def test_a_large_heat_map_is_a_picture_of_the_same_colours():
    values = np.random.default_rng(0).normal(size=(20, 30))
    labels = tuple(map(str, range(30)))
    drawn = heat_map(Panel("W", values, labels[:20], labels), 2.0)
    data = re.search(r"data:image/png;base64,([^\"]+)", drawn)[1]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    np.testing.assert_array_equal(pixels, colours_of(values, "signed", 2.0))
    assert "20 by 30 numbers from" in drawn


@pytest.mark.parametrize("kind", ["signed", "weights"])
def test_numbers_are_legible_in_every_cell(kind):
    """The contrast of a number and its cell is that which WCAG 2.2 asks of text."""
    shades = [colour_of(value, kind, 1.0) for value in np.linspace(-1, 1, 201)]
    assert min(contrast(ink_on(shade), shade) for shade in shades) >= 4.5


def test_colours_grow_darker_with_the_number():
    """So that they are told apart without hue: to both sides of zero, and along the weights."""
    lightness = lambda values, kind: colours_of(np.array(values), kind, 1.0) @ [0.21, 0.72, 0.07]
    for values, kind in [
        (np.linspace(0, 1, 11), "weights"),
        (np.linspace(0, 1, 11), "signed"),
        (-np.linspace(0, 1, 11), "signed"),
    ]:
        assert (np.diff(lightness(values, kind)) < 0).all()


def test_every_step_is_told_for_every_tie_beside_others():
    """All 15 side by side, in any order of positions."""
    walks = [walked(str(tie), "alibi")[0] for tie in Tie.all()]
    steps = explained(*walks).steps
    assert all(len(step.views) == 15 for step in steps)
    panels = itertools.chain.from_iterable(view.panels for step in steps for view in step.views)
    for panel in panels:
        assert panel.matrix.shape == (len(panel.rows), len(panel.columns))
