"""From the document to what each package obeys. The only place that knows both the keys and the settings."""

import contextlib
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from appliance.api.settings import ApiSettings
from appliance.app.config.check import body_sizes, listens, split_target, turn_sizes
from appliance.app.config.document import Document
from appliance.app.config.proxy import DirectHttp, Upstream, UpstreamRoute
from appliance.dissectors import registry as protocols
from appliance.engine.settings import (
    DialSettings,
    DirectHttpSettings,
    HeaderEdits,
    InspectSettings,
    LimitSettings,
    RelaySettings,
    Route,
    SocksSettings,
    TapSettings,
    TransparentSettings,
)
from appliance.model.bypass import BypassRule
from appliance.model.endpoint import Endpoint, parse_endpoint
from appliance.netfilter.policy import InterceptPolicy
from appliance.record.settings import (
    CompressionSettings,
    EmbeddedSettings,
    RecordSettings,
    RedactionSettings,
    SamplingSettings,
    SpoolSettings,
)

# What the configuration calls protocols, where the records say more.
HTTP = "http/1.1"
PROTOCOLS = {"http": HTTP, "postgres": "postgresql"}


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are under the state directory."""

    root: Path

    @property
    def lock(self) -> Path:
        """The supervisor's process id; locked while it lives."""
        return self.root / "weir.pid"

    @property
    def rings(self) -> Path:
        """Tap rings."""
        return self.root / "rings"

    @property
    def spool(self) -> Path:
        """Rows that wait for the database."""
        return self.root / "spool"

    @property
    def run(self) -> Path:
        """Sockets."""
        return self.root / "run"

    @property
    def keys(self) -> Path:
        """Secrets that Weir makes for itself."""
        return self.root / "keys"

    @property
    def postgres(self) -> Path:
        """The embedded cluster."""
        return self.root / "postgres"

    @property
    def live_socket(self) -> Path:
        """Where inspectors tell the API what they see."""
        return self.run / "live.sock"

    @property
    def redaction_key(self) -> Path:
        """The key of redaction's tokens."""
        return self.keys / "redaction.key"

    @property
    def switches(self) -> Path:
        """What the kernel's switches were before interception."""
        return self.root / "switches.json"

    @property
    def service_directories(self) -> tuple[Path, ...]:
        """What the service user writes to."""
        return (self.rings, self.spool, self.run, self.keys)


def workers(document: Document) -> int:
    """How many relays, and as many inspectors."""
    chosen = document.engine.workers
    return max(1, (os.cpu_count() or 1) // 2) if chosen == "auto" else chosen


def check(document: Document) -> None:
    """Build everything once. Raises ``ValueError`` for what a package refuses although the document allows it."""
    relay(document)
    inspect(document)
    record(document)
    embedded(document, None)
    api(document)


def relay(document: Document) -> RelaySettings:
    """What each relay obeys."""
    proxy, timeouts, tap = document.proxy, document.engine.timeouts, document.engine.tap
    transparent = proxy.transparent if listens(document, "transparent") else None
    reverse = proxy.direct_http if listens(document, "direct_http") else None
    policy = intercept(document)
    turn_head, turn_tail = turn_sizes(document)
    return RelaySettings(
        transparent=TransparentSettings(bind=_both_loopbacks(transparent.bind_address)) if transparent else None,
        socks=_socks(document) if listens(document, "socks") else None,
        direct_http=_direct_http(reverse) if reverse else None,
        limits=_limits(document),
        dial=DialSettings(
            mark=policy.own_mark if policy else None,
            connect_timeout=timeouts.connect,
            resolve_timeout=timeouts.resolve,
            own_addresses=own_addresses(document),
        ),
        bypass=bypass(document),
        tap=TapSettings(
            directory=Places(document.state_dir).rings,
            ring_bytes=1 << (tap.ring_size - 1).bit_length(),  # positions are masked, not divided
            slots=tap.slots,
            turn_head=turn_head,
            turn_tail=turn_tail,
            on_overload=document.recording.on_overload,
        ),
        handshake_timeout=timeouts.handshake,
        idle_timeout=timeouts.idle,
        drain_timeout=timeouts.drain,
        write_high=document.engine.write_buffer,
        backlog=document.engine.backlog,
    )


def inspect(document: Document) -> InspectSettings:
    """What each inspector obeys."""
    body_head, body_tail = body_sizes(document)
    places = Places(document.state_dir)
    ports = document.protocols.detection.port_mappings
    return InspectSettings(
        directory=places.rings,
        count=workers(document),
        protocols=None if document.protocols.http.enabled else _without(HTTP),
        detection_ports={port: PROTOCOLS.get(name, name) for port, name in ports.items()},
        detection_cache=document.protocols.detection.cache_size,
        body_head=body_head,
        body_tail=body_tail,
        digest_limit=turn_sizes(document)[0],
        live_socket=places.live_socket if document.api.enabled else None,
    )


def _without(name: str) -> tuple[str, ...]:
    return tuple(spec.name for spec in protocols.load() if spec.name != name)


def record(document: Document) -> RecordSettings:
    """What recording obeys."""
    places, http, recording = Places(document.state_dir), document.protocols.http, document.recording
    sampling = recording.sampling
    return RecordSettings(
        dsn=dsn(document),
        spool=SpoolSettings(directory=places.spool, limit=recording.spool_size),
        redaction=RedactionSettings(
            key_file=places.redaction_key,
            enabled=recording.redaction.enabled,
            names=recording.redact,
            bodies=recording.redaction.bodies,
            scan_limit=recording.redaction.scan_limit,
        ),
        compression=CompressionSettings(
            enabled=http.compression.enabled,
            min_size=http.compression.min_size,
            algorithms=http.compression.algorithms,
        ),
        sampling=SamplingSettings(
            default_rate=min(http.sampling.default_rate, sampling.rate),
            error_rate=http.sampling.error_rate
            if sampling.always_sample_errors
            else min(http.sampling.error_rate, sampling.rate),
            rules=tuple((rule.path_prefix, rule.rate) for rule in http.sampling.rules),
        ),
        record_headers=http.record_headers,
        record_body=http.record_body,
    )


def api(document: Document) -> ApiSettings:
    """What the API obeys."""
    return ApiSettings(
        bind=_endpoints(document.api.bind_address),
        dsn=dsn(document),
        live_socket=Places(document.state_dir).live_socket,
        tokens=document.api.tokens,
    )


def embedded(document: Document, user: str | None) -> EmbeddedSettings | None:
    """The private cluster; None when the database is somebody else's. ``user``: who it runs as when we are root."""
    if document.storage.dsn != "embedded":
        return None
    chosen = document.storage.embedded
    return EmbeddedSettings(
        directory=Places(document.state_dir).postgres,
        user=user,
        binaries=chosen.binaries,
        shared_buffers=chosen.shared_buffers,
        max_wal_size=chosen.max_wal_size,
    )


def dsn(document: Document) -> str:
    """How the database is reached."""
    cluster = embedded(document, None)
    return cluster.dsn if cluster else document.storage.dsn


def intercept(document: Document) -> InterceptPolicy | None:
    """What the kernel sends us; None when nothing is intercepted. Raises ``PolicyError``."""
    transparent = document.proxy.transparent
    if transparent is None or not listens(document, "transparent"):
        return None
    bound = _both_loopbacks(transparent.bind_address)
    rules = [rule for rule in bypass(document) if rule.mode == "direct_proxy" and rule.domain is None]
    return InterceptPolicy(
        interfaces=transparent.interfaces,
        ports=transparent.ports,
        listen4=next((endpoint for endpoint in bound if ":" not in endpoint.host), None),
        listen6=next((endpoint for endpoint in bound if ":" in endpoint.host), None),
        on_failure=transparent.on_failure,
        quic=transparent.quic,
        own_traffic=transparent.own_traffic,
        # A rule that names both an address and a port is obeyed by the relay: the kernel's sets know one or the other.
        bypass=tuple(rule.network for rule in rules if rule.network is not None and rule.port is None),
        bypass_ports=tuple(rule.port for rule in rules if rule.port is not None and rule.network is None),
    )


def bypass(document: Document) -> tuple[BypassRule, ...]:
    """The rules of ``protocols.bypass_rules``."""
    rules = []
    for rule in document.protocols.bypass_rules:
        target, port = split_target(rule.address) if rule.address is not None else (None, None)
        network, domain = None, target
        if target is not None:
            with contextlib.suppress(ValueError):
                network, domain = ipaddress.ip_network(target, strict=False), None
        port = rule.port if rule.port is not None else port
        rules.append(BypassRule(mode=rule.mode, network=network, domain=domain, port=port))
    return tuple(rules)


def own_addresses(document: Document) -> frozenset[Endpoint]:
    """What no client may reach through us: our own listeners and our API (features K4, O12)."""
    proxy = document.proxy
    bound = [*proxy.bind_address] if listens(document, "socks") else []
    bound += proxy.direct_http.bind_address if proxy.direct_http and listens(document, "direct_http") else ()
    bound += document.api.bind_address if document.api.enabled else ()
    transparent = proxy.transparent if listens(document, "transparent") else None
    intercepted = _both_loopbacks(transparent.bind_address) if transparent else ()
    return frozenset((*_endpoints(tuple(bound)), *intercepted))


def _socks(document: Document) -> SocksSettings:
    socks = document.proxy.socks
    named = socks.auth_method == "username_password"
    return SocksSettings(
        bind=_endpoints(document.proxy.bind_address),
        users={user.username: user.password for user in socks.users} if named else None,
        allow=None if socks.allow is None else tuple(ipaddress.ip_network(network) for network in socks.allow),
    )


def _limits(document: Document) -> LimitSettings:
    limits = document.limits
    count = workers(document)
    return LimitSettings(
        # Counts are kept per relay, and the kernel spreads connections evenly over them.
        max_connections=None if limits.max_connections is None else -(-limits.max_connections // count),
        per_source_connections=limits.per_source_connections,
        per_source_rate=limits.per_source_rate,
        per_source_burst=limits.per_source_burst,
    )


def _direct_http(reverse: DirectHttp) -> DirectHttpSettings:
    headers = reverse.headers
    return DirectHttpSettings(
        bind=_endpoints(reverse.bind_address),
        routes=tuple(_route(route) for route in reverse.upstream_routing),
        default=_route(reverse.default_upstream) if reverse.default_upstream else None,
        headers=HeaderEdits(
            add_request=tuple(map(_header, headers.add_request)),
            remove_request=headers.remove_request,
            add_response=tuple(map(_header, headers.add_response)),
        ),
        strategy=reverse.load_balancing.strategy,
    )


def _route(upstream: Upstream) -> Route:
    route = upstream if isinstance(upstream, UpstreamRoute) else None
    return Route(
        upstream=parse_endpoint(upstream.upstream),
        host=route.host if route else None,
        path_prefix=route.path_prefix if route else None,
        use_tls=upstream.use_tls,
        strip_prefix=route.strip_prefix if route else False,
    )


def _header(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()


def _endpoints(addresses: tuple[str, ...]) -> tuple[Endpoint, ...]:
    found = []
    for address in addresses:
        endpoint = parse_endpoint(address)
        found.append(Endpoint("127.0.0.1", endpoint.port) if endpoint.host == "localhost" else endpoint)
    return tuple(found)


def _both_loopbacks(addresses: tuple[str, ...]) -> tuple[Endpoint, ...]:
    """127.0.0.1 stands for ::1 too: what is intercepted comes in both families."""
    found = _endpoints(addresses)
    if len(found) == 1 and found[0].host == "127.0.0.1":
        found = (*found, Endpoint("::1", found[0].port))
    return found
