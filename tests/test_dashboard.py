"""The local dashboard: its data, its one file in a real browser, and its server."""

import base64
import http.client
import json
import os
import re
import shutil
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright
from recorded_runs import ENV, write_run, write_table

from algd.experiments.cli import main
from algd.experiments.dashboard import thinned
from algd.experiments.dashboard_media import MediaSources, find_media
from algd.experiments.dashboard_server import DashboardServer, LiveRuns
from algd.experiments.run_data import Series

HOSTILE = "<script>document.title='taken'<\\script><img src=x onerror=alert(1)>"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def png(red: int = 200) -> bytes:
    """Return a picture of one pixel."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    head = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    pixel = zlib.compress(bytes([0, red, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixel) + chunk(b"IEND", b"")


def mp4(path: Path) -> None:
    import imageio.v2 as imageio

    path.parent.mkdir(parents=True, exist_ok=True)
    with imageio.get_writer(path, fps=10, codec="libx264", macro_block_size=16) as writer:
        for shade in range(8):
            writer.append_data(np.full((32, 32, 3), 30 * shade, dtype=np.uint8))


def write_runs(directory: Path, kinds: tuple[str, ...], seeds: int, rows: int = 40) -> None:
    """Write runs with long curves of 24 metrics."""
    generator = np.random.default_rng(0)
    for k, kind in enumerate(kinds):
        for seed in range(seeds):
            run_dir = write_run(directory / f"{kind}_{seed}", multiplier__kind=kind, seed=seed)
            noise = generator.normal(size=(rows, 24)).cumsum(axis=0)
            table = [
                {
                    "env_step": 1000 * row // rows,
                    "eval/return": 10.0 * k + seed + row / rows,
                    "eval/cost": 50.0 - 20.0 * k - seed,
                    "eval/violation_rate": 0.5,
                    "train/multiplier": row / rows,
                    **{f"loss/part_{n}": value for n, value in enumerate(noise[row].tolist())},
                }
                for row in range(rows)
            ]
            write_table(run_dir / "metrics.csv", table)


def data_of(page: Path) -> dict[str, Any]:
    text = page.read_text(encoding="utf-8")
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert match is not None
    return json.loads(match[1])


# ---- in a browser ----


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    assert executable is not None, "these tests need a Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable)
        yield browser
        browser.close()


class Visit:
    """A page with all that it complained about and asked the network for."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.page: Page = browser.new_page(viewport={"width": 1300, "height": 900})
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", self._note)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)
        self.page.wait_for_selector("#plot-plane .main-svg >> nth=0", timeout=120_000)

    def _note(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def names(self) -> list[str]:
        return self.page.locator("#overview tbody tr td:nth-child(2)").all_inner_texts()

    def traces(self, plot: str) -> list[str]:
        return self.page.evaluate(f"document.getElementById('{plot}').data.map((d) => d.name)")


def test_a_visitor_sorts_filters_hides_and_switches(tmp_path: Path, browser: Browser) -> None:
    write_runs(tmp_path / "runs", ("fixed", "scalar_dual"), 3)
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "metrics.csv").write_text("env_step\n")
    assert main(["dashboard", "runs", "--out", "page.html"]) == 0
    visit = Visit(browser, (tmp_path / "page.html").as_uri())
    page = visit.page
    fixed, dual = ([f"{kind}_{k}" for k in range(3)] for kind in ("fixed", "scalar_dual"))

    assert visit.names() == fixed + dual
    assert "broken: config.yaml is missing" in page.inner_text("#skipped")
    assert page.inner_text("#groups tbody tr:nth-child(1) td:nth-child(1)") == "multiplier=fixed"

    page.click("[data-sort=cost]")
    assert visit.names() == dual[::-1] + fixed[::-1]
    page.click("[data-sort=cost]")
    assert visit.names() == fixed + dual
    assert page.get_attribute("th[aria-sort]", "aria-sort") == "descending"

    page.fill("#filter", "multiplier.kind=scalar_dual return>10.9")
    assert visit.names() == dual
    page.fill("#filter", "kind=scalar_dual cost<29")
    assert visit.names() == ["scalar_dual_2"]
    assert page.inner_text("#count") == "1 of 6 runs"
    assert visit.traces("plot-return") == ["scalar_dual_2"]
    page.fill("#filter", "no such thing")
    assert visit.names() == []

    page.fill("#filter", "")
    page.uncheck("[aria-label='show fixed_1']")
    assert visit.traces("plot-return") == ["fixed_0", "fixed_2", *dual]
    page.select_option("#mode", "groups")
    assert len(visit.traces("plot-return")) == 6  # low, high, median of two groups
    assert visit.traces("plot-return")[0] == "multiplier=fixed (n = 2)"
    page.select_option("#metric", "loss/part_3")
    shown = page.evaluate("document.getElementById('plot-metric').layout.title.text")
    assert shown == "loss/part_3"

    shapes = page.evaluate("document.getElementById('plot-cost').layout.shapes.map((s) => s.y0)")
    assert shapes == [25]
    assert "Pareto front" in visit.traces("plot-plane")
    headings = page.locator("#differences thead th").all_inner_texts()
    assert headings[:2] == ["run", "multiplier.kind"]
    assert page.locator("#differences tbody tr").count() == 5

    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    after = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert {before, after} == {"rgb(255, 255, 255)", "rgb(20, 23, 26)"}
    assert visit.complaints == []
    assert all(url.startswith(("file:", "data:")) for url in visit.requests)
    page.close()


def test_the_page_follows_the_preferred_colour_scheme(tmp_path: Path, browser: Browser) -> None:
    write_run(tmp_path / "run")
    assert main(["dashboard", "run"]) == 0
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto((tmp_path / "dashboard.html").as_uri())
    assert page.get_attribute("html", "data-theme") == "dark"
    context.close()


def test_nothing_that_is_shown_can_run(tmp_path: Path, browser: Browser) -> None:
    run_dir = write_run(
        tmp_path / "runs" / HOSTILE.replace("/", ""),
        env__kwargs__note="</script><script>document.title='taken'</script>",
        env__kwargs__bold="<b>bold</b>",
    )
    write_run(tmp_path / "runs" / "other", env__kwargs__note="{{plotly}} {{data}}", seed=1)
    write_table(
        run_dir / "metrics.csv",
        [
            {
                "env_step": 0,
                "eval/return": 1.0,
                "eval/cost": 2.0,
                "<img src=x onerror=alert(2)>": 1,
            },
            {
                "env_step": 9,
                "eval/return": 1.0,
                "eval/cost": 2.0,
                "<img src=x onerror=alert(2)>": 1,
            },
        ],
    )
    (run_dir / "<img src=x onerror=alert(3)>.png").write_bytes(png())
    assert main(["dashboard", "runs", "--out", "page.html"]) == 0
    visit = Visit(browser, (tmp_path / "page.html").as_uri())
    visit.page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    visit.page.select_option("#metric", "<img src=x onerror=alert(2)>")
    visit.page.select_option("#mode", "groups")
    visit.page.click("#pictures button")
    visit.page.wait_for_timeout(200)
    assert visit.page.title() == "algd dashboard"
    assert visit.page.locator("img[src='x'], b, main script").count() == 0
    assert any(name.startswith("<script>document.title") for name in visit.names())
    plot_title = visit.page.locator("#plot-metric .gtitle").text_content()
    assert plot_title == "<img src=x onerror=alert(2)>"
    assert visit.complaints == []
    visit.page.close()


@pytest.mark.parametrize("videos", ["embed", "link"])
def test_pictures_and_videos_are_shown(tmp_path: Path, browser: Browser, videos: str) -> None:
    run_dir = write_run(tmp_path / "my runs" / "a#1")
    for step in (2, 10):
        (run_dir / f"energy_{step}.png").write_bytes(png(step))
    mp4(run_dir / "videos" / "final.mp4")
    assert main(["dashboard", "my runs", "--out", "page.html", "--videos", videos]) == 0
    visit = Visit(browser, (tmp_path / "page.html").as_uri())
    page = visit.page
    assert page.locator("#pictures figcaption").all_inner_texts() == ["a#1: energy_10.png"]
    page.locator("#pictures img").scroll_into_view_if_needed()
    width = page.evaluate(
        "async () => { const img = document.querySelector('#pictures img');"
        " await img.decode(); return img.naturalWidth; }"
    )
    assert width == 1
    source = page.get_attribute("#videos video", "src")
    assert source is not None
    video = (run_dir / "videos" / "final.mp4").read_bytes()
    if videos == "embed":
        assert base64.b64decode(source.removeprefix("data:video/mp4;base64,")) == video
    else:
        assert (tmp_path / unquote(source)).read_bytes() == video
    page.click("#pictures button")
    assert page.locator("#enlarged").is_visible()
    assert visit.complaints == []
    page.close()


def test_thirty_runs_are_written_and_painted_fast(tmp_path: Path, browser: Browser) -> None:
    kinds = (
        "fixed",
        "scalar_dual",
        "scalar_pid",
        "scalar_adrc",
        "statewise_dual",
        "statewise_alam",
    )
    write_runs(tmp_path / "runs", kinds, 5, rows=1_000)
    wall, started = time.perf_counter(), time.process_time()
    assert main(["dashboard", "runs", "--out", "page.html"]) == 0
    # Processor time: what other programs take of the machine is not the dashboard's.
    seconds, wall = time.process_time() - started, time.perf_counter() - wall
    assert seconds <= 10.0
    size = (tmp_path / "page.html").stat().st_size
    assert size <= 15_000_000
    visit = Visit(browser, (tmp_path / "page.html").as_uri())
    paints = visit.page.evaluate(
        "performance.getEntriesByName('first-contentful-paint').map((entry) => entry.startTime)"
    )
    print(
        f"30 runs of 1,000 rows: {seconds:.1f} s of processor, {wall:.1f} s of wall time, "
        f"{size / 1e6:.1f} MB, first paint after {paints[0] / 1000:.2f} s"
    )
    assert paints[0] <= 2_000
    assert visit.complaints == []
    visit.page.close()


# ---- data ----


def test_secrets_are_not_in_the_page(tmp_path: Path) -> None:
    write_run(tmp_path / "run", env__kwargs__api_key="topsecret", env__kwargs__x="hf_abcdefghij12")
    assert main(["dashboard", "run"]) == 0
    text = Path("dashboard.html").read_text()
    assert "topsecret" not in text
    assert "hf_abcdefghij12" not in text
    assert str(tmp_path) not in text
    assert data_of(Path("dashboard.html"))["runs"][0]["config"]["env.kwargs.api_key"] == "(hidden)"


def test_thinning_keeps_ends_spikes_and_dips() -> None:
    values = np.zeros(10_000)
    values[1234], values[4321] = 9.0, -9.0
    thin = thinned(Series(np.arange(10_000), values), 100)
    assert len(thin.steps) <= 100
    assert (thin.steps[0], thin.steps[-1]) == (0, 9_999)
    assert (thin.values.max(), thin.values.min()) == (9.0, -9.0)
    assert (np.diff(thin.steps) > 0).all()
    short = Series(np.arange(3), np.array([1.0, np.nan, 2.0]))
    assert thinned(short, 100) is short


def test_numbers_that_json_lacks_are_gaps_and_words(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", evaluations=[(0, 1.0, 99.0), (10, 2.0, 99.0)])
    (run_dir / "timing.csv").write_text("env_step,time/a\n0,nan\n5,inf\n9,0.123456789\n")
    assert main(["dashboard", "run"]) == 0
    (run,) = data_of(Path("dashboard.html"))["runs"]
    assert run["series"]["time/a"][1] == [None, None, 0.12346]
    assert run["summary"]["first_safe_step"] == "never"


def test_a_run_without_evaluations_is_shown_all_the_same(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "runs" / "young")
    (run_dir / "metrics.csv").write_text("env_step,loss/policy\n0,1.0\n")
    write_run(tmp_path / "runs" / "old", seed=1, train__batch_size=64)
    assert main(["dashboard", "runs"]) == 0
    old, young = data_of(Path("dashboard.html"))["runs"]
    assert (young["summary"], young["problem"]) == (None, "logs no eval/cost yet")
    assert old["summary"]["final_return"] == 1


def test_what_is_no_picture_or_lies_elsewhere_is_not_embedded(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run")
    (tmp_path / "private.png").write_bytes(png())
    (run_dir / "link.png").symlink_to(tmp_path / "private.png")
    (run_dir / "text.png").write_text("root:x:0:0")
    (run_dir / "wandb").mkdir()
    (run_dir / "wandb" / "copy.png").write_bytes(png())
    (run_dir / "good.png").write_bytes(png())
    (run_dir / "bad.mp4").write_bytes(b"not a video at all")
    media = find_media(run_dir)
    assert [file.name for file in media.pictures] == ["good.png"]
    assert media.videos == []


def test_the_newest_of_wandbs_pictures_is_shown_under_its_name(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run")
    for process, step in (
        ("20260102_101500-ab1", 9),
        ("20260102_101500-ab1", 30),
        ("20260103_0-ab", 7),
    ):
        name = f"offline-run-{process}/files/media/images/pictures/energy_{step}_{step:020x}.png"
        path = run_dir / "wandb" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(step))
    (path.parent / "multiplier_map_3_0123456789abcdef0123.png").write_bytes(png())
    pictures = find_media(run_dir).pictures
    assert [file.name for file in pictures] == ["pictures/energy", "pictures/multiplier_map"]
    assert pictures[0].path.read_bytes() == png(7)  # of the process that began last


def test_pictures_beyond_the_budget_are_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("algd.experiments.dashboard_media._PICTURE_BUDGET", len(png()))
    run_dir = write_run(tmp_path / "run %")
    for name in ("a.png", "b c.png"):
        (run_dir / name).write_bytes(png())
    sources = MediaSources(tmp_path / "pages")
    first, second = (sources(file) for file in find_media(run_dir).pictures)
    assert first == f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    assert (second, sources.linked) == ("../run%20%25/b%20c.png", 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which runs? give run directories"),
        (["absent"], "absent does not exist"),
        (["empty"], "no run; skipped empty: holds no run"),
        (["run", "--out", "empty"], "--out: empty is a directory; a file is wanted"),
        (["run", "--serve", "--out", "x"], "--serve takes neither --out nor --videos nor --wandb"),
        (["run", "--serve", "--videos", "none"], "takes neither --out nor --videos nor --wandb"),
        (["run", "--port", "9"], "--port goes with --serve"),
        (["run", "--port", "70000"], "must be in [0, 65535], got '70000'"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "run")
    assert main(["dashboard", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


# ---- the server ----


@pytest.fixture
def server(tmp_path: Path) -> Iterator[DashboardServer]:
    write_run(tmp_path / "runs" / "one")
    (tmp_path / "runs" / "one" / "map.png").write_bytes(png())
    with DashboardServer(LiveRuns([tmp_path / "runs"]), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(
    server: DashboardServer, path: str, host: str | None = None, **headers: str
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    host = f"127.0.0.1:{server.server_port}" if host is None else host
    connection.request("GET", path, headers={"Host": host, **headers})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


def test_the_server_listens_on_the_loopback_interface_alone(server: DashboardServer) -> None:
    assert server.socket.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize("path", ["/", "/data.json", "/media/0"])
def test_other_hosts_are_refused(server: DashboardServer, path: str) -> None:
    port = server.server_port
    assert get(server, "/")[0] == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"localhost:{port + 1}", ""):
        status, body = get(server, path, host)
        assert (status, b"one" in body) == (403, False)
    assert get(server, path, f"localhost:{port}")[0] == 200


def test_only_named_media_are_served(server: DashboardServer) -> None:
    assert get(server, "/media/0")[0] == 404  # named by no page yet
    assert get(server, "/")[0] == 200
    assert get(server, "/media/0") == (200, png())
    for path in ("/media/1", "/media/../media/0", "/../../etc/passwd", "/runs/one/config.yaml"):
        assert get(server, path)[0] == 404


def test_a_player_may_ask_for_a_part(server: DashboardServer) -> None:
    get(server, "/")
    size = len(png())
    assert get(server, "/media/0", Range="bytes=2-5") == (206, png()[2:6])
    assert get(server, "/media/0", Range="bytes=60-") == (206, png()[60:])
    assert get(server, "/media/0", Range="bytes=-4") == (206, png()[-4:])
    assert get(server, "/media/0", Range=f"bytes={size}-") == (416, b"")


def test_data_are_sent_again_only_when_a_run_has_moved(
    server: DashboardServer, tmp_path: Path
) -> None:
    data = json.loads(get(server, "/data.json")[1])
    assert get(server, f"/data.json?since={data['version']}") == (204, b"")
    with (tmp_path / "runs" / "one" / "metrics.csv").open("a") as file:
        file.write("2000,5.0,1.0,0.0\n")
    status, body = get(server, f"/data.json?since={data['version']}")
    assert (status, json.loads(body)["runs"][0]["last"]) == (200, 2000)


def test_the_page_follows_runs_that_go_on(
    server: DashboardServer,
    tmp_path: Path,
    browser: Browser,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("algd.experiments.dashboard_server.SECONDS_BETWEEN_READS", 0.05)
    visit = Visit(browser, server.url)
    assert visit.page.inner_text("#live") == "live"
    visit.page.fill("#filter", "bandit")
    assert visit.names() == ["one"]
    write_run(tmp_path / "runs" / "two", seed=1)
    visit.page.locator("#overview tbody tr").nth(1).wait_for()
    assert visit.names() == ["one", "two"]
    assert visit.page.input_value("#filter") == "bandit"
    assert visit.complaints == []
    visit.page.close()


def test_a_taken_port_is_one_line(
    server: DashboardServer, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["dashboard", "runs", "--serve", "--port", str(server.server_port)]
    assert main(arguments) == 2
    assert f"cannot listen on 127.0.0.1:{server.server_port}" in capsys.readouterr().err


def test_files_that_change_change_the_version(tmp_path: Path) -> None:
    from algd.experiments.dashboard import version_of

    run_dir = write_run(tmp_path / "run")
    first = version_of([run_dir])
    assert version_of([run_dir]) == first
    os.utime(run_dir / "metrics.csv", ns=(1, 1))
    assert version_of([run_dir]) != first


def test_environment_of_the_runs_is_in_the_page(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    assert main(["dashboard", "run"]) == 0
    assert data_of(Path("dashboard.html"))["runs"][0]["env"] == ENV
