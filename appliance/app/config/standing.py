"""How each key stands in this version: in force or only accepted, and whether a reload is enough to change it.

Keys are accepted before the feature behind them exists, so that one configuration serves several versions. ``weir
validate`` then says so: nobody shall believe in a protection that is not there.
"""

# Accepted and checked, but nothing obeys them yet.
NOT_IN_FORCE: tuple[str, ...] = (
    "proxy.tls",
    "proxy.transparent.source_address",
    "proxy.direct_http.load_balancing.health_checks",
    "proxy.direct_http.upstream_routing.health_check_path",
    "proxy.direct_http.default_upstream.health_check_path",
    "protocols.http.websocket_support",
    "protocols.redis",
    "protocols.postgres",
    "protocols.detection.default_timeout",
    "transformations",
    "recording.encrypt",
    "storage.retention",
)

# A reload (SIGHUP, `weir reload`) puts these in force; the others need a restart.
LIVE: tuple[str, ...] = (
    "proxy.socks.users",
    "proxy.socks.auth_method",
    "proxy.socks.allow",
    "proxy.transparent.interfaces",
    "proxy.transparent.ports",
    "proxy.transparent.own_traffic",
    "proxy.transparent.on_failure",
    "proxy.transparent.quic",
    "limits",
    "protocols.bypass_rules",
    "protocols.detection",
    "api.tokens",
    "engine.timeouts",
    "logging.level",
)


def covers(keys: tuple[str, ...], key: str) -> bool:
    """Whether one of the keys is this key or a section around it. List indexes do not count."""
    return any(key == one or key.startswith(f"{one}.") for one in keys)


def in_force(key: str) -> bool:
    """Whether this version obeys the key."""
    return not covers(NOT_IN_FORCE, key)


def is_live(key: str) -> bool:
    """Whether a reload changes the key."""
    return covers(LIVE, key)
