"""The protocol by example."""

from appliance.dissectors._template import SPEC, Command, Reply
from appliance.dissectors.kit.spec import Capture, Sniff
from appliance.model.direction import TO_CLIENT, TO_SERVER


def test_a_command_and_its_reply_make_an_exchange() -> None:
    machine, fold = SPEC.new(Capture()), SPEC.fold()
    [command] = machine.receive(TO_SERVER, b"GET key\r\n", 1)
    [reply] = machine.receive(TO_CLIENT, b"+value\r\n", 2)
    assert isinstance(command, Command) and isinstance(reply, Reply)
    assert fold.add(command) == []
    [exchange] = fold.add(reply)
    assert (exchange.method, exchange.target, exchange.status) == ("GET", "key", "ok")
    assert exchange.response.head == b"value"


def test_first_bytes_are_recognised() -> None:
    assert SPEC.sniff(TO_SERVER, b"TEMPLATE GET key\r\n") is Sniff.YES
    assert SPEC.sniff(TO_SERVER, b"TEMPLATE"[:2]) is Sniff.MORE
    assert SPEC.sniff(TO_SERVER, b"GET / HTTP/1.1\r\n") is Sniff.NO
