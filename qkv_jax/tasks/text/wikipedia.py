"""Articles of a Wikipedia dump as plain words, 27 signs in all: a to z and the space, as in text8
(Mahoney 2006, http://mattmahoney.net/dc/textdata): markup, tables, templates and notes fall away,
of links and tags the text stays, and digits are spelled.
"""

import bz2
import html
import pathlib
import re
import unicodedata
from collections.abc import Iterator
from xml.etree import ElementTree

from qkv_jax.config import ConfigError

_DIGITS = "zero one two three four five six seven eight nine"
# With all that is in them: comments, notes, formulas, galleries.
_DROPPED = re.compile(
    r"<!--.*?-->|<(ref|math|gallery|timeline)\b(?:[^>]*/>|[^>]*>.*?</\1\s*>)",
    re.DOTALL | re.IGNORECASE,
)
_TAG = re.compile(r"</?[a-z][^<>]*>", re.IGNORECASE)
_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}")
_TABLE = re.compile(r"\{\|(?:(?!\{\|).)*?\|\}", re.DOTALL)
_LINK = re.compile(r"\[\[([^\[\]]*)\]\]")
# Files, categories, and the same article in other languages.
_NO_TEXT = re.compile(r"(file|image|category|[a-z]{2,3}(-[a-z]+)?):", re.IGNORECASE)
_ADDRESS = re.compile(r"\[?\bhttps?://[^\s\]]+ ?")


def articles(dump: pathlib.Path, field: str) -> Iterator[tuple[str, str]]:
    """Title and `plain` text of each article of a MediaWiki export, `.xml` or `.xml.bz2`;
    redirects, talk and other pages are left out.

    Args:
      field: what names the file, for the refusal.

    Raises:
      ConfigError: if it cannot be read, is damaged, or is something else.
    """
    try:
        with open(dump, "rb") as file:
            packed = file.read(3) == b"BZh"
        with (bz2.open if packed else open)(dump, "rb") as file:
            events = ElementTree.iterparse(file, events=("start", "end"))
            _, root = next(events)
            space, _, name = root.tag.rpartition("}")
            if name != "mediawiki":
                raise ConfigError(field, str(dump), f"is no MediaWiki export, but <{name}>")
            tag = (space + "}" if space else "").__add__
            for event, page in events:
                if event == "end" and page.tag == tag("page"):
                    is_article = page.findtext(tag("ns")) == "0"
                    if is_article and page.find(tag("redirect")) is None:
                        text = page.findtext(f"{tag('revision')}/{tag('text')}")
                        yield page.findtext(tag("title"), ""), plain(text or "")
                    root.clear()  # or all of Wikipedia would be kept
    except (OSError, EOFError) as error:
        what = getattr(error, "strerror", None) or error
        raise ConfigError(field, str(dump), f"cannot be read: {what}") from None
    except ElementTree.ParseError as error:
        raise ConfigError(field, str(dump), f"is no whole XML file: {error}") from None


def plain(wikitext: str) -> str:
    """The words of an article, in lower case, with one space between two."""
    text = _DROPPED.sub(" ", wikitext)
    for pattern in (_TEMPLATE, _TABLE, _TEMPLATE):  # tables may stand in templates
        text = _until_stable(pattern, " ", text)
    text = _until_stable(_LINK, _shown, text)
    text = _ADDRESS.sub(" ", _TAG.sub(" ", text))
    decomposed = unicodedata.normalize("NFKD", html.unescape(text)).lower()  # accents apart
    letters = "".join(sign for sign in decomposed if not unicodedata.combining(sign))
    digits = _DIGITS.split()
    spelled = re.sub("[0-9]", lambda digit: f" {digits[int(digit[0])]} ", letters)
    return " ".join(re.findall("[a-z]+", spelled))


def _shown(link: re.Match) -> str:
    """What a reader sees of `[[target]]` or `[[target|text]]`."""
    return "" if _NO_TEXT.match(link[1]) else link[1].rpartition("|")[2]


def _until_stable(pattern: re.Pattern, by, text: str) -> str:
    """Nested markup goes from the inside out."""
    found = 1
    while found:
        text, found = pattern.subn(by, text)
    return text
