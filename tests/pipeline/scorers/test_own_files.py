"""A scorer of the user's may import files of its folder: those are its identity, and no file takes the place of a package."""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.scorers import load_scorer
from pipeline.scorers.own_files import _Finder, imported_files
from pipeline.scorers.resolve import resolve_scorer
from schemas.config import ScorerConfig
from schemas.errors import ModelError

SCORER = """
import numpy as np
{imports}

class Level:
    def __init__(self, card):
        self.name, self.version = card.name, card.version

    def score(self, images_NHWC, prompts):
        return np.full(len(images_NHWC), {level}, np.float32)
"""


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    before = set(sys.modules)
    yield
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(folder: Path, imports: str, level: str, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "taste.py").write_text(SCORER.format(imports=imports, level=level))
    for name, text in files.items():
        path = folder.joinpath(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder


def level(folder: Path) -> tuple[float, str]:
    """What the scorer of a folder says, and its version."""
    card = resolve_scorer("taste", ScorerConfig(type="taste:Level"), base_dir=folder)
    scorer = load_scorer(card)
    return float(scorer.score(np.zeros((1, 4, 4, 3), np.uint8), [""])[0]), card.version


def test_files_and_packages_of_the_folder_are_imported_and_each_changes_the_version(tmp_path: Path) -> None:
    files = {"helpers": "from lib.deep import BASE\nGAIN = 2\n", "lib__deep": "from . import more\nBASE = more.N\n", "lib__more": "N = 3\n"}
    folder = write(tmp_path / "job", "import helpers", "helpers.GAIN * helpers.BASE", **files, unused="raise SystemExit")
    assert sorted(imported_files("taste", folder)) == ["helpers", "lib", "lib.deep", "lib.more"]
    value, version = level(folder)
    assert value == 6.0
    (folder / "unused.py").write_text("1\n")
    assert level(folder)[1] == version
    (folder / "lib" / "more.py").write_text("N = 5  # another size\n")
    assert level(folder)[0] == 10.0
    assert level(folder)[1] != version


def test_the_version_of_a_single_file_is_its_sha256_as_ever(tmp_path: Path) -> None:
    folder = write(tmp_path / "job", "import json, yaml", "1", yaml="raise SystemExit('mine')")
    sha256 = hashlib.sha256((folder / "taste.py").read_bytes()).hexdigest()
    assert level(folder) == (1.0, f"taste:Level/sha256:{sha256[:16]}")


def test_a_file_that_is_named_like_a_package_takes_nobody_s_place(tmp_path: Path) -> None:
    decoys = dict.fromkeys(("numpy", "pipeline", "schemas", "json"), "raise SystemExit('taken over')")
    folder = write(tmp_path / "job", "import json, pipeline.sample, schemas.config", "len(json.dumps('abc'))", **decoys)
    assert imported_files("taste", folder) == {}
    assert level(folder)[0] == 5.0


def test_scorers_of_two_folders_each_have_their_own_files_and_those_of_one_share_theirs(tmp_path: Path) -> None:
    one = write(tmp_path / "one", "import helpers", "helpers.GAIN", helpers="GAIN = 1\n")
    two = write(tmp_path / "two", "import helpers", "helpers.GAIN", helpers="GAIN = 2\n")
    assert [level(one)[0], level(two)[0], level(one)[0]] == [1.0, 2.0, 1.0]
    late = write(
        tmp_path / "three", "def late():\n    import helpers\n    return helpers.GAIN", "late()", helpers="GAIN = 1\n", more="N = 7\n"
    )
    (late / "other.py").write_text(SCORER.format(imports="import more", level="more.N"))
    card = resolve_scorer("taste", ScorerConfig(type="taste:Level"), base_dir=late)
    scorer = load_scorer(card)
    load_scorer(resolve_scorer("other", ScorerConfig(type="other:Level"), base_dir=late))
    assert scorer.score(np.zeros((1, 4, 4, 3), np.uint8), [""])[0] == 1.0


def test_what_the_version_does_not_know_cannot_be_imported(tmp_path: Path) -> None:
    folder = write(tmp_path / "job", "helpers = __import__('hel' + 'pers')", "1", helpers="")
    with pytest.raises(ModelError, match=r"taste\.py: cannot be imported \(ModuleNotFoundError: No module named 'helpers'\)") as caught:
        level(folder)
    assert "written out" in str(caught.value)
