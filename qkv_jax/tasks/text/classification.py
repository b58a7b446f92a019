"""Classes of texts, from a CSV or TSV file or a Hugging Face data set; read from a class token.

A bag-of-words classifier on the same splits is printed beside the arms.
"""

import collections
import dataclasses
import functools
import pathlib
import re

import jax.numpy as jnp
import numpy as np

from qkv_jax.config import ConfigError, require_positive, require_range, settle
from qkv_jax.model.stems import TextStem
from qkv_jax.tasks import hub_datasets, overlap, sources
from qkv_jax.tasks.base import Data, Outcome, Reference, Task, epoch_schedule, register
from qkv_jax.tasks.splits import held_out_split, require_seed
from qkv_jax.tasks.streaming import DEVICE_LIMIT, ArrayRows, BatchStream
from qkv_jax.tasks.text.tables import Labelled, read_table
from qkv_jax.tasks.text.tokenizers import (
    BYTES,
    TokenizerName,
    check_vocabulary,
    make_tokenizer,
)

_SPLITS = ("train", "validation", "test")
_REGULARISATION = (1.0, 3.0, 10.0, 30.0, 100.0)  # C of the logistic regression, for validation


@register("text_classification")
@dataclasses.dataclass(frozen=True)
class TextClassification(Task):
    """Name the class of a text.

    One file (or a data set with one split) is split here, by a fixed seed and by the shares of the
    classes; of two, the second is the test set, and validation is drawn from the first; three are
    training, validation and test. Texts that are equal but for white space are kept together where
    a split is drawn here. Longer texts are cut, shorter ones padded.
    """

    title = "Text classification"
    description = "Name the class of a text; read from a class token."
    readout = "class"

    files: tuple[str, ...] = ()  # .csv or .tsv: one; or training, test; or also validation between
    dataset: str = ""  # instead of files: a Hugging Face name or a local folder
    subset: str = ""  # of the data set, where it has several
    text_column: str = "text"
    label_column: str = "label"
    labels: tuple[str, ...] = ()  # the classes in order; by default those of the training split
    validation: float = 0.1  # share of what is split here
    test: float = 0.2
    split_seed: int = 0
    tokenizer: TokenizerName = "bytes"
    vocabulary: int = 1024  # of byte pairs
    length: int = 128  # tokens
    margin: float = 0.02
    device_limit_bytes: int = DEVICE_LIMIT

    def __post_init__(self):
        settle(self)
        require_positive(self, "length", "vocabulary", "device_limit_bytes")
        check_vocabulary(self.tokenizer, self.vocabulary)
        require_range(self, "validation", 0.0, 1.0)
        require_range(self, "test", 0.0, 1.0 - self.validation)
        require_seed(self, "split_seed")
        if bool(self.files) == bool(self.dataset):
            raise ConfigError("files", self.files, "name files or a data set, one of the two")
        if len(self.files) > len(_SPLITS):
            raise ConfigError("files", self.files, "name one, two or three")
        if self.labels and len(set(self.labels)) < max(2, len(self.labels)):
            raise ConfigError("labels", self.labels, "must be two at least, each once")
        if self.label_column == self.text_column:
            raise ConfigError("label_column", self.label_column, "is the column of the texts")
        known = {label for part in self.splits().values() for label in part.labels}
        if unknown := [label for label in self.labels if label not in known]:
            raise ConfigError("labels", self.labels, f"no text has the label {unknown[0]!r}")
        if len(self.classes_in_order) < 2:
            raise self._refuses("has one label only")
        self.outcome  # noqa: B018  (its own checks)

    @property
    def classes_in_order(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.labels or tuple(sorted(set(self.splits()["train"].labels)))

    @property
    def outcome(self) -> Outcome:
        return Outcome.mean_accuracy(self.margin, self.classes)

    @property
    def classes(self) -> int:
        return len(self.classes_in_order)

    @property
    def symbols(self) -> int:
        """The number of different tokens; the number above them is the padding."""
        return self.vocabulary if self.tokenizer == "bpe" else BYTES

    @property
    def max_length(self) -> int:
        return self.length + 1

    def stem(self, width):
        return TextStem(self.symbols + 1, width)

    def example(self):
        valid = jnp.ones((1, self.max_length), bool)
        return {"inputs": jnp.zeros((1, self.length), jnp.int32), "valid": valid}

    def sources(self):
        if self.dataset:
            return hub_datasets.files(self.dataset, self.subset)
        return sources.distinct((sources.expanded(f, "files") for f in self.files), "files")

    def fingerprint(self, data):
        return super().fingerprint(data) | {"classes": list(self.classes_in_order)}

    def splits(self) -> dict[str, Labelled]:
        """Texts and labels of the three splits."""
        source = (() if self.dataset else self.sources(), self.dataset, self.subset)
        columns = (self.text_column, self.label_column)
        shares = (self.validation, self.test)
        return _read_splits(*source, columns, shares, self.split_seed, self.stamp())

    def load(self) -> Data:
        rows = self._rows()
        fits = rows["train"]["tokens"].nbytes <= self.device_limit_bytes
        return Data(
            validation=self._batch(rows["validation"]),
            test=self._batch(rows["test"]),
            train=rows["train"] if fits else None,
        )

    def _rows(self) -> dict[str, dict[str, np.ndarray]]:
        """Tokens [N, T], padded, and targets [N] of each split."""
        splits = self.splits()
        numbers = {label: number for number, label in enumerate(self.classes_in_order)}
        for name in _SPLITS:
            for label in sorted(set(splits[name].labels)):
                if label not in numbers and self.labels:
                    raise self._refuses(f"the label {label!r} is not in `labels`")
                if label not in splits["train"].labels:
                    raise self._refuses(f"the label {label!r} is in the {name} split only")
        train = [text.encode() for text in splits["train"].texts]
        encode = make_tokenizer(self.tokenizer, self.vocabulary, train).encode
        dtype = np.uint16 if self.symbols < 2**16 else np.int32
        rows = {}
        for name, (texts, labels) in splits.items():
            tokens = np.full((len(texts), self.length), self.symbols, dtype)
            for row, text in zip(tokens, texts, strict=True):
                some = encode(text.encode())[: self.length]
                row[: len(some)] = some
            targets = np.array([numbers[label] for label in labels], np.int32)
            rows[name] = {"tokens": tokens, "targets": targets}
        return rows

    def stream(self, train, seed, batch_size):
        if train is not None:
            return None
        rows = self._rows()["train"]
        return BatchStream(ArrayRows(rows, np.arange(len(rows["targets"]))), seed, batch_size)

    def schedule(self, train, key, first, steps, batch_size):
        if train is None:
            return {}
        examples = train["targets"].shape[0]
        return {"rows": epoch_schedule(key, first, steps, batch_size, examples)}

    def batch(self, train, entry):
        if "rows" in entry:
            entry = {name: values[entry["rows"]] for name, values in train.items()}
        return self._batch(entry)

    def references(self, data):
        splits = self.splits()
        majority, _ = collections.Counter(splits["train"].labels).most_common(1)[0]
        share = float(np.mean([label == majority for label in splits["test"].labels]))
        most_frequent = Reference("most frequent class", share, f"always {majority!r}")
        if not any(re.search(r"\w", text) for text in splits["train"].texts):
            return (most_frequent,)  # no words, no bag of words
        strength, accuracy = bag_of_words(splits)
        return (
            most_frequent,
            Reference(
                "TF-IDF + logistic regression",
                accuracy,
                f"words and pairs of words of whole texts; C = {strength:g} chosen on validation",
            ),
        )

    def notes(self, data):
        texts = {name: list(map(_spaced, part.texts)) for name, part in self.splits().items()}
        sentences = ()
        for name in ("validation", "test"):
            found = overlap.count(texts["train"], texts[name])
            sentences += overlap.sentence(name, "texts", found, len(texts[name]))
        return sentences

    def _refuses(self, what: str) -> ConfigError:
        return _refused(self.files, self.dataset, what)

    def _batch(self, rows):
        tokens = rows["tokens"].astype(jnp.int32)
        seen = jnp.asarray(tokens != self.symbols)
        # The class token in front is always there.
        valid = jnp.pad(seen, ((0, 0), (1, 0)), constant_values=True)
        return {"inputs": tokens, "valid": valid, "targets": rows["targets"]}


def bag_of_words(splits: dict[str, Labelled]) -> tuple[float, float]:
    """Logistic regression on TF-IDF weights of words and pairs of words, fitted on training texts.

    Returns:
      C, the best on validation, and the accuracy on test at it.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    weights = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+")
    weights.fit(splits["train"].texts)
    features = {name: weights.transform(part.texts) for name, part in splits.items()}
    scores = {}
    for strength in _REGULARISATION:
        model = LogisticRegression(C=strength, max_iter=2000)
        model.fit(features["train"], splits["train"].labels)
        score = lambda name, model=model: float(model.score(features[name], splits[name].labels))
        scores[strength] = (score("validation"), score("test"))
    best = max(_REGULARISATION, key=lambda strength: scores[strength][0])
    return best, scores[best][1]


@functools.lru_cache(maxsize=2)
def _read_splits(
    files: tuple[pathlib.Path, ...],
    dataset: str,
    subset: str,
    columns: tuple[str, str],
    shares: tuple[float, float],
    seed: int,
    changed: sources.Stamp,
) -> dict[str, Labelled]:
    """Reads and splits once what every property asks for, and anew where a file was changed."""
    if dataset:
        tables = hub_datasets.read_splits(dataset, subset, *columns)
        found = {name: Labelled(*map(table.get, columns)) for name, table in tables.items()}
    else:
        names = {1: _SPLITS[:1], 2: ("train", "test"), 3: _SPLITS}[len(files)]
        found = {n: read_table(path, *columns) for n, path in zip(names, files, strict=True)}
    train = found["train"]
    if not any(text.strip() for text in train.texts):
        raise _refused(files, dataset, f"all texts of the column {columns[0]!r} are empty")
    classes, rows = len(set(train.labels)), len(train.labels)
    doubt = f"; is {columns[1]!r} the column of the labels?" if 2 * classes > rows else ""
    drawn = {n: share for n, share in zip(_SPLITS[1:], shares, strict=True) if n not in found}
    for name, share in drawn.items():
        if not share:
            raise ConfigError(name, share, f"must be above 0; the {name} split is drawn here")
    try:
        found |= _drawn(train, drawn, seed)
    except ConfigError as error:
        different = len(set(map(_spaced, train.texts)))
        counts = f" ({different} different texts in {rows} rows)" if different < rows else ""
        raise _refused(files, dataset, error.allowed + counts + doubt) from None
    if doubt and classes > 1:
        raise _refused(files, dataset, f"has {classes} labels in {rows} rows{doubt}")
    return {name: found[name] for name in _SPLITS}


def _drawn(rows: Labelled, shares: dict[str, float], seed: int) -> dict[str, Labelled]:
    """Splits with some shares of the different texts, and `train`; all rows of a text in one."""
    texts = list(map(_spaced, rows.texts))
    groups = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    places: list[list[int]] = [[] for _ in groups]
    for place, text in enumerate(texts):
        places[groups[text]].append(place)
    # Of a text with several labels the rarest counts, so that training does not lack it.
    often = collections.Counter(rows.labels)
    labels = [min((rows.labels[i] for i in some), key=often.__getitem__) for some in places]
    sizes = {name: max(1, round(share * len(groups))) for name, share in shares.items()}
    if not sizes:
        return {}
    split = {}
    for name, numbers in held_out_split(np.array(labels), sizes, seed).items():
        chosen = [i for number in numbers for i in places[number]]
        split[name] = Labelled([rows.texts[i] for i in chosen], [rows.labels[i] for i in chosen])
    return split


def _spaced(text: str) -> str:
    """A text with single spaces: what nobody would call another text is the same."""
    return " ".join(text.split())


def _refused(files: tuple, dataset: str, what: str) -> ConfigError:
    if dataset:
        return ConfigError("dataset", dataset, what)
    return ConfigError("files", ", ".join(map(str, files)), what)
