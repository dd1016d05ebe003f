"""The parent of all processes: start them in order, keep them alive, obey signals, stop them in the reverse order.

Up: state directory, database, inspectors, relays, API, and the kernel's rules last, when there is somebody to take the
connections. Down: no new connections, relays drain, the rules go, inspectors read their rings to the end, then the API
and the database. Runs on asyncio's own loop, because uvloop refuses netlink sockets (kernel.md).
"""

import asyncio
import contextlib
import os
import resource
import signal
import time
from collections.abc import Callable
from typing import Any

import appliance
from appliance.app import wiring
from appliance.app.children import Child, StartFailed, State
from appliance.app.config import Document, Loaded
from appliance.app.database import Database, bring_forward
from appliance.app.errors import AppError, Exit, TookTooLong
from appliance.app.kernel import Kernel
from appliance.app.privileges import service_user
from appliance.app.readiness import ServiceManager
from appliance.app.reload import compare
from appliance.app.state import StateDirectory
from appliance.engine.control import Message
from appliance.netfilter.errors import NetfilterError
from appliance.observe import logging, metrics
from appliance.observe.process import LoopLag, publish
from appliance.record.embedded import ClusterError

log = logging.get_logger("supervisor")

START_TIMEOUT = 60.0  # seconds until every child must have said that it is ready
INSPECTORS_TIMEOUT = 20.0  # to read the rings to their end and write what is in them
API_TIMEOUT = 5.0
GRACE = 5.0  # beyond the relays' own drain timeout, before they are killed

_Failure = (StartFailed, ClusterError, NetfilterError, AppError, TimeoutError)


class ReloadFailed(RuntimeError):
    """The new configuration is not usable; the text holds every error. The old one stays in force."""


class Supervisor:
    """One daemon. ``reread`` reads the configuration again, from where it came."""

    def __init__(self, loaded: Loaded, reread: Callable[[], Loaded]) -> None:
        if loaded.document is None:
            raise ValueError("a configuration with errors cannot be run")
        self._document: Document = loaded.document
        self._secrets = loaded.secrets
        self._reread = reread
        self._manager = ServiceManager()
        self._registry = metrics.Registry()
        self._lag = LoopLag()
        self._children: list[Child] = []
        self._database: Database | None = None
        self._kernel: Kernel | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._started = time.time()
        self._serving = False

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT; what was started is stopped in any case.

        Raises ``AppError`` with the exit code when it could not start.
        """
        logging.conceal(self._secrets)
        self._registry.set(metrics.INFO, 1, appliance.__version__)
        user = service_user(self._document.engine.user)
        self._kernel = Kernel(self._document)
        _raise_file_limit(self._document)
        cluster = wiring.embedded(self._document, user.name if user else None)
        self._database = Database(cluster) if cluster else None
        self._children = self._make_children()
        with StateDirectory(wiring.Places(self._document.state_dir)) as state:
            state.prepare(user)
            async with asyncio.TaskGroup() as group:
                failure = await self._serve(group)
        if failure is not None:
            raise failure
        log.info("stopped")

    async def reload(self) -> dict[str, Any]:
        """Read the configuration again and put in force what can change live.

        Answers ``changed`` and ``needs_restart`` (keys) and ``warnings``. Raises ``ReloadFailed``: nothing changed.
        """
        async with self._reloading:
            if self._stop.is_set():
                raise ReloadFailed("weir is stopping")
            self._manager.reloading()
            try:
                return await self._reload()
            except ReloadFailed as error:
                self._registry.add(metrics.RELOADS, 1, "refused")
                log.error("reload refused; the old configuration stays in force", errors=str(error).splitlines())
                raise
            finally:
                if self._serving:
                    self._manager.ready(self._summary())

    async def _reload(self) -> dict[str, Any]:
        loaded = await asyncio.to_thread(self._reread)
        if loaded.document is None:
            raise ReloadFailed("\n".join(map(str, loaded.errors)))
        change = compare(self._document, loaded.document)
        if self._kernel is not None and self._kernel.in_place:
            try:
                await self._kernel.up(change.document)
            except NetfilterError as error:
                raise ReloadFailed(f"proxy.transparent: {error}") from error
        self._document, self._secrets = change.document, self._secrets | loaded.secrets
        logging.conceal(self._secrets)
        logging.set_level(change.document.logging.level)
        message: Message = {"type": "reload", "config": self._config(), "secrets": sorted(self._secrets)}
        await asyncio.gather(*(child.tell(message) for child in self._children))
        self._registry.add(metrics.RELOADS, 1, "done")
        log.info("reloaded", changed=list(change.changed), needs_restart=list(change.needs_restart))
        return {
            "changed": list(change.changed),
            "needs_restart": list(change.needs_restart),
            "warnings": [str(problem) for problem in loaded.problems],
        }

    def status(self) -> dict[str, Any]:
        """What ``weir status`` and ``GET /ready`` show."""
        checks = {"listeners": self._listeners_check(), "ruleset": self._ruleset_check(), "store": self._store_check()}
        return {
            "version": appliance.__version__,
            "pid": os.getpid(),
            "started": self._started,
            "state": "stopping" if self._stop.is_set() else "serving" if self._serving else "starting",
            "mode": self._document.proxy.mode,
            "ready": self._serving and not self._stop.is_set() and all(check["ok"] for check in checks.values()),
            "checks": checks,
            "database": None if self._database is None else self._database.pid,
            "processes": [child.status() for child in self._children],
        }

    def metrics(self) -> dict[str, metrics.Snapshot]:
        """The newest snapshot of every process."""
        return {"supervisor": self._registry.snapshot()} | {child.name: child.metrics for child in self._children}

    # Life

    async def _serve(self, group: asyncio.TaskGroup) -> AppError | None:
        failure: AppError | None = None
        self._obey_signals(group)
        watching = group.create_task(self._watch(), name="watch")
        measuring = group.create_task(self._lag.watch(), name="loop lag")
        starting = asyncio.create_task(self._start(group), name="start")
        stopping = asyncio.create_task(self._stop.wait(), name="stop")
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting
                await stopping
        except _Failure as error:
            failure = _as_app_error(error)
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await self._shut_down()
            for task in (watching, measuring, stopping):
                task.cancel()
            self._ignore_signals()
        return failure

    async def _start(self, group: asyncio.TaskGroup) -> None:
        if self._database is not None:
            await self._database.start()
            group.create_task(self._database.keep(), name="database")
        await bring_forward(wiring.dsn(self._document))
        loop = asyncio.get_running_loop()
        firsts: list[asyncio.Future[None]] = []
        for child in self._children:
            firsts.append(loop.create_future())
            group.create_task(child.keep(firsts[-1]), name=child.name)
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await asyncio.gather(*firsts)
        except TimeoutError:
            late = [child.name for child in self._children if child.state is not State.READY]
            raise TookTooLong(f"{', '.join(late)}: not ready after {START_TIMEOUT:.0f} s") from None
        if self._kernel is not None:
            await self._kernel.up(self._document)
            self._keeping = group.create_task(self._kernel.keep(), name="interception")
        self._serving = True
        self._manager.ready(self._summary())
        log.info("ready", mode=self._document.proxy.mode, listeners=self._bound(), pid=os.getpid())

    async def _shut_down(self) -> None:
        loop = asyncio.get_running_loop()
        self._stop.set()
        self._manager.stopping("draining connections")
        drain = self._document.engine.timeouts.drain
        log.info("stopping", drain=drain)
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        if self._kernel is not None:
            await self._kernel.drain()
        hurrying = asyncio.create_task(self._kill_when_hurried(), name="hurry")
        for role, patience in (("relay", drain + GRACE), ("inspector", INSPECTORS_TIMEOUT), ("api", API_TIMEOUT)):
            deadline = loop.time() + patience
            await asyncio.gather(*(child.drain(deadline) for child in self._children if child.role == role))
            if role == "relay" and self._kernel is not None:
                await self._kernel.down()
        hurrying.cancel()
        if self._database is not None:
            await self._database.stop(now=self._hurry.is_set())

    async def _kill_when_hurried(self) -> None:
        await self._hurry.wait()
        log.warning("stopping at once: open connections are cut")
        for child in self._children:
            child.kill()

    async def _watch(self) -> None:
        """Every second: silent children are killed, our own figures are taken, the watchdog is told that we live."""
        beat = self._manager.beat
        while True:
            await asyncio.sleep(min(1.0, beat) if beat else 1.0)
            if beat:
                self._manager.alive()
            for child in self._children:
                child.check()
            publish(self._registry)
            self._registry.set(metrics.UP, float(self._serving))
            self._registry.set(metrics.LOOP_LAG_SECONDS, self._lag.take())
            self._registry.set(metrics.KERNEL_RULESET, float(self._kernel is not None and self._kernel.in_place))
            for role in ("relay", "inspector", "api"):
                count = sum(child.restarts for child in self._children if child.role == role)
                self._registry.set(metrics.RESTARTS, count, role)
            if self._database is not None:
                self._registry.set(metrics.RESTARTS, self._database.restarts, "database")

    # Signals

    def _obey_signals(self, group: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop)
        loop.add_signal_handler(signal.SIGHUP, lambda: group.create_task(self._asked_to_reload(), name="reload"))

    def _ignore_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            asyncio.get_running_loop().remove_signal_handler(number)

    def _asked_to_stop(self) -> None:
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    async def _asked_to_reload(self) -> None:
        with contextlib.suppress(ReloadFailed):  # it is in the log, and nothing has changed
            await self.reload()

    # Children

    def _make_children(self) -> list[Child]:
        count = wiring.workers(self._document)
        children = [Child("inspector", index, self._first_message, self._answer) for index in range(count)]
        children += [Child("relay", index, self._first_message, self._answer) for index in range(count)]
        if self._document.api.enabled:
            children.append(Child("api", 0, self._first_message, self._answer))
        return children

    def _first_message(self) -> Message:
        return {"config": self._config(), "secrets": sorted(self._secrets)}

    def _config(self) -> dict[str, Any]:
        return self._document.model_dump(mode="json")

    async def _answer(self, name: str, arguments: dict[str, Any]) -> Any:
        match name:
            case "status":
                return self.status()
            case "metrics":
                return self.metrics()
            case "reload":
                return await self.reload()
        raise LookupError(f"the supervisor does not know {name!r}")

    # What we tell

    def _bound(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for child in self._children:
            for listener, addresses in child.listeners.items():
                known = found.setdefault(listener, [])
                known += [address for address in addresses if address not in known]
        return found

    def _summary(self) -> str:
        listeners = ", ".join(f"{name} {' '.join(addresses)}" for name, addresses in self._bound().items())
        return f"{self._document.proxy.mode}: {listeners}"

    def _listeners_check(self) -> dict[str, Any]:
        relays = [child for child in self._children if child.role == "relay"]
        ready = sum(child.state is State.READY for child in relays)
        return {"ok": ready > 0, "detail": f"{ready} of {len(relays)} relays: {self._summary()}"}

    def _ruleset_check(self) -> dict[str, Any]:
        if self._kernel is None or not self._kernel.wanted:
            return {"ok": True, "detail": "nothing is intercepted"}
        return {"ok": self._kernel.in_place, "detail": "in place" if self._kernel.in_place else "not in place"}

    def _store_check(self) -> dict[str, Any]:
        inspectors = [child for child in self._children if child.role == "inspector"]
        ready = [child for child in inspectors if child.state is State.READY]
        up = all(child.metrics.get(metrics.STORE_UP.name, 1.0) for child in ready)
        losing = any(child.metrics.get(metrics.STORE_LOSING.name, 0.0) for child in ready)
        lost = sum(child.metrics.get(metrics.ROWS_LOST.name, 0.0) for child in inspectors)
        state = "up" if up else "away, the spool takes no more: rows are lost" if losing else "away: rows are spooled"
        detail = f"{len(ready)} of {len(inspectors)} inspectors, database {state}"
        if lost:
            detail += f"; {lost:.0f} rows lost since their start"
        return {"ok": bool(ready) and not losing, "detail": detail}


def _as_app_error(error: BaseException) -> AppError:
    if isinstance(error, AppError):
        return error
    code = Exit(error.code) if isinstance(error, StartFailed) else Exit.FAILED
    if isinstance(error, NetfilterError):
        code = Exit.PRIVILEGE
    if isinstance(error, TimeoutError):
        code = Exit.TIMEOUT
    failure = AppError(str(error))
    failure.exit = code
    return failure


def _raise_file_limit(document: Document) -> None:
    """Two descriptors a connection; the usual soft limit of 1024 is a limit for shells."""
    wanted = 4 * (document.limits.max_connections or 1 << 18) + 1024
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if os.geteuid() == 0 and hard != resource.RLIM_INFINITY and hard < wanted:
        with contextlib.suppress(ValueError, OSError):  # a container may forbid it; then the hard limit must do
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
            return
    target = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
