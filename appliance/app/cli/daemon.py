"""``weir run``, ``weir reload``, ``weir status``: the daemon itself, and talking to it."""

import asyncio
import os
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from appliance.app.cli.api import Daemon, address
from appliance.app.cli.output import Format, complain, emit, show, table
from appliance.app.errors import AppError, DaemonUnreachable, PrivilegeMissing


def serve(files: list[Path], settings: list[str]) -> None:
    """Run the daemon until it is told to stop."""
    from appliance.app.cli.configuration import read
    from appliance.app.config import load
    from appliance.app.supervisor import Supervisor
    from appliance.observe import logging

    loaded = read(files, settings)
    if loaded.document is None:
        return
    logging.conceal(loaded.secrets)
    logging.configure(loaded.document.logging.level, loaded.document.logging.format, process="supervisor")
    log = logging.get_logger("configuration")
    for problem in loaded.problems:
        log.warning(problem.message, key=problem.key, file=problem.place.file, line=problem.place.line)

    async def live() -> None:
        await Supervisor(loaded, lambda: load(files, settings=settings)).run()

    try:
        asyncio.run(live())
    except BaseExceptionGroup as group:
        # Our own mistakes come as a group from the supervisor's tasks; show what a person can read.
        log.error("the supervisor failed", exc_info=group)
        raise AppError("; ".join(str(error) or type(error).__name__ for error in group.exceptions)) from group


def reload(files: list[Path], api: str | None, token: str | None, output: Format) -> None:
    """Ask the daemon to read its configuration again: by its API, else by SIGHUP to the process in state_dir."""
    try:
        answer = Daemon(address(api, files), token).post("/api/v1/reload")
    except DaemonUnreachable:
        if api is not None:
            raise
        _hang_up(files)
        return
    lines = [("changed", key) for key in answer.get("changed", [])]
    lines += [("needs a restart", key) for key in answer.get("needs_restart", [])]
    if output is Format.TABLE:
        for warning in answer.get("warnings", []):
            complain(warning)
        show(answer, output, lines or [("nothing", "changed")])
    else:
        show(answer, output)


def status(daemon: Daemon, output: Format) -> None:
    """Show how the daemon is; raises with exit code 1 when it is not ready."""
    answer = daemon.status()
    if output is Format.TABLE:
        _show_status(answer)
    else:
        show(answer, output)
    if not answer.get("ready", answer.get("ok")):
        raise AppError("not ready")


def _hang_up(files: list[Path]) -> None:
    from appliance.app.cli.configuration import document
    from appliance.app.state import running
    from appliance.app.wiring import Places

    state_dir = document(files, []).state_dir
    pid = running(Places(state_dir))
    if pid is None:
        raise DaemonUnreachable(f"no weir uses {state_dir} (is it running? else: --config FILE, or --api URL)")
    try:
        os.kill(pid, signal.SIGHUP)
    except PermissionError as error:
        raise PrivilegeMissing(f"process {pid} is not ours: run weir reload as its user, or as root") from error
    emit(f"told process {pid} to reload; its log says what changed")


def _show_status(answer: dict[str, Any]) -> None:
    engine = answer.get("engine", answer)
    started = engine.get("started")
    lines = [
        ("ready", answer.get("ready", answer.get("ok"))),
        *(
            (name, f"{'ok' if check.get('ok') else 'NOT OK'}: {check.get('detail', '')}")
            for name, check in _checks(answer)
        ),
        ("version", engine.get("version")),
        ("since", datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds") if started else None),
    ]
    show({}, Format.TABLE, lines)
    processes = engine.get("processes") or []
    if processes:
        emit("")
        table(processes, ("name", "state", "pid", "restarts"))


def _checks(answer: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return list((answer.get("checks") or {}).items())
