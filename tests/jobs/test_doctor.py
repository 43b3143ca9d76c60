"""``doctor`` tells in one line a check what is there and what is wrong, and survives whatever it finds."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.doctor import EXAMINATIONS, Check, doctor, packages, surroundings


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probe two modules of the standard library instead of the heavy ones."""
    monkeypatch.setattr(packages, "PROBED", {"json": "pyarrow", "csv": "duckdb"})


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def put_distribution(folder: Path, name: str, version: str, *requires: str) -> None:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {one}" for one in requires)]
    (info / "METADATA").write_text("\n".join(lines) + "\n")


@pytest.mark.slow
def test_this_installation_can_import_all_and_compute_somewhere(tmp_path: Path) -> None:
    found = by_name(doctor(tmp_path))
    heavy, others = packages.PROBED, ("python", "machine", "cpu", "ray", "duckdb", "hub", "folder")
    for name in (*heavy, *others):
        assert found[name].ok, str(found[name])
    assert "gpu" in found or "gpu 0" in found


@pytest.mark.usefixtures("light")
def test_every_check_is_one_line_and_a_failed_one_has_a_remedy(tmp_path: Path) -> None:
    for check in doctor(tmp_path / "a file" / "x"):
        assert "\n" not in str(check)
        assert str(check).startswith("ok    " if check.ok else "FAIL  ")
        assert check.ok or check.remedy in str(check)
        assert check.ok or check.remedy


@pytest.mark.usefixtures("light")
def test_an_examination_that_raises_becomes_a_failed_check_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(folder: Path) -> Iterator[Check]:
        yield Check(name="first", ok=True, detail="is fine")
        raise OSError("the disk\nis on fire")

    monkeypatch.setitem(EXAMINATIONS, "machine", broken)
    found = by_name(doctor(tmp_path))
    assert found["first"].ok
    assert str(found["machine"]).startswith("FAIL  machine      could not be examined (OSError: the disk); install promptmill again")
    assert found["folder"].ok


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise ImportError('libfoo.so.7: cannot open\\nmore')", "cannot be imported (ImportError: libfoo.so.7: cannot open)"),
        ("import os; os.abort()", "cannot be imported (the interpreter ended with status -6)"),
        ("import sys; sys.exit('no')", "cannot be imported (SystemExit: no)"),
    ],
)
def test_a_package_that_breaks_at_import_is_told_and_those_before_it_stand(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, said: str
) -> None:
    (tmp_path / "brittle.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(packages, "PROBED", {"json": "pyarrow", "brittle": "duckdb"})
    found = by_name(list(packages.heavy_packages(tmp_path)))
    assert found["json"].ok
    assert said in str(found["brittle"])
    assert found["brittle"].remedy


def test_a_missing_package_and_one_of_the_wrong_version_come_with_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put_distribution(tmp_path, "promptmill", "9.9", "nosuchpackage>=3", "ray[default]>=99", "pillow>=1", 'pytest>=999; extra == "dev"')
    monkeypatch.syspath_prepend(str(tmp_path))
    lines = [str(check) for check in packages.packages(tmp_path) if not check.ok]
    assert len(lines) == 2
    assert lines[0].startswith("FAIL  ray ")
    assert lines[0].endswith("does not fit, >=99 is needed; pip install 'ray>=99'")
    assert lines[1] == "FAIL  nosuchpackage is not installed; pip install 'nosuchpackage>=3'"


def test_a_torchvision_that_is_built_for_another_torch_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put_distribution(tmp_path, "torch", "2.0.0+cpu")
    put_distribution(tmp_path, "torchvision", "0.99.0", "torch==2.1.0")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(packages, "PROBED", {"torchvision": "torchvision"})
    monkeypatch.setattr(packages, "_probe", dict)
    (check,) = packages.heavy_packages(tmp_path)
    assert not check.ok
    assert check.detail.endswith("is built for torch==2.1.0, there is 2.0.0+cpu")
    assert check.remedy == "install both anew: pip install --force-reinstall 'torch==2.1.0' torchvision==0.99.0"


def test_gpus_are_told_with_memory_and_bfloat16() -> None:
    gpu = {"name": "H100", "free": 79e9, "total": 85e9, "bf16": True}
    first, second, _ = packages._devices({"gpus": [gpu, gpu | {"name": "T4", "bf16": False}], "cuda": "13.0", "cpu": "AVX2"})
    assert str(first) == "ok    gpu 0        H100, 79.0 GB of 85.0 GB free, bfloat16 in hardware: yes"
    assert second.detail.endswith("no, use float16")
    none, cpu = packages._devices({"gpus": [], "cuda": None, "cpu": "AVX512"})
    assert none.detail == "none, so jobs run on the CPU (torch is built without CUDA)"
    assert cpu.detail.startswith("AVX512")


def test_the_weights_are_held_against_their_pins(tmp_path: Path) -> None:
    pins = tmp_path / "sha256.json"
    assert "missing" in surroundings.weights_check(pins).detail
    (tmp_path / "clip").mkdir()
    weights = tmp_path / "clip" / "model.safetensors"
    weights.write_bytes(b"x" * 2000)
    pins.write_text(json.dumps({"clip/model.safetensors": hashlib.sha256(b"x" * 2000).hexdigest()}))
    assert str(surroundings.weights_check(pins)) == "ok    weights      bundled demo models: 1 files, 2 kB, sha256 right"
    weights.write_bytes(b"x" * 1999 + b"y")
    assert surroundings.weights_check(pins).detail == "clip/model.safetensors differs from its pinned sha256"
    weights.unlink()
    assert surroundings.weights_check(pins).detail == "clip/model.safetensors is missing"


def test_a_folder_that_is_not_there_yet_is_judged_by_the_one_above_and_nothing_is_left(tmp_path: Path) -> None:
    (check,) = surroundings.folder(tmp_path / "runs" / "new")
    assert check.ok
    assert check.detail.startswith(f"{tmp_path} is writable, ")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written_or_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (check,) = surroundings.folder(tmp_path / "file" / "run")
    assert not check.ok
    assert check.detail == f"{tmp_path}/file is a file"
    (check,) = surroundings.folder(Path("/proc"))
    assert not check.ok
    assert check.detail.startswith("/proc cannot be written (")


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(surroundings, "FREE_BYTES", 2**80)
    (check,) = surroundings.folder(tmp_path)
    assert not check.ok
    assert check.remedy.startswith("free some space")
