"""Every verb of ``weir``: what it takes, and which module does it."""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from appliance.app.cli.output import Format, complain, emit
from appliance.app.errors import AppError, ConfigurationFailed, DaemonUnreachable, Exit

Files = Annotated[list[Path] | None, typer.Option("--config", "-c", metavar="FILE", help="Configuration; repeatable.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="One setting; repeatable.")]
Output = Annotated[Format, typer.Option("-o", "--output", help="How to show it.")]
Api = Annotated[str | None, typer.Option("--api", metavar="URL", help="The daemon's API. [env: WEIR_API]")]
Token = Annotated[str | None, typer.Option("--token", envvar="WEIR_TOKEN", help="Bearer token.", show_default=False)]
Filter = Annotated[str, typer.Argument(metavar="[FILTER]", help="Filter, as in the API's q=.")]

app = typer.Typer(
    name="weir",
    help="Intercept, relay, understand, store, query.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: weir run --config weir.yaml",
)
flows = typer.Typer(no_args_is_help=True, help="What went through: tail, list, show.")
db = typer.Typer(no_args_is_help=True, help="The database: migrate, status.")
config = typer.Typer(no_args_is_help=True, help="The configuration: show, schema, example, reference.")
app.add_typer(flows, name="flows")
app.add_typer(db, name="db")
app.add_typer(config, name="config")


def run() -> NoReturn:
    """Run ``weir`` with this process's arguments."""
    try:
        app()
    except AppError as error:
        complain(str(error) if isinstance(error, ConfigurationFailed) else f"weir: {error}")
        sys.exit(error.exit)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        # The reader of our pipe has seen enough. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    sys.exit(Exit.OK)


@app.command("run", epilog="Example: weir run --config weir.yaml --set logging.level=debug")
def run_daemon(files: Files = None, settings: Settings = None) -> None:
    """Run the daemon in the foreground; SIGTERM drains, SIGHUP reloads."""
    from appliance.app.cli.daemon import serve

    serve(files or [], settings or [])


@app.command(epilog="Example: weir validate --config weir.yaml")
def validate(files: Files = None, settings: Settings = None, output: Output = Format.TABLE) -> None:
    """Name every mistake in the configuration."""
    from appliance.app.cli.configuration import validate

    validate(files or [], settings or [], output)


@app.command(epilog="Example: weir reload --config /etc/weir/weir.yaml")
def reload(files: Files = None, api: Api = None, token: Token = None, output: Output = Format.TABLE) -> None:
    """Let the daemon read its configuration again; says what changed and what needs a restart."""
    from appliance.app.cli.daemon import reload

    reload(files or [], api, token, output)


@app.command(epilog="Example: weir status -o json")
def status(files: Files = None, api: Api = None, token: Token = None, output: Output = Format.TABLE) -> None:
    """How the daemon is. Exit code 0 when ready, 1 when not."""
    from appliance.app.cli.daemon import status

    status(_daemon(api, token, files), output)


@app.command(epilog="Example: sudo weir doctor --config weir.yaml")
def doctor(
    files: Files = None,
    settings: Settings = None,
    output: Output = Format.TABLE,
    probe: Annotated[bool, typer.Option(help="Send connections through the path, too.")] = True,
) -> None:
    """Examine the path of intercepted connections; names the broken hop and its fix."""
    from appliance.app.cli.configuration import doctor

    doctor(files or [], settings or [], output, probe=probe)


@app.command(epilog="Example: sudo weir lab --once -o json")
def lab(
    action: Annotated[str, typer.Argument(help="Nothing, or: down.")] = "up",
    once: Annotated[bool, typer.Option("--once", help="Do the main job once, then take the lab down.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Do the main job in a lab of network namespaces on this machine; needs root."""
    from appliance.tools.lab import main as laboratory

    if action not in ("up", "down"):
        raise typer.BadParameter(f"{action!r} is neither up nor down", param_hint="action")
    code = laboratory.down() if action == "down" else laboratory.run(once=once, output=output.value)
    raise typer.Exit(code)


@app.command(epilog="Example: weir version")
def version() -> None:
    """Which version this is."""
    import platform

    import appliance

    emit(f"weir {appliance.__version__} (Python {platform.python_version()})")


@flows.command(epilog="Example: weir flows tail 'status >= 500'")
def tail(
    q: Filter = "",
    kind: Annotated[str | None, typer.Option(help="exchange or connection.")] = None,
    files: Files = None,
    api: Api = None,
    token: Token = None,
    output: Output = Format.TABLE,
) -> None:
    """Show exchanges as they happen."""
    from appliance.app.cli.flows import tail

    tail(_daemon(api, token, files), q, kind, output)


@flows.command("list", epilog="Example: weir flows list 'domain = shop.example' --limit 20")
def list_(
    q: Filter = "",
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many, newest first.")] = 50,
    connections: Annotated[bool, typer.Option("--connections", help="Connections instead of exchanges.")] = False,
    files: Files = None,
    api: Api = None,
    token: Token = None,
    output: Output = Format.TABLE,
) -> None:
    """List what was recorded."""
    from appliance.app.cli.flows import listing

    listing(_daemon(api, token, files), q, limit, output, connections=connections)


@flows.command(epilog="Example: weir flows show 0198c0de-0000-7000-8000-000000000000")
def show(
    id: Annotated[str, typer.Argument(metavar="ID", help="An exchange or connection.")],
    bodies: Annotated[bool, typer.Option(help="Show the bodies, too.")] = True,
    files: Files = None,
    api: Api = None,
    token: Token = None,
    output: Output = Format.TABLE,
) -> None:
    """Show one exchange with its bodies, or one connection."""
    from appliance.app.cli.flows import show

    show(_daemon(api, token, files), id, output, bodies=bodies)


@db.command(epilog="Example: weir db migrate --config weir.yaml")
def migrate(files: Files = None, settings: Settings = None, output: Output = Format.TABLE) -> None:
    """Bring the schema forward. The daemon does so at its start; this is for databases of your own."""
    from appliance.app.cli.database import migrate

    migrate(files or [], settings or [], output)


@db.command("status", epilog="Example: weir db status --config weir.yaml")
def db_status(files: Files = None, settings: Settings = None, output: Output = Format.TABLE) -> None:
    """Which migrations are applied, and how much is stored."""
    from appliance.app.cli.database import status

    status(files or [], settings or [], output)


@config.command("show", epilog="Example: weir config show --config weir.yaml -o json")
def config_show(files: Files = None, settings: Settings = None, output: Output = Format.TABLE) -> None:
    """Show the configuration in force after all sources, with its secrets hidden."""
    from appliance.app.cli.configuration import show

    show(files or [], settings or [], output)


@config.command("schema", epilog="Example: weir config schema > weir.schema.json")
def config_schema() -> None:
    """Print the JSON schema, for editors."""
    from appliance.app.cli.configuration import schema

    schema()


@config.command("example", epilog="Example: weir config example > weir.yaml")
def config_example() -> None:
    """Print a configuration to start from."""
    from appliance.app.config.reference import EXAMPLE

    emit(EXAMPLE.rstrip())


@config.command("reference", epilog="Example: weir config reference > docs/configuration.md")
def config_reference() -> None:
    """Print every key with its default, in Markdown."""
    from appliance.app.config.reference import markdown

    emit(markdown().rstrip())


def _daemon(api: str | None, token: str | None, files: list[Path] | None) -> Any:
    from appliance.app.cli.api import Daemon, address

    try:
        return Daemon(address(api, files or []), token)
    except ValueError as error:
        raise DaemonUnreachable(str(error)) from error
