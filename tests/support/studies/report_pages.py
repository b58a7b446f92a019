"""The report of a made-up study, and its page taken apart."""

import dataclasses
import re
from html.parser import HTMLParser

from qkv_jax.study.protocol.summary import summarise
from qkv_jax.study.protocol.verdicts import Verdict
from qkv_jax.study.report.page import write_report


class Page(HTMLParser):
    """Collects the text, and every address and tag of a page."""

    def __init__(self, text):
        super().__init__()
        self.words, self.tags, self.addresses, self.alts = [], [], [], []
        self.feed(text)
        self.text = re.sub(r"\s+", " ", " ".join(self.words).replace("\u00a0", " "))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        attrs = dict(attrs)
        self.addresses += [attrs[a] for a in ("src", "href", "data", "srcset") if a in attrs]
        if tag == "img":
            self.alts.append(attrs.get("alt"))

    def handle_data(self, data):
        self.words.append(data)


def points_of(curve):
    """Curves as a summary takes them."""

    def points(*run):
        found = curve(*run)
        return None if found is None else found[["step", "value"]].to_numpy(float).T

    return points


def report(folder, record, runs, costs, curve, **changes):
    record = dataclasses.replace(record, **changes)
    summary = summarise(record, runs, costs, points=points_of(curve))
    path = write_report(folder, record, runs, summary, curve, dpi=40)
    return path.read_text(encoding="utf-8"), summary, record


def row(verdict="worse", **values):
    base = {"arm": "K=V", "tie": "K=V", "role": "arm", "n": 6, "margin": 0.02, "p_adjusted": 0.0004,
            "p_equivalence": 1.0, "alpha_look": 0.025, "delta": 0.31, "delta_low": 0.27,
            "delta_high": 0.35}  # fmt: skip
    return base | values | {"verdict": Verdict.read(verdict)}
