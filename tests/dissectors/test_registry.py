"""The registry: built-in protocols and announced ones, switched on by name."""

from importlib.metadata import EntryPoint

import pytest

from appliance.dissectors import registry
from appliance.dissectors.http1 import SPEC as HTTP1


def announce(value: str) -> list[EntryPoint]:
    return [EntryPoint("other", value, registry.ENTRY_POINTS)]


def test_everything_built_in_is_on_by_default() -> None:
    assert HTTP1 in registry.load(announced=[])


def test_protocols_are_switched_on_by_name() -> None:
    assert registry.load(["http/1.1"], announced=[]) == (HTTP1,)
    assert registry.load([], announced=[]) == ()


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(registry.DissectorError, match=r"no dissector is called 'gopher' \(there are: .*http/1.1"):
        registry.load(["gopher"], announced=[])


def test_an_announced_protocol_is_loaded() -> None:
    assert registry.load(announced=announce("appliance.dissectors.http1:SPEC")).count(HTTP1) == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [("nowhere.at.all:SPEC", "cannot be imported"), ("appliance.dissectors.http1:Request", "is no ProtocolSpec")],
)
def test_what_is_announced_but_unusable_is_named(value: str, message: str) -> None:
    with pytest.raises(registry.DissectorError, match=message):
        registry.load(announced=announce(value))
