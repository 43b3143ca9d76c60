"""A model of the hub comes over HTTP: pinned, once per machine, its bytes compared, and needed no more afterwards."""

import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from pipeline.models import load_model
from pipeline.models.here import on_this_machine
from pipeline.models.resolve import ModelCard, resolve_model
from schemas.config import ModelConfig
from schemas.errors import ModelError
from tests.hub import REPO, Hub, hub_server

COMMIT, OLDER = "a" * 40, "b" * 40
CONFIG = ModelConfig(id=REPO)
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
NODE = """
import pickle, sys
from pathlib import Path
from pipeline.models.here import on_this_machine
card, config = pickle.loads(Path(sys.argv[1]).read_bytes())
print(on_this_machine(card, config).folder)
"""


@pytest.fixture
def hub(model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Two commits of a model, with files that nobody needs; this machine's cache is empty."""
    newest, older = (shutil.copytree(model_folder("sd"), tmp_path / commit) for commit in (COMMIT, OLDER))
    (newest / "unet/diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    (newest / "painter.safetensors").write_bytes(b"all in one file")
    (older / "scheduler/scheduler_config.json").write_text((newest / "scheduler/scheduler_config.json").read_text() + "\n")
    with hub_server({COMMIT: newest, OLDER: older}, main=COMMIT) as made:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        use_hub(monkeypatch, made.url)
        use_cache(monkeypatch, tmp_path / "cache")
        yield made


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setenv("HF_ENDPOINT", url)


def use_cache(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))


def resolved(config: ModelConfig = CONFIG) -> ModelCard:
    return resolve_model(config, base_dir=Path("/nowhere"))


def test_what_is_loaded_is_downloaded_pinned_and_then_no_hub_is_needed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    card = resolved()
    assert (card.name, card.revision, Path(card.folder).name) == (REPO, COMMIT, COMMIT)
    assert WEIGHTS in hub.asked
    assert not {"unet/diffusion_pytorch_model.bin", "painter.safetensors"} & set(hub.asked)
    assert sorted(set(hub.asked)) == sorted(hub.asked), "each once"
    assert load_model(card, CONFIG).revision == COMMIT
    hub.asked.clear()
    use_hub(monkeypatch, "http://127.0.0.1:9")  # nobody answers there
    assert resolved() == card
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolved() == on_this_machine(card, CONFIG) == card
    assert hub.asked == []


def test_another_machine_gets_the_planned_commit_whatever_is_newest_by_then(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.main = OLDER
    card = resolved()
    hub.main = COMMIT
    (tmp_path / "cache").rename(tmp_path / "elsewhere")
    use_cache(monkeypatch, tmp_path / "node")
    here = on_this_machine(card, CONFIG)
    assert here.folder == str(tmp_path / "node/models--acme--painter/snapshots" / OLDER)
    assert resolved(ModelConfig(id=REPO, revision=OLDER)).revision == OLDER
    assert resolved().revision == COMMIT


def test_a_file_that_arrives_with_other_bytes_is_refused_by_name(hub: Hub) -> None:
    hub.flip = WEIGHTS
    card = resolved()
    with pytest.raises(
        ModelError, match=rf"^model acme/painter: {WEIGHTS} is damaged: its name is of other bytes; delete .* download it again$"
    ):
        on_this_machine(card, CONFIG)
    Path(card.folder, WEIGHTS).resolve().unlink()
    Path(card.folder, WEIGHTS).unlink()
    hub.flip = None
    assert on_this_machine(card, CONFIG) == card


def test_a_download_that_was_killed_goes_on_and_workers_of_one_machine_share_it(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = resolved()
    (tmp_path / "order").write_bytes(pickle.dumps((card, CONFIG)))
    shutil.rmtree(tmp_path / "cache")  # this machine is another one now, which has nothing

    def worker() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", NODE, str(tmp_path / "order")]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    hub.asked.clear()
    hub.stall = WEIGHTS
    killed = worker()
    assert hub.stalled.wait(60)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    time.sleep(0.5)  # until the hub has read what it still sent
    there = {str(path.relative_to(card.folder)) for path in Path(card.folder).rglob("*") if path.is_file()}
    assert "model_index.json" in there
    assert WEIGHTS not in there
    hub.asked.clear()
    hub.stalled.clear()
    first = worker()
    assert hub.stalled.wait(60)
    second = worker()  # comes while the first one downloads
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(5)
    hub.go.set()
    for one in (first, second):
        said, error = one.communicate(timeout=60)
        assert (said.strip(), one.returncode) == (card.folder, 0), error
    assert hub.asked.count(WEIGHTS) == 1
    assert sorted(set(hub.asked)) == sorted(hub.asked), "each once"
    assert not there & set(hub.asked), "what was whole stayed"


ANSWERS = {
    "unknown": ((404, "RepoNotFound", ""), "there is no acme/painter at HUB, or it is private; check the name, or set HF_TOKEN"),
    "private": ((401, "", ""), "there is no acme/painter at HUB, or it is private; check the name, or set HF_TOKEN"),
    "bad token": ((401, "", "Invalid credentials in Authorization header"), "HUB does not accept the token; renew it (hf auth login)"),
    "gated": ((403, "GatedRepo", ""), "acme/painter is gated; accept its terms at HUB/acme/painter, and set HF_TOKEN"),
    "broken": ((500, "", ""), "acme/painter is not in the local cache and cannot be downloaded (HUB: HfHubHTTPError); check"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_what_the_hub_refuses_is_one_line_with_the_remedy(hub: Hub, name: str) -> None:
    hub.answer, wanted = ANSWERS[name]
    with pytest.raises(ModelError, match=f"^{re.escape('model acme/painter: ' + wanted.replace('HUB', hub.url))}") as caught:
        resolved()
    assert "\n" not in str(caught.value)


def test_an_unknown_revision_and_a_hub_out_of_reach_are_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ModelError, match=rf"^model acme/painter: acme/painter has no revision v9 at {hub.url}; give a commit, tag or branch"
    ):
        resolved(ModelConfig(id=REPO, revision="v9"))
    use_hub(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(ModelError, match=r"cannot be downloaded \(http://127.0.0.1:9: ConnectError\); check name and revision"):
        resolved()
