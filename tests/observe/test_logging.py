import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from appliance.observe import logging as weir_logging
from appliance.observe.logging import conceal, configure, get_logger, set_level


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handlers = logging.getLogger().handlers[:]
    configure("info", "json", stream=stream, process="relay-0")
    yield stream
    weir_logging._State.concealed = ()
    structlog.reset_defaults()
    logging.getLogger().handlers[:] = handlers


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_json_with_level_time_logger_process_and_fields(out: io.StringIO) -> None:
    get_logger("engine.relay").info("connection closed", connection="01", end="closed", to_server=5)
    [line] = lines(out)
    assert line.pop("timestamp")
    assert line == {
        "event": "connection closed",
        "level": "info",
        "logger": "engine.relay",
        "process": "relay-0",
        "connection": "01",
        "end": "closed",
        "to_server": 5,
    }


def test_the_level_changes_while_running(out: io.StringIO) -> None:
    log = get_logger("x")
    log.debug("one")
    set_level("debug")
    log.debug("two")
    set_level("error")
    log.warning("three")
    log.error("four")
    assert [line["event"] for line in lines(out)] == ["two", "four"]
    with pytest.raises(ValueError, match="debug, info"):
        set_level("loud")


def test_secrets_do_not_reach_a_line_by_name_or_by_value(out: io.StringIO) -> None:
    conceal(["hunter2hunter2", "hunter2", "abc"])
    log = get_logger("x")
    log.info(
        "login with hunter2hunter2", password="swordfish", detail={"deep": "xhunter2x"}, Authorization="Basic eA=="
    )
    try:
        raise ValueError("postgresql://weir:hunter2@db/weir")
    except ValueError:
        log.exception("no database")
    logging.getLogger("asyncpg").warning("refused hunter2")
    text = out.getvalue()
    assert "hunter2" not in text and "swordfish" not in text and "eA==" not in text
    assert len(lines(out)) == 3
    assert "ValueError: postgresql://weir:[hidden]@db" in str(lines(out)[1]["exception"])


def test_libraries_log_into_the_same_stream_and_shape(out: io.StringIO) -> None:
    logging.getLogger("uvicorn.error").warning("odd %s", "thing")
    logging.getLogger("uvicorn.access").info("GET /")
    [line] = lines(out)
    assert line["event"] == "odd thing" and line["logger"] == "uvicorn.error" and line["process"] == "relay-0"
