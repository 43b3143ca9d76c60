"""``label`` asks about an even sample, keeps every answer whatever kills it, and takes answers from its own pages alone."""

import http.client
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
from PIL import Image

from jobs.calibrate import calibrate, read_labels
from jobs.label.labels import Labels
from jobs.label.sample import draw_sample
from jobs.label.site import LabelSite
from jobs.query import query
from jobs.run_dir import RunDir
from jobs.serve.server import Server
from schemas.errors import ConfigError
from schemas.records import Prompt
from tests import runs
from tests.browser import browsing, needs_chromium
from tests.conftest import REPOSITORY
from tests.jobs.test_bad_input import refused
from tests.jobs.test_report import HOSTILE
from tests.runs import finished_run

FORM = "application/x-www-form-urlencoded"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Its prompts try to be more than text."""

    def prompts(count: int) -> list[Prompt]:
        return [Prompt(id=f"p{n}", text=f"{n} {HOSTILE[n % 6]}", label=HOSTILE[n % 6]) for n in range(count)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "make_prompts", prompts)
        return finished_run(tmp_path_factory.mktemp("label") / "run", prompts=60)


class Client:
    """Asks one server as a browser does that runs no script."""

    def __init__(self, port: int) -> None:
        self.port = port

    def __call__(self, path: str, body: str | None = None, **headers: str) -> tuple[int, http.client.HTTPMessage, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            kind = {"Content-Type": FORM} if body is not None else {}
            connection.request("GET" if body is None else "POST", path, body=body, headers=kind | named)
            reply = connection.getresponse()
            return reply.status, reply.headers, reply.read().decode("utf-8", "replace")
        finally:
            connection.close()

    def form(self, path: str = "/", good: int = 1) -> str:
        """What a button of a page would send."""
        fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]+)"', self(path)[2]))
        assert set(fields) == {"token", "sample_id"}
        return urlencode(fields | {"good": good})


@contextmanager
def labelling(run: RunDir, csv: Path, count: int = 20) -> Iterator[Client]:
    sample = draw_sample(run, count=count, seed=0)
    with Labels(csv) as labels, Server(LabelSite(run, sample, labels, csv), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield Client(server.server_port)
        finally:
            server.shutdown()
            thread.join()


def test_the_sample_has_one_image_of_each_stretch_of_scores_in_an_order_that_tells_nothing(run: RunDir) -> None:
    sql = "select sample_id, clip_score as score from metadata where status != 'failed' and not isnan(clip_score) order by 2"
    ranks = {row["sample_id"]: rank for rank, row in enumerate(query([run.store.root], sql).to_pylist())}
    size = len(ranks) // 13
    assert len(ranks) == 13 * size + 12, "strata of two sizes"
    drawn = [ranks[row["sample_id"]] for row in draw_sample(run, count=13, seed=0).rows]
    assert [rank // (size + 1) for rank in sorted(drawn)] == list(range(13)), "one of each"
    assert drawn != sorted(drawn)
    assert abs(np.corrcoef(drawn, range(13))[0, 1]) < 0.8
    assert drawn == [ranks[row["sample_id"]] for row in draw_sample(run, count=13, seed=0).rows]
    assert drawn != [ranks[row["sample_id"]] for row in draw_sample(run, count=13, seed=1).rows]
    assert len(draw_sample(run, count=10_000, seed=0).rows) == len(ranks)
    assert {row["label"] for row in draw_sample(run, count=9, seed=0, where=f"label = '{HOSTILE[1]}'").rows} == {HOSTILE[1]}


def test_every_answer_is_a_line_and_the_audit_reads_them(run: RunDir, tmp_path: Path) -> None:
    csv, sample = tmp_path / "labels.csv", draw_sample(run, count=20, seed=0)
    with labelling(run, csv) as ask:
        for number in range(12):
            status, headers, _ = ask("/label", ask.form(good=number % 2))
            assert (status, headers["location"]) == (303, f"/?n={number + 2}")
            assert len(csv.read_text().splitlines()) == number + 2
        ask("/label", ask.form("/?n=1", good=1))  # another answer to the first
    with labelling(run, csv) as ask:
        assert "<b>13 of 20</b>" in ask("/")[2], "goes on where it stopped"
        places = [ask("/label", ask.form(good=1))[1]["location"] for _ in range(8)]
        assert places == [*(f"/?n={number}" for number in range(14, 21)), "/"]
        assert "All 20 are labelled" in ask("/")[2]
    good = {row["sample_id"]: number in (0, 1, 3, 5, 7, 9, 11) or number > 11 for number, row in enumerate(sample.rows)}
    assert read_labels(csv) == good
    assert calibrate(run.store.root, csv).points[-1].precision == 15 / 20
    assert [path.name for path in tmp_path.iterdir()] == ["labels.csv"]


def test_no_other_site_can_label(run: RunDir, tmp_path: Path) -> None:
    csv = tmp_path / "labels.csv"
    with labelling(run, csv) as ask:
        form, own = ask.form(), f"http://127.0.0.1:{ask.port}"
        refusals = {
            "another site": ask("/label", form, Origin="https://evil.example")[0],
            "a hidden origin": ask("/label", form, Origin="null")[0],
            "the site beside": ask("/label", form, Sec_Fetch_Site="same-site")[0],
            "typed in": ask("/label", form, Sec_Fetch_Site="none")[0],
            "another port": ask("/label", form, Origin="http://127.0.0.1:1")[0],
            "another name": ask("/label", form, Host="evil.example")[0],
            "no token": ask("/label", re.sub("token=[^&]+", "", form))[0],
            "a wrong token": ask("/label", re.sub("token=[^&]+", "token=é", form))[0],
            "no form": ask("/label", form, Content_Type="text/plain")[0],
            "too much": ask("/label", form + "&x=" + "x" * 10_000)[0],
            "no length": ask("/label", form, Content_Length="-1")[0],
            "another image": ask("/label", re.sub("sample_id=[^&]+", "sample_id=00", form))[0],
            "no answer": ask("/label", form.replace("good=1", "good=2"))[0],
            "another path": ask("/", form)[0],
            "not sent": ask(f"/label?{form}")[0],
        }
        assert refusals == dict.fromkeys(list(refusals)[:5], 403) | {
            "another name": 421,
            "no token": 403,
            "a wrong token": 403,
        } | dict.fromkeys(("no form", "too much", "no length", "another path"), 405) | {
            "another image": 400,
            "no answer": 400,
            "not sent": 404,
        }
        assert csv.read_text() == "sample_id,good\n"
        assert ask("/label", form, Origin=own, Sec_Fetch_Site="same-origin")[0] == 303
    with labelling(run, csv) as ask:
        assert ask("/label", form)[0] == 403, "a page of an earlier server"
    assert len(csv.read_text().splitlines()) == 2


def test_a_kill_loses_no_answer_and_two_do_not_write_one_file(run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    csv = tmp_path / "new" / "labels.csv"
    arguments = ["label", run.store.root, "--out", str(csv), "--count", "20", "--port", "0"]
    command = [sys.executable, "-m", "jobs.cli", *arguments]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    said = process.stdout.readline()
    ask = Client(int(re.search(r":(\d+)/ asks about 20 images, 0 have a label", said)[1]))  # type: ignore[index]
    for number in range(5):
        assert ask("/label", ask.form(good=number % 2))[0] == 303
    assert "another 'promptmill label' writes it" in refused(capsys, *arguments)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(read_labels(csv).values()) == [False, True, False, True, False]
    whole = csv.read_text()
    for torn, kept in (("abcd", whole), ("abcd,", whole), ("abcd,1", f"{whole}abcd,1\n")):
        csv.write_text(whole + torn)
        with Labels(csv) as labels:
            assert csv.read_text() == kept
            assert len(labels.good) == len(kept.splitlines()) - 1


def test_a_file_of_something_else_and_a_score_that_is_not_there_are_refused(run: RunDir, tmp_path: Path) -> None:
    for text in ("sample_id,prompt\na,b\n", "good\n", "\0\xff", "sample_id,good\nab,maybe\n"):
        (tmp_path / "l.csv").write_bytes(text.encode("latin-1"))
        with pytest.raises(ConfigError, match=r"l.csv.*(is no file of labels|good is 'maybe')"):
            Labels(tmp_path / "l.csv")
        assert (tmp_path / "l.csv").read_bytes() == text.encode("latin-1")
    with pytest.raises(ConfigError, match="--score looks: there is no such scorer; scorers are: clip"):
        draw_sample(run, score="looks", count=3, seed=0)
    with pytest.raises(ConfigError, match="no image has a clip_score and satisfies 'false'"):
        draw_sample(run, count=3, seed=0, where="false")


@needs_chromium
def test_a_browser_labels_by_keys_and_buttons_and_runs_nothing_of_a_prompt(run: RunDir, tmp_path: Path) -> None:
    csv = tmp_path / "labels.csv"
    with labelling(run, csv, count=6) as ask, browsing(tmp_path) as browser:
        for number, (width, dark, key) in enumerate(
            [(400, False, "y"), (400, True, "ArrowLeft"), (1600, False, "ArrowRight"), (1600, True, "n")]
        ):
            browser.show(f"http://127.0.0.1:{ask.port}/", width, height=800, dark=dark)
            assert browser.ask("document.title") == "label · run", "no script of a prompt changed it"
            assert browser.ask("document.documentElement.scrollWidth") <= width
            button = browser.ask("document.querySelector('button.right').getBoundingClientRect().bottom")
            assert button <= 800, "the answer can be given without scrolling"
            pixels = np.asarray(Image.open(browser.picture(tmp_path / f"{number}.png")).convert("RGB"))
            assert pixels.shape[:2] == (800, width)
            assert (pixels[2, 2].mean() < 60) == dark
            assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 200, "the picture is drawn"
            browser.press(key)
            browser.until(f"document.body.innerText.includes('{number + 1} labelled')")
        browser.press("s")
        browser.until("location.search === '?n=6'")
        browser.ask("document.querySelector('button.wrong').click()")
        browser.until("location.search === '?n=5'")
        assert not [text for text in browser.console if "script" in text]
    assert list(read_labels(csv).values()) == [True, False, True, False, False]
