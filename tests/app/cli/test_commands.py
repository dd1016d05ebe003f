import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import appliance
from appliance.app.cli.api import DEFAULT, address
from appliance.app.cli.commands import run
from appliance.app.cli.output import as_json, plain
from tests.app.daemon import ENVIRON, WEIR, free_port

FIXTURES = Path(__file__).parents[1] / "config" / "fixtures"

EXCHANGES = [
    {
        "id": f"id-{number}",
        "method": "GET",
        "domain": "shop.example",
        "target": f"/{number}\x1b[31m[red]",
        "status": "200",
    }
    for number in range(5)
]
CONNECTION = {"id": "connection-1", "source_ip": "192.0.2.1", "end_reason": "closed"}


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def weir(*arguments: str, **environ: str) -> Done:
    """The command in this process: a new interpreter for each would make these tests slow."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["weir", *arguments])
        for name, value in environ.items():
            patch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            run()
    return Done(int(ended.value.code or 0), out.getvalue(), err.getvalue())


def new_process(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*WEIR, *arguments], capture_output=True, text=True, env=ENVIRON, timeout=60)


class _Api(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if self.headers.get("Authorization") != "Bearer right":
            self.say(401, {"title": "Unauthorized", "detail": "a token is needed"})
        elif path == "/api/v1/exchanges" and "q=bad" in query:
            self.say(400, {"title": "Bad Request", "detail": "q: there is no field 'bad'"})
        elif path == "/api/v1/exchanges":
            first = 2 if "cursor=two" in query else 0
            self.say(200, {"items": EXCHANGES[first : first + 2], "next": None if first else "two"})
        elif path == "/api/v1/exchanges/id-1":
            self.say(200, EXCHANGES[1])
        elif path == "/api/v1/exchanges/id-1/request":
            self.say(404, {})
        elif path == "/api/v1/exchanges/id-1/response":
            self.say(
                200,
                {
                    "start_line": "HTTP/1.1 200 OK",
                    "headers": [{"name": "X-Odd", "value": "a\x1bb"}],
                    "body": {"encoding": "text", "data": "hello\nbody", "length": 10},
                },
            )
        elif path == "/api/v1/connections/connection-1":
            self.say(200, CONNECTION)
        elif path == "/api/v1/status":
            self.say(200, {"ready": False, "checks": {"store": {"ok": False, "detail": "away"}}, "engine": {}})
        else:
            self.say(404, {"title": "Not Found"})

    def do_POST(self) -> None:
        self.say(409, {"title": "Conflict", "detail": "weir.yaml:1:1: error: prxy: is unknown"})

    def say(self, status: int, document: Any) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None: ...


@contextmanager
def serving() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Api)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def api() -> Iterator[str]:
    with serving() as url:
        yield url


def test_the_version_is_told_and_nothing_heavy_is_imported_for_it() -> None:
    done = new_process("version")
    assert done.returncode == 0 and appliance.__version__ in done.stdout
    heavy = ("httpx", "asyncpg", "pydantic", "litestar", "pyroute2", "uvicorn", "structlog", "rich.table")
    code = f"import sys; import appliance.app.cli.commands; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([WEIR[0], "-c", code], capture_output=True, text=True, env=ENVIRON, check=True)
    assert done.stdout.strip() == "[]"


def test_exit_codes_say_what_kind_of_trouble_it_is(tmp_path: Path, api: str) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("limits: {max_connections: many}\n")
    nobody = f"http://127.0.0.1:{free_port()}"
    assert weir("validate", "--config", str(FIXTURES / "mission-proxy.yaml")).returncode == 0
    assert weir("validate", "--config", str(wrong)).returncode == 3
    assert weir("run", "--config", str(wrong)).returncode == 3
    assert weir("no-such-verb").returncode == 2
    assert weir("flows", "list", "--limit", "none").returncode == 2
    assert weir("flows", "list", "--api", nobody).returncode == 5
    assert weir("flows", "tail", "--api", nobody).returncode == 5
    assert weir("status", "--api", nobody).returncode == 5
    assert weir("flows", "list", "--api", api).returncode == 4
    assert weir("flows", "list", "bad", "--api", api, "--token", "right").returncode == 2
    assert weir("status", "--api", api, WEIR_TOKEN="right").returncode == 1


def test_every_error_is_one_clear_line_without_a_traceback(api: str) -> None:
    for done in (
        weir("flows", "list", "--api", api),
        weir("flows", "list", "--api", "http://[nonsense"),
        weir("flows", "list", "--api", f"127.0.0.1:{free_port()}"),
        weir("db", "status", "--set", f"storage.dsn=postgresql://127.0.0.1:{free_port()}/x"),
        weir("doctor"),
    ):
        assert done.returncode not in (0, 2)
        assert done.stderr.startswith("weir: ") and len(done.stderr.splitlines()) == 1, done.stderr


def test_validate_tells_as_text_as_json_and_as_lines() -> None:
    slip = str(FIXTURES / "mission-proxy-slip.yaml")
    done = weir("validate", "--config", slip)
    assert f"{slip}:28:7: error: proxy.direct_http.upstream_routing: " in done.stderr
    assert "    " + "      default:" in done.stderr
    document = json.loads(weir("validate", "--config", slip, "-o", "json").stdout)
    assert document["ok"] is False
    assert [problem["line"] for problem in document["problems"] if problem["severity"] == "error"] == [28]
    lines = weir("validate", "--config", slip, "-o", "ndjson").stdout.splitlines()
    assert [json.loads(line) for line in lines] == document["problems"]


def test_a_list_follows_its_pages_up_to_the_limit(api: str) -> None:
    def ids(limit: int) -> list[str]:
        done = weir("flows", "list", "--limit", str(limit), "-o", "json", "--api", api, "--token", "right")
        assert done.returncode == 0, done.stderr
        return [item["id"] for item in json.loads(done.stdout)]

    assert ids(50) == ["id-0", "id-1", "id-2", "id-3"]
    assert ids(1)[:1] == ["id-0"]


def test_a_reload_that_is_refused_is_an_error_of_the_configuration(api: str) -> None:
    done = weir("reload", "--api", api, "--token", "right")
    assert done.returncode == 3 and "prxy: is unknown" in done.stderr


def test_what_peers_sent_cannot_drive_the_terminal(api: str) -> None:
    done = weir("flows", "list", "--api", api, "--token", "right", NO_COLOR="1")
    assert "\x1b" not in done.stdout and "[red]" in done.stdout
    assert plain("a\x1b[2Jb\x07\u202e") == "a�[2Jb��"
    said = ["\x1b[2J", "\x9b2J\x7f", "\u202eevil", "naïve ✓"]
    assert json.loads(as_json(said)) == said
    assert as_json(said) == r'["\u001b[2J", "\u009b2J\u007f", "\u202eevil", "naïve ✓"]'


def test_one_exchange_is_shown_with_its_bodies_and_a_connection_by_its_own_id(api: str) -> None:
    done = weir("flows", "show", "id-1", "--api", api, "--token", "right")
    assert "response:\nHTTP/1.1 200 OK\nX-Odd: a�b\n\nhello\nbody\n" in done.stdout
    assert "request:" not in done.stdout
    done = weir("flows", "show", "connection-1", "-o", "ndjson", "--api", api, "--token", "right")
    assert json.loads(done.stdout) == CONNECTION


def test_a_reader_that_leaves_early_is_no_error() -> None:
    done = subprocess.run(
        f"{' '.join(WEIR)} config reference | head -1",
        shell=True,
        capture_output=True,
        text=True,
        env=ENVIRON,
        timeout=60,
    )
    assert done.stdout == "# Configuration\n" and not done.stderr


def test_the_api_is_where_it_is_told_configured_or_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WEIR_API", raising=False)
    file = tmp_path / "weir.yaml"
    file.write_text("api: {bind_address: ['0.0.0.0:99'], tokens: [a-token-of-sixteen]}\n")
    assert address(None, []) == DEFAULT
    assert address(None, [file]) == "http://127.0.0.1:99"
    monkeypatch.setenv("WEIR_API", "gateway:8088/")
    assert address(None, [file]) == "http://gateway:8088"
    assert address("https://x/", [file]) == "https://x"


def test_every_command_has_help_with_an_example() -> None:
    for verb in (
        *(["run"], ["validate"], ["reload"], ["status"], ["doctor"], ["lab"], ["version"]),
        *(["flows", "tail"], ["flows", "list"], ["flows", "show"], ["db", "migrate"], ["db", "status"]),
        *(["config", "show"], ["config", "schema"], ["config", "example"], ["config", "reference"]),
    ):
        help = weir(*verb, "--help", COLUMNS="200").stdout
        assert f"Example: {'sudo ' if verb[0] in ('doctor', 'lab') else ''}weir {' '.join(verb)}" in help, verb


def test_what_config_prints_is_usable(tmp_path: Path) -> None:
    example = tmp_path / "weir.yaml"
    example.write_text(weir("config", "example").stdout)
    assert weir("validate", "--config", str(example)).returncode == 0
    assert json.loads(weir("config", "schema").stdout)["type"] == "object"
    shown = weir("config", "show", "--set", "storage.dsn=postgresql://u:hush@h/d", "-o", "json").stdout
    assert json.loads(shown)["storage"]["dsn"] == "[hidden]"


def test_it_starts_quickly() -> None:
    def once() -> float:
        began = time.process_time()
        before = _children_time()
        assert new_process("version").returncode == 0
        return _children_time() - before + time.process_time() - began

    # Processor time of the best of three: this machine may be busy.
    assert min(once() for _ in range(3)) < 0.6


def _children_time() -> float:
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
