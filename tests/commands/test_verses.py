"""`experiments.prepare verses`: verses of two SWORD modules, side by side."""

import struct

import pytest

from tests.support import commands

NAMES = ("engWEB2015eb", "spaRV1909eb")
# Before Genesis 1:1 come the headings of module, testament, book and chapter; the first chapter has
# 31 verses, and the second a heading.
GENESIS = {(1, verse): 3 + verse for verse in range(1, 32)} | {(2, 1): 36}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verses")
    with commands.server(folder) as run:
        yield lambda *flags: run("experiments.prepare", "verses", *flags)


def module(sword, name, verses):
    """A module of raw text: the place and length of each verse in `ot.vss`, the texts in `ot`."""
    data = sword / "modules" / name
    data.mkdir(parents=True)
    (sword / "mods.d").mkdir(exist_ok=True)
    lines = (f"[{name}]", f"DataPath=./modules/{name}/", "ModDrv=RawText", "SourceType=OSIS")
    (sword / "mods.d" / f"{name}.conf").write_text("\n".join((*lines, "Encoding=UTF-8", "")))
    records, text = [(0, 0)] * 40, b""
    for place, verse in verses.items():
        records[GENESIS[place]] = len(text), len(verse.encode())
        text += verse.encode()
    (data / "ot.vss").write_bytes(b"".join(struct.pack("<IH", *record) for record in records))
    (data / "ot").write_bytes(text)


def test_verses_stand_beside_their_translations(run, tmp_path):
    """Without tags and line ends; what one of the two lacks is left out."""
    english = {
        (1, 1): "In the <hi>beginning</hi>\n <w>God</w><note>Elohim</note><w>created</w>",
        (1, 2): "The earth",
        (1, 3): "God<note>Elohim</note>’s",
        (1, 31): "Evening",
        (2, 1): "The heavens",
    }
    spanish = {
        (1, 1): "EN el\tprincipio",
        (1, 3): "Y dijo",
        (1, 30): "Y a toda",
        (2, 1): "Y FUERON",
    }
    for name, verses in zip(NAMES, (english, spanish), strict=True):
        module(tmp_path, name, verses)
    out = tmp_path / "new" / "verses.tsv"
    code, printed, err = run(f"--sword={tmp_path}", f"--out={out}")
    assert (code, err) == (0, "") and "3 pairs of verses" in printed
    assert out.read_text().splitlines() == [
        "In the beginning God created\tEN el principio",
        "God’s\tY dijo",
        "The heavens\tY FUERON",
    ]


def test_folders_without_the_modules_are_refused(run, tmp_path):
    for given, line in (
        ([], "--sword: given None; name the folder of SWORD modules"),
        ([f"--sword={tmp_path}"], "has no module engWEB2015eb; there: none"),
    ):
        code, out, err = run(*given)
        assert (code, out, err.count("\n")) == (2, "", 1) and line in err
    module(tmp_path, NAMES[0], {(1, 1): "In"})
    _, _, err = run(f"--sword={tmp_path}")
    assert f"has no module {NAMES[1]}; there: {NAMES[0]}" in err
