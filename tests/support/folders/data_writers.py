"""One writer per kind of data: as many bytes of each variant; what makes the task of them."""

import gzip
import shutil

import numpy as np
import pytest

from qkv_jax.tasks import make_task
from tests.support.folders.idx_folders import idx_bytes
from tests.support.folders.image_sets import image_set, saved


def write_table(path, rows):
    path.write_text("\n".join(f"{text},{label}" for text, label in [("text", "label"), *rows]))
    return str(path)


def save(place, columns, **features):
    """A data set as the library saves it."""
    import datasets

    shutil.rmtree(place, ignore_errors=True)
    datasets.Dataset.from_dict(columns).save_to_disk(str(place))
    return str(place)


def labelled_rows(variant):
    """40 different texts of two classes, whose names the variant turns round."""
    names = ("yes", "nay") if variant else ("nay", "yes")
    return [(f"text {i:02} {variant}", names[i % 4 > 0]) for i in range(40)]


def idx(place, variant):
    """Zipped labels, and images to be mapped."""
    rng = np.random.default_rng(variant)
    for stem, count in (("train", 40), ("t10k", 8)):
        images = rng.integers(0, 256, (count, 4, 4), np.uint8)
        labels = (np.arange(count) % (2 + variant)).astype(np.uint8)
        (place / f"{stem}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (place / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))
    return {"folder": str(place), "validation_examples": 8}


def images(place, variant):
    parts = {
        name: image_set(n, side=8, seed=variant)[0] for name, n in (("train", 30), ("test", 9))
    }
    return saved(place / "set", **parts)


def classified_files(place, variant):
    return {"files": (write_table(place / "t.csv", labelled_rows(variant)),), "length": 12}


def classified_set(place, variant):
    texts, labels = zip(*labelled_rows(variant), strict=True)
    return {"dataset": save(place / "set", {"text": texts, "label": labels}), "length": 12}


def masked_files(place, variant):
    text = np.random.default_rng(variant).choice(list(b"abcd "), 2000).astype(np.uint8)
    (place / "t.txt").write_bytes(text.tobytes())
    return {"files": (str(place / "t.txt"),), "length": 8}


def masked_set(place, variant):
    options = masked_files(place, variant)
    text = (place / "t.txt").read_text()
    return {"dataset": save(place / "set", {"text": [text]}), "length": options["length"]}


def causal_set(place, variant):
    """Documents, some of them longer than a window."""
    masked_files(place, variant)
    text = (place / "t.txt").read_text()
    rows = [text[50 * i : 50 * i + 3 + i] for i in range(40)]
    return {"dataset": save(place / "set", {"text": rows}), "length": 8}


def pairs(place, variant):
    rows = (f"text {i:02} {variant}\tTEXT {i:02} {variant}\n" for i in range(40))
    (place / "t.tsv").write_text("".join(rows))
    held_out = {"validation_examples": 4, "test_examples": 6}
    return {"pairs": str(place / "t.tsv"), "tokenizer": "bytes", "length": 12, **held_out}


KINDS = {
    ("idx", "folder"): idx,
    ("images", "dataset"): images,
    ("text_classification", "files"): classified_files,
    ("text_classification", "dataset"): classified_set,
    ("masked_bytes", "files"): masked_files,
    ("masked_bytes", "dataset"): masked_set,
    ("masked_tokens", "files"): lambda *given: masked_files(*given) | {"vocabulary": 257},
    ("masked_tokens", "dataset"): lambda *given: masked_set(*given) | {"vocabulary": 257},
    ("causal_bytes", "files"): masked_files,
    ("causal_bytes", "dataset"): causal_set,
    ("causal_tokens", "files"): lambda *given: masked_files(*given) | {"vocabulary": 257},
    ("causal_tokens", "dataset"): lambda *given: causal_set(*given) | {"vocabulary": 257},
    ("causal_characters", "files"): masked_files,
    ("causal_characters", "dataset"): causal_set,
    ("translation", "pairs"): pairs,
}
every_kind = pytest.mark.parametrize(("kind", "source"), KINDS)


def written(kind, source, place, variant=0):
    place.mkdir(exist_ok=True)
    return KINDS[kind, source](place, variant)


def seen(kind, options):
    """All that a task says of its data, but for the names of the files."""
    task = make_task(kind, options)
    found = task.fingerprint(task.load())
    files = sorted(file["sha256"] for file in found["files"].values())
    return found | {"files": files, "outcome": task.outcome}
