"""What judges images with a number. ``resolve`` plans with a scorer, ``load_scorer`` loads it; neither is done at import.

A scorer of one's own is a class that is made from its card and has ``name``, ``version`` and ``score``::

    class Brightness:
        def __init__(self, card):
            self.name, self.version = card.name, card.version

        def score(self, images_NHWC, prompts):
            return images_NHWC.mean(axis=(1, 2, 3), dtype="float32") / 255

In ``brightness.py`` next to the configuration, it is used as ``scorers: {light: {type: "brightness:Brightness"}}``. It may import other
files of that folder: see ``own_files``.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from pipeline.scorers.base import Scorer
from pipeline.scorers.own_files import imported_files, let_import, own_file
from pipeline.scorers.resolve import SCORERS, ScorerCard
from schemas.errors import ModelError

__all__ = ["SCORERS", "load_scorer"]


def load_scorer(card: ScorerCard, *, cpu_threads: int = 1) -> Scorer:
    """The scorer of a card, ready to score. Raises ModelError if there is no such class, or it does not load."""
    module_name, _, class_name = card.target.partition(":")
    own_folder = card.folder if card.type not in SCORERS else None
    module = _from_file(module_name, Path(own_folder)) if own_folder else importlib.import_module(module_name)
    kind = getattr(module, class_name, None)
    if kind is None:
        raise ModelError(f"scorers.{card.name}: {module_name} has no class {class_name!r}; correct 'type'")
    scorer = kind(card)
    if "torch" in sys.modules:  # the number of threads changes the last bits of a sum
        sys.modules["torch"].set_num_threads(cpu_threads)
    return scorer


def _from_file(module_name: str, folder: Path) -> ModuleType:
    file = own_file(module_name, folder)
    let_import(imported_files(module_name, folder), folder)
    alias = f"promptmill_scorer_{module_name}"  # its own name might be that of an installed package
    spec = importlib.util.spec_from_file_location(alias, file)
    if spec is None or spec.loader is None:
        raise ModelError(f"{file} is no Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[alias] = module  # dataclasses and pickle look a class's module up there
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError) as error:
        del sys.modules[alias]
        hint = "mend it, or install what it needs; files of its folder are found by imports that are written out"
        raise ModelError(f"{file}: cannot be imported ({type(error).__name__}: {error}); {hint}") from error
    return module
