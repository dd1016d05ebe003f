"""Valid messages mean the same to the dissector and to llhttp (by httptools, strict)."""

import httptools
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dissectors.http1 import SPEC, Request, Response
from appliance.dissectors.kit.spec import Capture
from appliance.model.direction import TO_CLIENT, TO_SERVER
from tests.dissectors.http1.subject import exchanges
from tests.laws.subject import Step, cuts


class Heard:
    """What httptools tells about messages."""

    def __init__(self) -> None:
        self.messages: list[list[object]] = []
        self.body = b""
        self.target = b""
        self.parser: httptools.HttpRequestParser | httptools.HttpResponseParser | None = None

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        parser = self.parser
        if isinstance(parser, httptools.HttpRequestParser):
            self.messages.append([parser.get_method(), self.target, self.body])
        elif parser is not None:
            self.messages.append([parser.get_status_code(), self.body])
        self.target = self.body = b""


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(exchanges(), min_size=1, max_size=4), st.data())
def test_httptools_hears_the_same_messages(said: list[tuple[bytes, bytes]], data: st.DataObject) -> None:
    said = [(request, response) for request, response in said if not request.startswith(b"HEAD")]
    requests, responses = (b"".join(wires) for wires in zip(*said, strict=True)) if said else (b"", b"")
    machine = SPEC.new(Capture())
    ours: tuple[list[list[object]], list[list[object]]] = ([], [])
    for step in data.draw(cuts([Step(TO_SERVER, requests), Step(TO_CLIENT, responses)])):
        for event in machine.receive(step.direction, step.data, 1):
            if isinstance(event, Request):
                ours[0].append([event.method.encode(), event.target.encode(), event.body.head])
            elif isinstance(event, Response):
                ours[1].append([event.status, event.body.head])
    client, server = Heard(), Heard()
    client.parser, server.parser = httptools.HttpRequestParser(client), httptools.HttpResponseParser(server)
    client.parser.feed_data(requests)
    server.parser.feed_data(responses)
    assert ours == (client.messages, server.messages)
