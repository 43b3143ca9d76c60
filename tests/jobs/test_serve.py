"""``serve`` shows what the tables say, live, to this machine's browser alone; no text of a prompt or a condition does anything."""

import hashlib
import http.client
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import rows as rows_module
from jobs.embeddings import Encoder, file_of, write_encoder, write_features
from jobs.filter import filter_run
from jobs.query import query
from jobs.report.facts import gather
from jobs.rows import Rows, WatchedRun
from jobs.run_dir import RunDir
from jobs.serve.server import Server
from jobs.serve.site import Site
from jobs.serve.view import IMAGES_PER_PAGE
from pipeline.store import open_store
from schemas import layout
from schemas.records import Prompt
from tests import runs
from tests.conftest import REPOSITORY
from tests.jobs.test_bad_input import refused
from tests.jobs.test_query import PROBES
from tests.jobs.test_report import HOSTILE, INERT
from tests.runs import commit, digest_of_folder, finished_run, make_config, make_outcome, plan_run
from tests.s3 import BUCKET, s3_server

ONE_HASH = "00000000000000ff"
PAGES = INERT | {"nav", "a", "form", "label", "input", "select", "option", "button", "code", "dl", "dt", "dd", "br"}


class Page(HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, attribute: str) -> list[str]:
        """Of all elements that have it."""
        return [value for _, attributes in self.elements if (value := attributes.get(attribute)) is not None]


class Reply:
    """Status, headers and body of a reply."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def page(self) -> Page:
        return Page(self.body.decode())

    @property
    def drawn(self) -> list[str]:
        """Sample ids of a gallery, in order."""
        return [re.split("[/?]", to)[2] for to in self.page.values("href") if to.startswith("/draws/")]


class Client:
    """Asks one server."""

    def __init__(self, server: Server) -> None:
        self.server, self.port = server, server.server_port

    def __call__(self, path: str, *, method: str = "GET", headers: dict[str, str] | None = None, **query: object) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, f"{path}?{urlencode(query)}" if query else path, headers=headers or {})
            return Reply(connection.getresponse())
        finally:
            connection.close()


@contextmanager
def serving(path: str | Path, *, timeout_seconds: float = 15.0) -> Iterator[Client]:
    rows = Rows(WatchedRun.open(path), timeout_seconds=timeout_seconds, look_seconds=0)
    with Server(Site(rows), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield Client(server)
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return finished_run(tmp_path_factory.mktemp("serve") / "run", prompts=60)


@pytest.fixture(scope="module")
def ask(run: RunDir) -> Iterator[Client]:
    with serving(run.store.root) as client:
        yield client


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    def prompts(count: int) -> Sequence[Prompt]:
        texts = [HOSTILE[number % len(HOSTILE)] for number in range(count)]
        return [Prompt(id=f"p{n}", text=text, label=text, negative=text, tags={text: text}) for n, text in enumerate(texts)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "make_prompts", prompts)
        patch.setattr(runs, "make_outcome", lambda *of: replace(make_outcome(*of), phash=ONE_HASH))  # all look alike
        return finished_run(tmp_path_factory.mktemp("hostile") / "run", prompts=12)


def rows_of(run: RunDir, sql: str) -> list[dict]:
    return query([run.store.root], sql).to_pylist()


def test_the_overview_counts_what_the_tables_hold_and_leads_there(run: RunDir, ask: Client) -> None:
    page = ask("/").page
    for row in rows_of(run, "select status, count(*) n from metadata group by 1"):
        assert f"{row['n']}{row['status']}" in page.text
    leading = [to for to in page.values("href") if to.startswith("/gallery?")]
    classes = [to for to in leading if to.startswith("/gallery?where=label")]
    assert len(classes) == 2
    assert ask(classes[0]).drawn == [row["sample_id"] for row in rows_of(run, in_plan_order("label = 'class0'"))][:IMAGES_PER_PAGE]
    for to in leading:
        assert ask(to).status == 200, to


def in_plan_order(where: str) -> str:
    return f"select sample_id from metadata where {where} order by shard_id, prompt_id, draw_index"


def test_pages_show_each_draw_once_in_the_order_asked_for(run: RunDir, ask: Client) -> None:
    replies = [ask("/gallery", order="seed", down=1, page=page) for page in (1, 2, 3)]
    found = [sample_id for reply in replies for sample_id in reply.drawn]
    assert found == [row["sample_id"] for row in rows_of(run, "select sample_id from metadata order by seed desc")]
    assert "97–120 of 120" in replies[2].page.text
    assert ask("/gallery", order="seed", down=1, page=99).drawn == replies[2].drawn, "there is no later page"
    assert ask("/gallery", page="-1").drawn == ask("/gallery", page="x").drawn == ask("/gallery").drawn


@pytest.mark.parametrize("down", ["", "1"])
def test_what_has_no_score_comes_last(run: RunDir, ask: Client, down: str) -> None:
    ties = "shard_id, prompt_id, draw_index"
    sql = f"select sample_id from metadata where isfinite(clip_score) order by clip_score {'desc' if down else ''}, {ties}"
    told = [row["sample_id"] for row in rows_of(run, sql)]
    last = ask("/gallery", order="clip_score", down=down, page=3).drawn
    assert ask("/gallery", order="clip_score", down=down).drawn == told[:IMAGES_PER_PAGE]
    assert len(last) == 24
    assert last[:20] == told[96:]


def test_a_condition_chooses_and_a_tag_orders(run: RunDir, ask: Client) -> None:
    reply = ask("/gallery", where="tags['number']::int between 10 and 12 -- mine", order="tags.number", down=1)
    ids = [
        row["sample_id"] for row in rows_of(run, "from metadata where prompt_id in ('p10', 'p11', 'p12') order by prompt_id desc, shard_id")
    ]
    assert reply.drawn == ids
    assert "tags.number: 12" in reply.page.text
    assert ask("/gallery", where="false").page.text.count("nothing satisfies it") == 1


def test_a_wrong_condition_gives_its_one_line_and_stays_to_be_mended(ask: Client) -> None:
    reply = ask("/gallery", where='clip_scor < ".3')
    assert reply.status == 400
    assert 'clip_scor < ".3' in reply.page.values("value")
    wrongs: list[tuple[dict[str, Any], str]] = [
        ({"where": "clip_scor < .3"}, "clip_score"),
        ({"order": "nothing"}, "there is no such column"),
        ({"where": "1; select 2"}, ""),
    ]
    for wrong, said in wrongs:
        reply = ask("/gallery", **wrong)
        assert reply.status == 400
        assert said in alert(reply)


def alert(reply: Reply) -> str:
    found = re.search(r'role="alert">(.*?)</div>', reply.body.decode(), re.DOTALL)
    assert found
    assert "\n" not in found[1], "one line"
    return Page(found[1]).text


def test_no_condition_writes_or_reads_elsewhere(run: RunDir, ask: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret.txt").write_text("the secret\n")
    monkeypatch.setenv("PROMPTMILL_SECRET", "the secret")
    before = digest_of_folder(Path(run.store.root))
    probes = [probe.replace("RUN", run.store.root).replace("OUTSIDE", str(tmp_path)) for probe in PROBES]
    shapes = ["{}", "exists ({})", "true) union all ({}", "true)\n; {} --", "sample_id in (select x from ({}) t(x))"]
    hostile = [shape.format(probe) for probe in probes for shape in shapes[:2]] + [
        shape.format(probe) for probe in probes[-22:] for shape in shapes
    ]
    hostile += [
        "(select content from read_text('/etc/passwd')) is not null",
        f"exists (from read_parquet('{run.store.root}/metadata/00000.parquet'))",
        "exists (from images)",
        "true) union all select 1 from read_text('/etc/passwd') where (true",
        "getenv('PROMPTMILL_SECRET') is not null",
    ]
    for where in hostile:
        reply = ask("/gallery", where=where)
        assert reply.status == 400, where
        assert "the secret" not in alert(reply)
    assert digest_of_folder(Path(run.store.root)) == before
    assert os.listdir(tmp_path) == ["secret.txt"]


def test_a_condition_that_breaks_out_of_its_brackets_gets_no_more_than_a_page(ask: Client) -> None:
    for where in ("true) union all select rowid from metadata where (true", "true) union all select 'x' where (true", "true) limit 9 --"):
        reply = ask("/gallery", where=where)
        assert reply.status == 400 or len(reply.drawn) <= IMAGES_PER_PAGE
        assert ask("/gallery").status == 200


def test_a_condition_that_takes_too_long_is_stopped_and_others_are_answered_meanwhile(run: RunDir) -> None:
    with serving(run.store.root, timeout_seconds=2) as ask:
        slow: list[Reply] = []
        where = "(select count(*) from range(1000000000) a, range(1000000000) b) > 0"
        thread = threading.Thread(target=lambda: slow.append(ask("/gallery", where=where)))
        started = time.monotonic()
        thread.start()
        assert ask("/gallery").status == 200
        thread.join()
        assert time.monotonic() - started < 20
        assert "took longer than 2 s" in alert(slow[0])


def test_a_draw_is_shown_with_all_that_is_known_of_it(run: RunDir, ask: Client) -> None:
    row = rows_of(run, "from metadata where isfinite(clip_score) and status = 'rejected' limit 1 offset 5")[0]
    page = ask(f"/draws/{row['sample_id']}").page
    for name in ("prompt", "seed", "steps", "guidance_scale", "scheduler", "image_sha256", "model_revision", "batch_shape", "clip_version"):
        assert str(row[name]).removesuffix(".0") in page.text, name
    assert f"{row['clip_score']:.6g}clip" in page.text
    assert "clip below min" in page.text
    assert f"promptmill verify {run.store.root} --sample {row['sample_id']}" in page.text
    assert f"/images/{row['shard_id']}/{row['sample_id']}" in page.values("src")
    assert "/gallery?" + urlencode({"where": f"prompt_id = '{row['prompt_id']}'"}) in page.values("href")


def test_a_failed_draw_says_why_and_has_no_image(run: RunDir, ask: Client) -> None:
    row = rows_of(run, "from failed limit 1")[0]
    page = ask(f"/draws/{row['sample_id']}").page
    assert "out_of_memory: 3 GB\nwere needed" in page.text
    assert "--retry-failed" in page.text
    assert not any(row["sample_id"] in source for source in page.values("src"))
    assert ask("/gallery", where="status = 'failed'").drawn == [
        one["sample_id"] for one in rows_of(run, in_plan_order("status = 'failed'"))
    ]
    assert ask(f"/images/{row['shard_id']}/{row['sample_id']}").status == 404


def test_from_a_draw_one_goes_to_the_next_of_the_view(ask: Client) -> None:
    reply = ask("/gallery", where="label = 'class1'", order="clip_score", down=1)
    ids = reply.drawn
    seen, to = [], next(to for to in reply.page.values("href") if to.startswith("/draws/"))
    for _ in range(4):
        seen.append(to.split("?")[0].removeprefix("/draws/"))
        reply = ask(to)
        to = [one for one in reply.page.values("href") if "&n=" in one][-1]
    assert seen == ids[:4]
    assert "4 of 60" in reply.page.text
    assert "all images" in ask(f"/draws/{ids[0]}?n=7").page.text, "it does not stand there"


def test_images_come_as_they_were_made(run: RunDir, ask: Client) -> None:
    for name in ("00000", "00007"):
        for row in pq.read_table(Path(run.store.root, f"images/{name}.parquet")).to_pylist():
            for kind in ("images", "thumbnails"):
                reply = ask(f"/{kind}/{int(name)}/{row['sample_id']}")
                assert reply.body == row["image"]["bytes"]
                assert reply.headers["content-type"] == "image/webp"


def test_large_images_are_small_in_the_gallery_and_whole_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "SIZE_PX", 800)
    made = finished_run(tmp_path / "run", prompts=1, config=make_config(image_format="png"))
    row = rows_of(made, "from metadata limit 1")[0]
    with serving(made.store.root) as ask:
        small, whole = (ask(f"/{kind}/0/{row['sample_id']}") for kind in ("thumbnails", "images"))
    assert Image.open(io.BytesIO(small.body)).size == (384, 384)
    assert (small.headers["content-type"], whole.headers["content-type"]) == ("image/webp", "image/png")
    assert Image.open(io.BytesIO(whole.body)).size == (800, 800)


def test_an_input_image_is_shown_as_a_picture_whatever_its_bytes(tmp_path: Path) -> None:
    made = finished_run(tmp_path / "run")
    picture = io.BytesIO()
    Image.new("RGBA", (1000, 500), "red").save(picture, "png")
    inputs = {data: hashlib.sha256(data).hexdigest() for data in (picture.getvalue(), b"<svg onload='alert(1)'/>", b"GIF89a<script>")}
    for data, sha256 in inputs.items():
        made.store.put(layout.input_file(sha256), data)
    good, *others = inputs.values()
    with serving(made.store.root) as ask:
        reply = ask(f"/inputs/{good}")
        assert reply.headers["content-type"] == "image/webp"
        shown = Image.open(io.BytesIO(reply.body))
        assert (shown.format, shown.size) == ("WEBP", (768, 384))
        assert [ask(f"/inputs/{one}").status for one in others] == [404, 404]


def test_a_table_that_does_not_fit_is_told_in_one_line(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert "needs more than 1MB of memory" in refused(capsys, "serve", run.store.root, "--port", "0", "--memory", "1MB")


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/draws/00000000000000000000",
        "/draws/' or true --",
        "/images/0/00000000000000000000",
        "/images/99999/00000000000000000000",
        "/images/0/../../job.yaml",
        "/../../../../etc/passwd",
        "/images/0/%2e%2e%2fjob.yaml",
        "/inputs/" + "0" * 64,
        "/style.css",
        "/<script>alert(1)</script>",
    ],
)
def test_what_is_not_there_is_not_found(ask: Client, path: str) -> None:
    reply = ask(quote(path, safe="/%"))
    assert reply.status == 404
    assert {tag for tag, _ in reply.page.elements} <= PAGES


@pytest.mark.parametrize(
    "path", ["/", "/alike", "/gallery", "/gallery?order=label&down=1", "/gallery?where=<script>alert(1)</script>", "DRAW", "FAILED"]
)
def test_nothing_of_a_prompt_label_or_condition_becomes_markup(hostile: RunDir, path: str) -> None:
    sample_id = rows_of(hostile, "from metadata where prompt like '%onerror%' limit 1")[0]["sample_id"]
    failed = rows_of(hostile, "from failed limit 1")[0]["sample_id"]
    with serving(hostile.store.root) as ask:
        reply = ask(quote({"DRAW": f"/draws/{sample_id}", "FAILED": f"/draws/{failed}"}.get(path, path), safe="/?=&"))
        page = reply.page
        assert {tag for tag, _ in page.elements} <= PAGES
        assert sum(tag == "style" for tag, _ in page.elements) == 1
        for _, attributes in page.elements:
            assert not any(name.startswith("on") for name in attributes)
        assert all(to.startswith("/") and not to.startswith("//") for name in ("href", "action") for to in page.values(name))
        assert all(re.fullmatch("/(images|thumbnails)/[0-9]+/[0-9a-f]{20}", source) for source in page.values("src"))
        assert "\u202e" not in reply.body.decode()
        if "where" not in path:
            assert any(text in page.text for text in (*HOSTILE[:4], "\\u202etxt.exe 🌟\nsecond line")), "shown as it is, as text"
        for to in page.values("href"):
            assert ask(to).status == 200, to


def test_only_this_machine_under_its_own_names_may_ask(ask: Client) -> None:
    assert ask.server.server_address[0] == "127.0.0.1"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", ask.port), timeout=5)
    for host in (
        "evil.example",
        f"evil.example:{ask.port}",
        "127.0.0.1.evil.example",
        "localhost@evil.example",
        "",
        "[::1]",
        "127.0.0.1:x",
    ):
        reply = ask("/", headers={"Host": host})
        assert reply.status == 421, host
        assert b"promptmill" not in reply.body
        assert b"images" not in reply.body
    for host in ("localhost", "LOCALHOST:1234", f"127.0.0.1:{ask.port}"):
        assert ask("/", headers={"Host": host}).status == 200
    with socket.create_connection(("127.0.0.1", ask.port)) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 421")
    for site in ("cross-site", "same-site"):
        assert ask("/gallery", headers={"Sec-Fetch-Site": site}).status == 403
    assert ask("/gallery", headers={"Sec-Fetch-Site": "same-origin"}).status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE"])
def test_nothing_but_get_is_answered(ask: Client, method: str) -> None:
    reply = ask("/", method=method)
    assert (reply.status, reply.headers["allow"]) == (405, "GET")


def test_every_reply_forbids_scripts_frames_and_use_by_others(run: RunDir, ask: Client) -> None:
    row = rows_of(run, "from metadata where status = 'accepted' limit 1")[0]
    image = f"/images/{row['shard_id']}/{row['sample_id']}"
    for reply in (
        ask("/"),
        ask("/gallery"),
        ask("/nothing"),
        ask(image),
        ask("/", method="POST"),
        ask("/", headers={"Host": "evil.example"}),
    ):
        policy = reply.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; ")
        assert "script-src" not in policy
        assert "frame-ancestors 'none'" in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in reply.headers
    assert ask("/").headers["cache-control"] == "no-store"


def test_a_run_that_goes_on_is_followed(tmp_path: Path) -> None:
    going = plan_run(tmp_path / "run", prompts=40)
    with serving(tmp_path / "run") as ask:
        assert "0of 80 draws made" in ask("/").page.text
        assert ask("/").headers["refresh"], "it is shown anew by itself"
        assert ask("/gallery").drawn == []
        statuses: list[int] = []
        stop = threading.Event()

        def read() -> None:
            while not stop.is_set():
                statuses.extend(ask(path).status for path in ("/", "/gallery?order=clip_score", "/gallery?page=2"))

        reader = threading.Thread(target=read)
        reader.start()
        for shard_id in reversed(range(20)):
            commit(going, shard_id)
        stop.set()
        reader.join()
        assert set(statuses) == {200}
        ids = [row["sample_id"] for row in rows_of(going, in_plan_order("true"))]
        assert ask("/gallery").drawn + ask("/gallery", page=2).drawn == ids
        assert "80of 80 draws made" in ask("/").page.text
        assert ask("/").headers["refresh"] is None


def test_draws_that_are_made_again_and_verdicts_of_other_rules_are_taken_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = finished_run(tmp_path / "run")
    failed = rows_of(made, "from failed")[0]
    with serving(tmp_path / "run") as ask:
        assert len(ask("/gallery", where="status = 'failed'").drawn) == 2
        monkeypatch.setattr(runs, "FAILING", -1)
        shard = made.read_shard(failed["shard_id"])
        commit(made, shard.shard_id, outcomes=[make_outcome(draw, made.job.config) for draw in shard.draws])
        assert ask("/gallery", where="status = 'failed'").drawn == []
        assert ask(f"/images/{shard.shard_id}/{failed['sample_id']}").status == 200
        filter_run(made.store.root, ['filter.rules=[{"score": "clip", "min": 0.7}]'])
        accepted = [row["sample_id"] for row in rows_of(made, in_plan_order("status = 'accepted'"))]
        assert ask("/gallery", where="status = 'accepted'").drawn == accepted
        assert len(ask("/gallery").drawn) == 16, "each once"
        assert "limit 0.7" in ask("/").page.text


def test_a_run_of_many_shards_is_shown_before_all_of_them_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = finished_run(tmp_path / "run")
    monkeypatch.setattr(rows_module, "SHARDS_AT_A_TIME", 1)
    rows = Rows(WatchedRun.open(made.store.root), seconds_at_a_time=0)
    assert rows.behind == 3
    site = Site(rows)
    assert "2 shards are not read yet" in site.answer("/", "").body.decode(), "one more was, since nobody else was at it"
    rows.keep_up()
    assert rows.behind == 0
    page = site.answer("/gallery", "").body.decode()
    assert "not read yet" not in page
    assert len(set(re.findall("/draws/([0-9a-f]{20})", page))) == 16


def test_images_that_look_alike_stand_together_as_in_the_report_until_the_run_changes(tmp_path: Path) -> None:
    made = plan_run(tmp_path / "run")
    shards = [made.read_shard(shard_id).draws for shard_id in range(4)]
    with serving(tmp_path / "run") as ask:
        assert "There are no images yet" in ask("/alike").page.text
        for shard_id, draws in enumerate(shards):
            commit(made, shard_id, outcomes=[replace(make_outcome(draw, made.job.config), phash=ONE_HASH) for draw in draws])
        reply, ((group, _),) = ask("/alike"), gather(made).alike[0].groups
        assert reply.drawn == list(group.sample_ids)
        assert "13 of 14 images have a better one beside them" in reply.page.text
        assert f"14 images, {len(reply.drawn)} of them shown" in reply.page.text
        assert reply.page.text.count("the same hash") == len(reply.drawn) - 1
        (beside,) = [to for to in reply.page.values("href") if to.startswith("/gallery?")]
        assert set(ask(beside).drawn) == set(reply.drawn)
        assert ask("/alike").body == reply.body
        write_encoder(made.store, Encoder("v", 2))
        for marker, draws in zip(made.markers(), shards, strict=True):
            ids = [draw.sample_id for draw in draws]
            write_features(made.store, file_of(marker, "v"), ids, np.array([[1, 0] if one == reply.drawn[3] else [0, 1] for one in ids]))
        assert "12 of 14 images have a better one beside them" in ask("/alike").page.text
        filter_run(made.store.root, ['filter.rules=[{"phash_distance": 0, "within": "prompt"}]'])
        assert "equal hashes, within each prompt: 7 of 14" in ask("/alike").page.text


def test_a_shard_that_loses_its_marker_is_gone(tmp_path: Path) -> None:
    made = finished_run(tmp_path / "run")
    gone = made.read_shard(1).draws[0].sample_id
    with serving(tmp_path / "run") as ask:
        assert ask(f"/draws/{gone}").status == 200
        made.store.delete(layout.done_file(1))
        assert ask(f"/draws/{gone}").status == 404
        assert ask(f"/images/1/{gone}").status == 404
        assert len(ask("/gallery").drawn) == 12


def test_damage_is_told_on_the_page_and_the_rest_goes_on(tmp_path: Path) -> None:
    made = finished_run(tmp_path / "run")
    images = Path(made.store.root, layout.images_file(0))
    first, *_ = (row["sample_id"] for row in rows_of(made, in_plan_order("shard_id = 0")))
    data = bytearray(images.read_bytes())
    encoded = pq.read_table(images)["image"][0].as_py()["bytes"]
    data[data.index(encoded) + len(encoded) // 2] ^= 1
    images.write_bytes(data)
    with serving(tmp_path / "run") as ask:
        reply = ask(f"/images/0/{first}")
        assert reply.status == 500
        assert "its sha256 differs; 'promptmill verify" in reply.page.text
        assert len(ask("/gallery").drawn) == 16
        Path(made.store.root, layout.metadata_file(1)).write_bytes(b"no parquet")
        marker = Path(made.store.root, layout.done_file(1))
        marker.write_text(marker.read_text().replace('"worker": "', '"worker": "an'))
        reply = ask("/gallery")
        assert reply.status == 500
        assert "metadata/00001.parquet: cannot be read" in reply.page.text


def test_a_run_without_scores_or_images_is_shown(tmp_path: Path) -> None:
    unscored = finished_run(tmp_path / "unscored", config=make_config(scorers=()))
    with serving(unscored.store.root) as ask:
        assert ask("/").status == 200
        assert len(ids := ask("/gallery").drawn) == 16
        assert ask(f"/draws/{ids[0]}").status == 200
    with serving(plan_run(tmp_path / "planned").store.root) as ask:
        assert ask("/gallery").status == 200


def test_a_run_in_an_object_store_is_shown_as_one_on_a_disk(tmp_path: Path) -> None:
    local = finished_run(tmp_path / "run")
    with s3_server():
        url = f"s3://{BUCKET}/serve/run"
        store = open_store(url)
        for path in Path(local.store.root).rglob("*"):
            name = str(path.relative_to(local.store.root))
            if path.is_file() and name != layout.EVENTS:
                store.put(name, path.read_bytes())
        with serving(url) as there, serving(local.store.root) as here:
            for path in ("/gallery", "/gallery?order=clip_score&down=1", *(f"/thumbnails/1/{one}" for one in here("/gallery").drawn[4:8])):
                assert there(path).body == here(path).body, path
            assert "14of 16" not in there("/").page.text
            assert "16of 16 draws made" in there("/").page.text


def start(run: RunDir) -> tuple[subprocess.Popen[str], Client]:
    """The command itself, with Ctrl-C as a terminal gives it."""

    def interruptible() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    command = [sys.executable, "-m", "jobs.cli", "serve", run.store.root, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY, preexec_fn=interruptible)
    assert process.stdout is not None
    found = re.match(r"http://127\.0\.0\.1:(\d+)/ shows ", process.stdout.readline())
    assert found
    client = Client.__new__(Client)
    client.port = int(found[1])
    return process, client


def ask_for_long(ask: Client) -> None:
    """Until the server ends."""
    with suppress(OSError, http.client.HTTPException):
        assert ask("/gallery", where="(select count(*) from range(1000000000) a, range(1000000000) b) > 0").status == 400


@pytest.mark.parametrize("busy", [False, True])
def test_ctrl_c_ends_it_at_once(run: RunDir, busy: bool) -> None:
    process, ask = start(run)
    assert ask("/gallery").status == 200
    asking = threading.Thread(target=ask_for_long, args=[ask] if busy else [])
    if busy:
        asking.start()
        time.sleep(1)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 0
    assert said == ""
    assert time.monotonic() - started < 10
    if busy:
        asking.join(timeout=30)
        assert not asking.is_alive()


def test_a_port_that_is_taken_is_told_in_one_line(run: RunDir, ask: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"--port {ask.port}: cannot be used" in refused(capsys, "serve", run.store.root, "--port", str(ask.port))


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium")
@pytest.mark.parametrize("width", [500, 1600])  # headless Chromium has no narrower window
@pytest.mark.parametrize("path", ["/", "/gallery?order=clip_score&down=1", "DRAW"])
def test_a_browser_shows_it_and_runs_nothing(hostile: RunDir, tmp_path: Path, width: int, path: str) -> None:
    sample_id = rows_of(hostile, "from metadata where prompt like '%script%' and status = 'accepted' limit 1")[0]["sample_id"]
    with serving(hostile.store.root) as ask:
        url = f"http://127.0.0.1:{ask.port}{path.replace('DRAW', f'/draws/{sample_id}')}"
        fixed = [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path}/browser",
            f"--window-size={width},1200",
        ]

        def chromium(*options: str) -> str:
            return subprocess.run([*fixed, *options, url], capture_output=True, text=True, check=True, timeout=60).stdout

        titles = re.findall("<title>(.*?)</title>", chromium("--dump-dom"))
        assert titles == [{"/": "run", "DRAW": f"{sample_id} · run"}.get(path, "images · run")], "no script changed it"
        chromium(f"--screenshot={tmp_path}/page.png")
    pixels = np.asarray(Image.open(tmp_path / "page.png").convert("RGB"))
    assert pixels.shape[:2] == (1200, width)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 200, "pictures or diagrams are drawn"
