"""``promptmill push`` against a hub on this machine, by the real library in a process of its own: whole, resumable, careful."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from jobs.export import export
from jobs.push import push
from schemas.errors import ExportError
from tests.conftest import REPOSITORY
from tests.hub_server import HOLD, READ_ONLY, TOKEN, HubServer, Repo, serving
from tests.runs import finished_run

PUSH = "import jobs.push; jobs.push.FILES_PER_COMMIT, jobs.push.TRIES = 3, 3; from jobs.cli import main; main()"
FEW_COMMITS = PUSH.replace("FILES_PER_COMMIT,", "FILES_PER_COMMIT, jobs.push.COMMITS_PER_PUSH, jobs.push.LONG_SECONDS,").replace(
    "3, 3", "3, 2, 1, 3"
)
COMMIT = r"POST /api/datasets/.*/commit/"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of some Parquet files and a card. Read only."""
    place = tmp_path_factory.mktemp("push")
    run = finished_run(place / "run", prompts=24)
    export(run.store.root, place / "out", form="hf", shard_bytes=4_000, license_id="cc0-1.0", provenance=True)
    return place / "out"


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with serving() as server:
        yield server


def start(hub: HubServer, folder: Path, *arguments: str, program: str = PUSH, **environment: str) -> subprocess.Popen[str]:
    """The command with 3 files to a commit and 3 tries."""
    settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": "/nowhere"}
    command = [sys.executable, "-c", program, "push", str(folder), *arguments]
    return subprocess.Popen(
        command, env=os.environ | settings | environment, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, err = process.communicate(timeout=120)
    assert TOKEN not in out + err
    assert READ_ONLY not in out + err
    return process.returncode, out + err


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def on_the_hub(hub: HubServer, name: str = "me/set") -> dict[str, bytes]:
    return {path: data for path, data in hub.repos[name].files.items() if path != ".gitattributes"}


def test_an_export_is_private_and_whole_on_the_hub_its_card_last_and_pushed_again_sends_nothing(hub: HubServer, folder: Path) -> None:
    status, output = finish(start(hub, folder, "set"))
    assert status == 0, output
    assert f"{hub.url}/datasets/me/set: {len(contents(folder))} files" in output
    assert output.rstrip().endswith("private")
    assert on_the_hub(hub) == contents(folder)
    repo = hub.repos["me/set"]
    assert repo.private
    assert len(repo.commits) > 3
    assert "the card" in repo.commits[-1]
    front = yaml.safe_load(repo.files["README.md"].decode().split("---\n")[1])
    assert (front["license"], front["tags"]) == ("cc0-1.0", ["synthetic", "promptmill"])
    assert front["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    before = (list(repo.commits), list(hub.uploads))
    status, output = finish(start(hub, folder, "me/set"))
    assert (status, "0 sent" in output) == (0, True), output
    assert (repo.commits, hub.uploads) == before


@pytest.mark.parametrize(
    "where",
    [{"PUT /objects/": [None] * 4 + [HOLD] * 3}, {COMMIT: [None, HOLD]}, {"POST /api/repos/create": [HOLD]}],
    ids=["in an upload", "before a commit is answered", "before the dataset is known to be made"],
)
def test_a_push_that_is_killed_goes_on_and_sends_nothing_twice(hub: HubServer, folder: Path, where: dict[str, list[int | None]]) -> None:
    hub.faults = where
    killed = start(hub, folder, "set")
    assert hub.held.wait(60)
    killed.kill()
    killed.communicate()
    hub.faults = {}
    hub.released.set()
    assert "README.md" not in on_the_hub(hub)
    kept = list(hub.repos["me/set"].commits)
    status, output = finish(start(hub, folder, "set"))
    assert status == 0, output
    assert on_the_hub(hub) == contents(folder)
    assert len(hub.uploads) == len(set(hub.uploads))
    assert hub.repos["me/set"].commits[: len(kept)] == kept


def test_a_hub_that_fails_now_and_then_and_loses_answers_gets_each_commit_once(hub: HubServer, folder: Path) -> None:
    hub.faults = {"validate-yaml": [500], "repos/create": [503], "/tree/": [500], "PUT /objects/": [None, 500], COMMIT: [None, 0, 500]}
    status, output = finish(start(hub, folder, "set"))
    assert status == 0, output
    assert "the hub answered 500 (as the test wanted it); trying again" in output
    assert on_the_hub(hub) == contents(folder)
    assert not any(hub.faults.values()), "every fault was met"
    assert sum("files" in title for title in hub.repos["me/set"].commits) == -(-(len(contents(folder)) - 1) // 3)


@pytest.mark.parametrize(
    ("name", "environment", "faults", "message"),
    [
        ("set", {"HF_TOKEN": "hf_wrong"}, {}, "the hub does not accept the token .*run 'hf auth login'"),
        ("set", {"HF_TOKEN": READ_ONLY}, {}, "the hub forbids it .*use a token that may write there"),
        ("others/set", {}, {}, "others/set: the hub forbids it .*choose a name of your own"),
        ("set", {"HF_TOKEN": ""}, {}, "there is no token for the hub; run 'hf auth login', or set HF_TOKEN"),
        ("set", {"HF_HUB_OFFLINE": "1"}, {}, "HF_HUB_OFFLINE is set"),
        ("a/b/c", {}, {}, "a/b/c: is no name of a dataset"),
        ("set", {}, {"repos/create": [500] * 3}, "the hub answered 500 .*run the same command again, it goes on"),
        ("set", {"HF_ENDPOINT": "http://127.0.0.1:1"}, {}, "the hub at http://127.0.0.1:1 cannot be reached"),
    ],
)
def test_what_the_hub_refuses_is_told_in_one_line(
    hub: HubServer, folder: Path, name: str, environment: dict[str, str], faults: dict[str, list[int | None]], message: str
) -> None:
    hub.faults = faults
    status, output = finish(start(hub, folder, name, **environment))
    *_, line = output.splitlines()
    assert status == 2
    assert "Traceback" not in output
    assert re.search(message, line), line
    assert not hub.repos


def test_a_licence_that_the_hub_does_not_know_is_told_before_anything_is_sent(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text((folder / "README.md").read_text().replace("cc0-1.0", "nonsense"))
    status, output = finish(start(hub, tmp_path, "set"))
    assert (status, hub.repos) == (2, {})
    assert '"license" must be one of these' in output.replace("\\", "")


def test_a_dataset_of_that_name_is_left_alone_unless_it_is_to_be_replaced(hub: HubServer, folder: Path) -> None:
    mine = {"thesis.txt": b"mine", "README.md": b"# mine", "data/old.parquet": b"old"}
    hub.repos["me/set"] = Repo(private=True, files=dict(mine))
    status, output = finish(start(hub, folder, "set"))
    assert (status, on_the_hub(hub)) == (2, mine)
    assert (
        "me/set: is there already, with other files than this export (thesis.txt and 2 more); choose another name, or --replace" in output
    )
    hub.faults = {COMMIT: [None, 412]}
    status, output = finish(start(hub, folder, "set", "--replace"))
    assert (status, "was changed meanwhile (as the test wanted it); somebody else changes it" in output) == (2, True), output
    status, output = finish(start(hub, folder, "set", "--replace"))
    assert (status, "2 removed" in output) == (0, True), output
    assert on_the_hub(hub) == contents(folder)


def test_a_branch_is_made_and_pushed_to_in_few_commits_and_the_hub_is_waited_for_when_it_says_so(hub: HubServer, folder: Path) -> None:
    hub.faults = {COMMIT: [429]}
    status, output = finish(start(hub, folder, "set", "--revision", "v2", program=FEW_COMMITS))
    assert status == 0, output
    assert f"{hub.url}/datasets/me/set/tree/v2: {len(contents(folder))} files" in output
    assert "too many requests (as the test wanted it); trying again in 2 s" in output
    repo = hub.repos["me/set"]
    branch = repo.branches["v2"]
    assert on_the_hub(hub) == {}, "main stays as it is"
    assert {path: data for path, data in branch.files.items() if path != ".gitattributes"} == contents(folder)
    assert len(contents(folder)) > 7
    assert len(branch.commits) == 4, "the first, two of files, the card's"
    status, output = finish(start(hub, folder, "set", "--revision", "v2"))
    assert (status, "0 sent" in output) == (0, True), output


def test_a_public_dataset_is_added_to_only_when_that_is_said(hub: HubServer, folder: Path) -> None:
    hub.repos["me/set"] = Repo(private=False)
    status, output = finish(start(hub, folder, "set"))
    assert (status, on_the_hub(hub)) == (2, {})
    assert "is there already and public; give --public if all may see these images" in output
    status, output = finish(start(hub, folder, "set", "--public"))
    assert (status, output.rstrip().endswith("public")) == (0, True), output


def test_only_an_export_is_pushed_and_nothing_that_was_put_beside_it(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is no export; make one with 'promptmill export RUN"):
        push(tmp_path, "set")
    (tmp_path / "README.md").write_bytes((folder / "README.md").read_bytes())
    for name in (".env", "linked"):
        path = tmp_path / name
        path.symlink_to("/etc/hostname") if name == "linked" else path.write_text("SECRET=1")
        with pytest.raises(ExportError, match=rf"{name}: no export writes such a file"):
            push(tmp_path, "set")
        path.unlink()
