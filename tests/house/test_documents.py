"""What README and the documents tell people to type exists, and what is cheap to type works."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.partition("  #")[0].strip()
    for block in re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
    if line.strip()
]
OURS = [shlex.split(line.removeprefix("sudo ")) for line in COMMANDS if "./run" in line]
VERBS = re.findall(
    r"^  ([a-z-]+) ", subprocess.run([ROOT / "run"], capture_output=True, text=True, check=True).stdout, re.M
)


def run(*argv: str, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [ROOT / "run", *argv],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


def test_the_two_commands_are_the_ones_of_the_readme() -> None:
    assert "sudo ./run lab" in COMMANDS
    assert "sudo ./run test" in COMMANDS


@pytest.mark.parametrize("words", OURS, ids=" ".join)
def test_a_command_of_the_readme_is_one_that_exists(words: list[str]) -> None:
    assert words[0] == "./run"
    assert words[1] in VERBS
    if words[1] == "weir":
        commands = [word for word in words[2:4] if word.isalpha()]
        described = run("weir", *commands, "--help")
        assert described.returncode == 0, described.stderr
        for option in (word for word in words if word.startswith("--")):
            assert option in described.stdout


def test_the_configuration_of_the_readme_is_valid(tmp_path: Path) -> None:
    (document,) = re.findall(r"^```yaml\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    file = tmp_path / "weir.yaml"
    file.write_text(document)
    validated = run("weir", "validate", "--config", str(file), cwd=tmp_path)
    assert validated.returncode == 0, validated.stdout + validated.stderr


@pytest.mark.parametrize("document", ["README.md", "CHANGELOG.md", "docs/performance.md"])
def test_links_lead_to_something(document: str) -> None:
    path = ROOT / document
    links = re.findall(r"\]\(([^)#]+)", path.read_text())
    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []


def test_every_decision_has_a_number_of_its_own_and_says_it() -> None:
    records = sorted((ROOT / "docs" / "adr").glob("*.md"))
    numbers = [record.name[:4] for record in records]
    assert len(set(numbers)) == len(numbers) > 0
    assert [one.name for one in records if not one.read_text().startswith(f"# {one.name[:4]} · ")] == []


def test_run_without_a_verb_lists_the_verbs_one_line_each() -> None:
    listed = run()
    assert listed.returncode == 0
    assert {"lab", "test", "check", "bench", "weir", "fmt"} <= set(VERBS)
    assert all(len(line) < 120 for line in listed.stdout.splitlines())


def test_every_verb_that_is_listed_is_handled() -> None:
    script = (ROOT / "run").read_text()
    assert [verb for verb in VERBS if f"\n{verb})\n" not in script] == []


def test_an_unknown_verb_says_what_to_do() -> None:
    refused = run("nope")
    assert refused.returncode == 2
    assert "no verb is called nope" in refused.stderr
    assert "try:" in refused.stderr


def test_run_works_from_any_directory(tmp_path: Path) -> None:
    assert run("weir", "version", cwd=tmp_path).returncode == 0


def test_continuous_integration_runs_the_tests_and_nothing_else() -> None:
    lines = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if "./run" in line]
    assert lines == ["./run test"]
