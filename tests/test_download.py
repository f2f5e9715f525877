"""Downloads from a real server on this machine: faults of servers and of connections."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3

from polybn.lenet import download
from polybn.lenet.download import Wanted, fetch, fill
from polybn.lenet.errors import DataIntegrityError

CONTENT = bytes(range(256)) * 700
FILE = Wanted("file.gz", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
Answer = Callable[[BaseHTTPRequestHandler], None]


def serve(content: bytes = CONTENT, *, status: int = 200, length: int | None = None, **headers: str) -> Answer:
    """Answer with this content, under a header that claims ``length``, or none for -1."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        if length != -1:
            handler.send_header("Content-Length", str(len(content) if length is None else length))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    with contextlib.suppress(ConnectionError):
        while True:
            handler.wfile.write(CONTENT)


def silent(handler: BaseHTTPRequestHandler) -> None:
    handler.rfile.read(1)  # returns when the client has hung up


class Server:
    """A server that gives its answers in turn, and then repeats the last one."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                (server.answers.pop(0) if len(server.answers) > 1 else server.answers[0])(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


Start = Callable[..., Server]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start servers, and allow downloads from all of them."""
    servers: list[Server] = []

    def start(*answers: Answer) -> Server:
        servers.append(Server(*answers))
        monkeypatch.setattr(download, "ALLOWED", "http://127.0.0.1:")
        return servers[-1]

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield start
    for server in servers:
        server.close()


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record pauses without making them."""
    made: list[float] = []
    monkeypatch.setattr("time.sleep", made.append)
    return made


def get(server: Server, file: Wanted = FILE) -> bytes:
    return fetch(server.url + file.name, file.size, file.sha256)


def refused(server: Server, words: str) -> None:
    with pytest.raises(DataIntegrityError) as caught:
        get(server)
    assert str(caught.value).startswith(f"{server.url}{FILE.name} must ")
    assert words in str(caught.value)


def test_a_good_file(start: Start, pauses: list[float]) -> None:
    server = start(serve())
    assert get(server) == CONTENT
    assert (server.asked, pauses) == (["/file.gz"], [])


SHORT = f"serve {len(CONTENT):,} bytes; got "


@pytest.mark.parametrize(
    "stumble",
    [
        pytest.param(serve(b"", status=500), id="500"),
        pytest.param(serve(b"later", status=503), id="503"),
        pytest.param(serve(CONTENT[:-1], length=len(CONTENT)), id="less than its Content-Length"),
        pytest.param(serve(CONTENT[:-1], length=-1), id="less, without Content-Length"),
        pytest.param(serve(b""), id="nothing"),
        pytest.param(lambda handler: None, id="no answer at all"),
        pytest.param(silent, id="silence"),
    ],
)
def test_a_server_that_stumbles_is_tried_again(
    stumble: Answer, start: Start, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT", (5, 0.3))
    recovers = start(stumble, stumble, serve())
    assert get(recovers) == CONTENT
    assert len(recovers.asked) == 3
    assert pauses == [0.5, 1.0]
    pauses.clear()
    never = start(stumble)
    refused(never, SHORT)
    assert len(never.asked) == 5
    assert pauses == [0.5, 1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        pytest.param(serve(b"no", status=404), SHORT + "HTTP status 404", id="404"),
        pytest.param(serve(b"no", status=403), SHORT + "HTTP status 403", id="403"),
        pytest.param(serve(CONTENT + b"!"), SHORT + "more", id="one byte too many"),
        pytest.param(endless, SHORT + "more", id="endless"),
        pytest.param(serve(CONTENT[::-1]), f"have SHA-256 {FILE.sha256}; got ", id="other bytes"),
        pytest.param(
            serve(b"<!DOCTYPE html>".ljust(len(CONTENT))), f"have SHA-256 {FILE.sha256}; got ", id="a page of that size"
        ),
    ],
)
def test_a_server_that_is_wrong_is_asked_once(answer: Answer, words: str, start: Start, pauses: list[float]) -> None:
    server = start(answer)
    refused(server, words)
    assert (len(server.asked), pauses) == (1, [])


def test_where_no_server_listens_there_is_one_try(start: Start, pauses: list[float]) -> None:
    server = start(serve())
    server.close()
    refused(server, "Connection refused")
    assert pauses == []


def test_the_bytes_come_as_they_are_stored(start: Start) -> None:
    def compress_if_asked(handler: BaseHTTPRequestHandler) -> None:
        if "gzip" in handler.headers.get("Accept-Encoding", ""):
            serve(gzip.compress(CONTENT), Content_Encoding="gzip")(handler)
        else:
            asked_plainly.append(True)
            serve()(handler)

    asked_plainly: list[bool] = []
    assert get(start(compress_if_asked)) == CONTENT
    assert asked_plainly


def test_a_bar_is_told_what_came_and_what_came_in_vain(start: Start) -> None:
    told: list[int] = []
    server = start(serve(CONTENT[:100_000], length=-1), serve(b"", status=500), serve())
    fetch(server.url, *FILE[1:], told.append)
    assert sum(told) == len(CONTENT)
    assert [size for size in told if size < 0] == [-100_000]
    told.clear()
    with pytest.raises(DataIntegrityError):
        fetch(start(serve(CONTENT[::-1])).url, *FILE[1:], told.append)
    assert sum(told) == 0


def test_redirects_are_followed_where_they_may_lead(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    goal = start(serve())
    second = start(serve(b"", status=301, Location=goal.url))
    first = start(serve(b"", status=302, Location="/other"), serve(b"", status=307, Location=second.url))
    assert get(first) == CONTENT
    assert [len(server.asked) for server in (first, second, goal)] == [2, 1, 1]

    monkeypatch.setattr(download, "ALLOWED", first.url)
    first.answers = [serve(b"", status=302, Location="/other"), serve(b"", status=307, Location=second.url)]
    refused(first, f"be served from {first.url} and nowhere else; got {second.url}")
    assert [len(server.asked) for server in (first, second, goal)] == [4, 1, 1]


def test_plain_http_is_refused_before_anyone_is_asked(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start(serve())
    monkeypatch.undo()
    refused(server, f"be served from https:// and nowhere else; got {server.url}")
    assert server.asked == []


class Wire(requests.adapters.BaseAdapter):
    """A stand-in for https, because this machine has no certificate."""

    def __init__(self, pages: dict[str, tuple[int, dict[str, str], bytes]]) -> None:
        super().__init__()
        self.pages = pages
        self.asked: list[str] = []

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        self.asked.append(str(request.url))
        status, headers, body = self.pages[str(request.url)]
        raw = urllib3.HTTPResponse(io.BytesIO(body), headers, status, preload_content=False)
        return requests.adapters.HTTPAdapter().build_response(request, raw)

    def close(self) -> None:
        pass


def test_https_never_leads_to_http(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire(
        {
            "https://a.example/file": (302, {"Location": "https://b.example/file"}, b""),
            "https://b.example/file": (200, {}, CONTENT),
            "https://c.example/file": (302, {"Location": "http://b.example/file"}, b""),
            "http://b.example/file": (200, {}, CONTENT),
        }
    )
    monkeypatch.setattr(requests.Session, "get_adapter", lambda self, url: wire)
    assert fetch("https://a.example/file", *FILE[1:]) == CONTENT
    with pytest.raises(
        DataIntegrityError, match=r"be served from https:// and nowhere else; got http://b\.example/file"
    ):
        fetch("https://c.example/file", *FILE[1:])
    assert wire.asked == ["https://a.example/file", "https://b.example/file", "https://c.example/file"]


OTHER = Wanted("other.gz", 5, hashlib.sha256(b"other").hexdigest())


def by_name(handler: BaseHTTPRequestHandler) -> None:
    serve(CONTENT if handler.path.endswith(FILE.name) else b"other")(handler)


def test_fill_puts_whole_files_in_place(start: Start, tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b"
    server = start(by_name)
    fill(directory, [FILE, OTHER], [server.url])
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == {"file.gz": CONTENT, "other.gz": b"other"}
    fill(directory, [FILE, OTHER], [server.url])
    assert server.asked == ["/file.gz", "/other.gz"], "files that are there are not downloaded again"
    (directory / OTHER.name).write_bytes(b"rehto")
    fill(directory, [FILE, OTHER], [server.url])
    assert (directory / OTHER.name).read_bytes() == b"other"
    assert server.asked == ["/file.gz", "/other.gz", "/other.gz"], "a damaged one is, alone"


def test_fill_turns_to_the_next_mirror(start: Start, tmp_path: Path) -> None:
    bad, gone, good = start(serve(CONTENT[::-1])), start(serve(b"", status=404)), start(serve())
    fill(tmp_path, [FILE], [bad.url, gone.url, good.url])
    assert (tmp_path / FILE.name).read_bytes() == CONTENT
    assert [len(server.asked) for server in (bad, gone, good)] == [1, 1, 1]


def test_fill_leaves_nothing_half_done(start: Start, tmp_path: Path) -> None:
    bad, gone = start(serve(CONTENT[::-1])), start(serve(b"", status=404))
    (tmp_path / FILE.name).write_bytes(b"damaged")
    with pytest.raises(DataIntegrityError) as caught:
        fill(tmp_path, [FILE], [bad.url, gone.url])
    assert f"{bad.url}file.gz must have SHA-256" in str(caught.value)
    assert f"{gone.url}file.gz must serve" in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {FILE.name: b"damaged"}


def test_fill_where_nothing_can_be_written(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    server = start(serve())
    with pytest.raises(NotADirectoryError):
        fill(tmp_path / "file" / "directory", [FILE], [server.url])
    assert server.asked == [], "it is found out before the download"


@pytest.mark.parametrize("rich", [True, False])
def test_progress_is_shown_on_standard_error(
    rich: bool, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not rich:
        monkeypatch.setitem(sys.modules, "rich.progress", None)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    fill(tmp_path, [FILE], [start(serve()).url], progress=True)
    assert (tmp_path / FILE.name).read_bytes() == CONTENT
    out, err = capsys.readouterr()
    assert out == ""
    assert ("179.2/179.2 kB" in err) is rich


def test_the_line_is_closed_after_a_refusal(start: Start) -> None:
    """The client closes the connection, so that the server of an endless answer can stop."""
    ended = threading.Event()

    def watched(handler: BaseHTTPRequestHandler) -> None:
        endless(handler)
        ended.set()

    refused(start(watched), "got more")
    assert ended.wait(30)
