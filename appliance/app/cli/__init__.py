"""The command ``weir``. What is behind a verb is imported when it runs: ``weir version`` must not wait for httpx."""

from typing import NoReturn


def main() -> NoReturn:
    """Run the command line of this process; ends it with an exit code of contract §3."""
    from appliance.app.cli.commands import run

    run()
