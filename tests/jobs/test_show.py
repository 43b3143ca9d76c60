"""A contact sheet has the images that a condition chooses, and a terminal that draws shows it."""

import base64
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from jobs.cli import cli
from jobs.run_dir import RunDir
from jobs.show import contact_sheet
from jobs.terminal_picture import CHUNK, terminal_picture
from schemas.errors import QueryError
from tests.conftest import REPOSITORY
from tests.runs import finished_run

PNG = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return finished_run(tmp_path_factory.mktemp("show") / "run")


def test_a_sheet_has_the_images_of_a_condition(run: RunDir, tmp_path: Path) -> None:
    assert contact_sheet(run.store.root, tmp_path / "new" / "sheet.png", where="label = 'class1' or true -- all", limit=10) == 10
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        assert sheet.width > 8 * 160
    with pytest.raises(QueryError, match="no image satisfies"):
        contact_sheet(run.store.root, tmp_path / "none.png", where="false", limit=10)
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize("environment", [{"TERM": "xterm-kitty"}, {"TERM": "xterm-256color", "TERM_PROGRAM": "ghostty"}])
def test_kitty_gets_the_file_in_pieces(environment: dict[str, str]) -> None:
    found = terminal_picture(PNG, environment) or ""
    pieces = re.findall(r"\033_G(?:a=T,f=100,)?m=([01]);([^\033]*)\033\\", found)
    assert found.startswith("\033_Ga=T,f=100,")
    assert found.count("a=T") == 1
    assert [more for more, _ in pieces] == ["1"] * (len(pieces) - 1) + ["0"]
    assert all(len(piece) == CHUNK for _, piece in pieces[:-1])
    assert base64.b64decode("".join(piece for _, piece in pieces)) == PNG


@pytest.mark.parametrize("environment", [{"TERM_PROGRAM": "iTerm.app"}, {"TERM_PROGRAM": "WezTerm"}, {"LC_TERMINAL": "iTerm2"}])
def test_iterm_gets_it_whole(environment: dict[str, str]) -> None:
    found = re.fullmatch(r"\033\]1337;File=inline=1;size=(\d+):([^\a]*)\a", terminal_picture(PNG, environment) or "")
    assert found
    assert (int(found[1]), base64.b64decode(found[2])) == (len(PNG), PNG)


@pytest.mark.parametrize(
    "environment", [{}, {"TERM": "dumb"}, {"TERM": "xterm-256color"}, {"TERM": "xterm-kitty", "TMUX": "/tmp/x"}, {"TERM": "screen"}]
)
def test_others_get_none(environment: dict[str, str]) -> None:
    assert terminal_picture(PNG, environment) is None


def test_the_command_draws_on_a_terminal_and_nowhere_else(run: RunDir, tmp_path: Path) -> None:
    piped = CliRunner(env={"TERM": "xterm-kitty"}).invoke(cli, ["show", run.store.root, str(tmp_path / "sheet.png"), "--limit", "1"])
    assert piped.output == f"{tmp_path}/sheet.png: 1 images\n"
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "jobs.cli", "show", run.store.root, str(tmp_path / "sheet.png"), "--limit", "1"]
    kitty = {name: value for name, value in os.environ.items() if name not in ("TMUX", "TERM_PROGRAM", "LC_TERMINAL")} | {
        "TERM": "xterm-kitty"
    }
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, cwd=REPOSITORY, env=kitty) as process:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 1 << 16):
                shown += part
        except OSError:  # Linux, at the end
            pass
    os.close(ours)
    assert process.returncode == 0, shown
    assert (terminal_picture((tmp_path / "sheet.png").read_bytes(), {"TERM": "xterm-kitty"}) or "none") in shown.decode()
