"""Fixtures for tests that need the wire: three namespaces, real origins, and the real ``weir run`` in the gateway.

``network``, ``http``, ``echo`` and ``hosts`` are shared by the tests of a module; ``start_weir`` starts a Weir of the
test's own, with its configuration changed as the test says, and ``weir`` is one that the module shares. Whatever a
test does to them, leaving takes down every process that lives in the namespaces, and then the namespaces.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.record.embedded import Cluster
from appliance.record.settings import EmbeddedSettings
from appliance.tools.lab import namespaces, origins, product
from appliance.tools.lab.namespaces import ORIGIN_V4, ORIGIN_V6, Network
from appliance.tools.lab.origins import NAME, EchoOrigin, HttpOrigin
from appliance.tools.lab.product import Weir

PREFIX = "weirtest"
HERE = Path(__file__).parent

StartWeir = Callable[..., Weir]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    without_root = pytest.mark.skip(reason="network namespaces need root: sudo ./run test")
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.netns)
            if os.geteuid() != 0:
                item.add_marker(without_root)


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A directory that the service user and the origin's workers may enter."""
    with _enterable_directory() as path:
        yield path


@pytest.fixture(scope="session")
def cluster() -> Iterator[Path]:
    """A database cluster that never ran, to be copied: making one takes seconds."""
    with _enterable_directory() as path:
        Cluster(EmbeddedSettings(directory=path / "postgres", user=product.SERVICE_USER)).prepare()
        yield path / "postgres"


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with namespaces.network(PREFIX) as built:
        yield built


@pytest.fixture(scope="module")
def hosts(home: Path) -> Path:
    """A hosts file in which ``origin.lab`` is the origin."""
    path = home / "hosts"
    path.write_text(f"127.0.0.1 localhost {os.uname().nodename}\n{ORIGIN_V4} {NAME}\n{ORIGIN_V6} {NAME}\n")
    return path


@pytest.fixture(scope="module")
def http(network: Network, home: Path) -> Iterator[HttpOrigin]:
    with origins.http_origin(network.origin, home / "origin") as origin:
        yield origin


@pytest.fixture(scope="module")
def echo(network: Network) -> Iterator[EchoOrigin]:
    with origins.echo_origin(network.origin) as origin:
        yield origin


@pytest.fixture
def start_weir(
    network: Network, home: Path, hosts: Path, cluster: Path, request: pytest.FixtureRequest
) -> Iterator[StartWeir]:
    """Start the product in the gateway: ``start_weir(**sections)``, each of which replaces the lab's section."""
    with contextlib.ExitStack() as stack:

        def begin(**sections: Any) -> Weir:
            place = make_place(home / f"{request.node.name[:24]}-{len(list(home.iterdir()))}", cluster)
            document = product.configuration(place / "state") | sections
            return stack.enter_context(product.weir(network.gateway, place, document, hosts=hosts))

        yield begin


@pytest.fixture(scope="module")
def weir(network: Network, home: Path, hosts: Path, cluster: Path) -> Iterator[Weir]:
    place = make_place(home / "shared", cluster)
    with product.weir(network.gateway, place, hosts=hosts) as running:
        yield running


def make_place(place: Path, cluster: Path) -> Path:
    """A directory for one Weir, its database cluster made already."""
    place.mkdir()
    place.chmod(0o755)
    state = place / "state"
    state.mkdir(mode=0o750)
    subprocess.run(["cp", "-a", str(cluster), str(state / "postgres")], check=True)
    return place


@contextlib.contextmanager
def _enterable_directory() -> Iterator[Path]:
    # Not below pytest's own directory: every run of pytest takes everybody's right to enter that away.
    path = Path(tempfile.mkdtemp(prefix="weir-netns-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)
