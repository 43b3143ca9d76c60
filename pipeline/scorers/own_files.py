"""The files that a scorer of the user's is made of: its module, and those of its folder that it imports, and that these import.

They are found by reading the code, before any of it runs. What was found is the scorer's identity, and nothing else of the folder can
be imported by it: a name computed at run time is not found. A module that is installed is preferred to a file of the same name,
so that no file of the user's folder takes the place of a package.
"""

import ast
import hashlib
import sys
from collections.abc import Iterator, Mapping
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path


def own_file(module: str, folder: Path) -> Path:
    """Where a module of the user's lies."""
    return folder.joinpath(*module.split(".")).with_suffix(".py")


def imported_files(module: str, folder: Path) -> dict[str, Path]:
    """Files of ``folder`` that ``module`` needs besides its own, by their names as modules; a folder stands for a package without code."""
    found: dict[str, Path] = {}
    todo = [(own_file(module, folder), "")]
    while todo:
        file, package = todo.pop()
        for name in _imports(file, package):
            parts = name.split(".")
            if _is_installed(parts[0], folder):
                continue
            for upto in range(1, len(parts) + 1):
                prefix, place = ".".join(parts[:upto]), _place(folder.joinpath(*parts[:upto]))
                if place is None:
                    break
                if prefix not in found:
                    found[prefix] = place
                    is_package = place.name == "__init__.py"
                    todo += [(place, prefix if is_package else prefix.rpartition(".")[0])] if place.is_file() else []
    return dict(sorted(found.items()))


def digest(module: str, folder: Path) -> str:
    """Of the module's own file, and of those that it imports, if it does."""
    own = hashlib.sha256(own_file(module, folder).read_bytes()).hexdigest()
    files = {name: path for name, path in imported_files(module, folder).items() if path.is_file()}
    if not files:
        return own
    lines = [f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for name, path in files.items()]
    return hashlib.sha256("\n".join([own, *lines]).encode()).hexdigest()


def let_import(files: Mapping[str, Path], folder: Path) -> None:
    """From now on these modules of a folder can be imported, read anew; those of another folder no longer."""
    old = next((finder for finder in sys.meta_path if isinstance(finder, _Finder)), None)
    known = old.files if old else {}
    for name in {*files, *(known if old and old.folder != folder else ())}:
        if isinstance(getattr(getattr(sys.modules.get(name), "__spec__", None), "loader_state", None), _Finder):
            del sys.modules[name]
    if old:
        sys.meta_path.remove(old)
    sys.meta_path.append(_Finder(folder, {**(known if old and old.folder == folder else {}), **files}))


class _Finder(MetaPathFinder):
    """Finds these files of a folder, by their names as modules."""

    def __init__(self, folder: Path, files: Mapping[str, Path]) -> None:
        self.folder, self.files = folder, files

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        file = self.files.get(fullname)
        if file is None:
            return None
        is_package = file.is_dir() or file.name == "__init__.py"
        spec = ModuleSpec(fullname, None, is_package=True) if file.is_dir() else None
        spec = spec or spec_from_file_location(fullname, file, submodule_search_locations=[] if is_package else None)
        if spec is not None:
            spec.loader_state = self
        return spec


def _imports(file: Path, package: str) -> Iterator[str]:
    """Names of all modules that a file may import, wherever in it; ``from a import b`` gives ``a.b`` too."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return  # told when it is loaded
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            if base and (not node.level or package):
                yield from (base, *(f"{base}.{alias.name}" for alias in node.names))


def _place(path: Path) -> Path | None:
    for file in (path / "__init__.py", path.with_name(f"{path.name}.py")):
        if file.is_file():
            return file
    return path if path.is_dir() else None


def _is_installed(name: str, folder: Path) -> bool:
    """Whether a module of that name comes from elsewhere. Imports nothing."""
    if name in sys.stdlib_module_names:
        return True
    finders = (finder for finder in sys.meta_path if not isinstance(finder, _Finder))
    spec = next((spec for finder in finders if (spec := finder.find_spec(name, None))), None)
    if spec is None:
        return False
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or [])
    return not all(Path(place).resolve().is_relative_to(folder.resolve()) for place in places)
