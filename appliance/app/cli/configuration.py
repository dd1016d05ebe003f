"""``weir validate``, ``weir config …``, ``weir doctor``: what needs the configuration but no daemon."""

import asyncio
from pathlib import Path

from appliance.app import wiring
from appliance.app.cli.output import Format, as_json, complain, emit, show_list
from appliance.app.config import Document, Loaded, Problem, load
from appliance.app.config import reference as documentation
from appliance.app.errors import AppError, ConfigurationFailed, Exit


class BrokenPath(AppError):
    """Intercepted connections do not arrive; the text names the broken hops."""

    exit = Exit.PRIVILEGE


def read(files: list[Path], settings: list[str]) -> Loaded:
    """The configuration, or ``ConfigurationFailed`` with every error and its source line."""
    loaded = load(files, settings=settings)
    if loaded.document is None:
        raise ConfigurationFailed(
            "\n".join([problem.pretty() for problem in loaded.problems] + [_count(loaded.errors)])
        )
    return loaded


def document(files: list[Path], settings: list[str]) -> Document:
    """The document alone."""
    found = read(files, settings).document
    if found is None:
        raise ConfigurationFailed("the configuration has errors")
    return found


def validate(files: list[Path], settings: list[str], output: Format) -> None:
    """Name every mistake; also what is accepted but does nothing."""
    loaded = load(files, settings=settings)
    if output is not Format.TABLE:
        items = [_as_data(problem) for problem in loaded.problems]
        if output is Format.JSON:
            emit(as_json({"ok": not loaded.errors, "problems": items}, indent=2))
        else:
            show_list(items, (), output)
        if loaded.errors:
            raise ConfigurationFailed(_count(loaded.errors))
        return
    read(files, settings)
    for problem in loaded.problems:
        complain(problem.pretty())
    emit("the configuration is valid")


def show(files: list[Path], settings: list[str], output: Format) -> None:
    """Print the configuration in force, secrets hidden."""
    data = documentation.shown(document(files, settings))
    emit(documentation.as_yaml(data).rstrip() if output is Format.TABLE else as_json(data, indent=2))


def schema() -> None:
    """Print the JSON schema."""
    emit(as_json(documentation.schema(), indent=2))


def doctor(files: list[Path], settings: list[str], output: Format, *, probe: bool) -> None:
    """Examine the intercepted path; raises with exit code 4 when a hop is broken."""
    from appliance.netfilter.doctor import examine

    policy = wiring.intercept(document(files, settings))
    if policy is None:
        raise AppError(
            "nothing is intercepted with this configuration (proxy.mode transparent or hybrid; --config FILE)"
        )
    findings = asyncio.run(examine(policy, probe=probe))
    items = [
        {"": "ok" if found.ok else "BROKEN", "hop": found.name, "found": found.detail, "fix": found.fix or None}
        for found in findings
    ]
    if output is Format.TABLE:
        show_list(items, ("", "hop", "found", "fix"), output)
    else:
        data = [{"name": each.name, "ok": each.ok, "detail": each.detail, "fix": each.fix} for each in findings]
        show_list(data, (), output)
    broken = [found.name for found in findings if not found.ok]
    if broken:
        raise BrokenPath(f"broken: {', '.join(broken)}")


def _as_data(problem: Problem) -> dict[str, object]:
    place = problem.place
    return {
        "file": place.file,
        "line": place.line,
        "column": place.column,
        "severity": problem.severity,
        "key": problem.key,
        "message": problem.message,
    }


def _count(errors: list[Problem]) -> str:
    return f"{len(errors)} error{'s' * (len(errors) != 1)}: this configuration cannot be used"
