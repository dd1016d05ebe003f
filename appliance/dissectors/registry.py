"""Which protocols there are: the built-in ones, and those that installed packages announce.

A package announces a dissector with one line in its ``pyproject.toml``, under the entry points ``weir.dissectors``;
a name that is announced twice is an error, not a matter of import order.
"""

from collections.abc import Collection, Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from appliance.dissectors.http1 import SPEC as HTTP1
from appliance.dissectors.kit.spec import ProtocolSpec

ENTRY_POINTS: Final = "weir.dissectors"
BUILT_IN: Final = (HTTP1,)


class DissectorError(Exception):
    """A dissector that was asked for cannot be used; the message says which, why, and what there is."""


def load(
    names: Collection[str] | None = None, announced: Iterable[EntryPoint] | None = None
) -> tuple[ProtocolSpec, ...]:
    """The protocols that are switched on by name; None: all of them. Raises ``DissectorError``.

    ``announced`` replaces what installed packages say.
    """
    specs = {spec.name: spec for spec in BUILT_IN}
    for entry in entry_points(group=ENTRY_POINTS) if announced is None else announced:
        spec = _load_one(entry)
        if spec.name in specs and specs[spec.name] is not spec:
            raise DissectorError(f"two dissectors are called {spec.name!r}; one is {entry.value} (uninstall one)")
        specs[spec.name] = spec
    if names is None:
        return tuple(specs.values())
    unknown = sorted(set(names) - specs.keys())
    if unknown:
        raise DissectorError(f"no dissector is called {unknown[0]!r} (there are: {', '.join(sorted(specs))})")
    return tuple(spec for name, spec in specs.items() if name in names)


def _load_one(entry: EntryPoint) -> ProtocolSpec:
    try:
        spec = entry.load()
    except Exception as error:  # whatever a stranger's module raises at import
        raise DissectorError(f"the dissector {entry.name!r} ({entry.value}) cannot be imported: {error}") from error
    if not isinstance(spec, ProtocolSpec):
        raise DissectorError(f"the dissector {entry.name!r} ({entry.value}) is no ProtocolSpec")
    return spec
