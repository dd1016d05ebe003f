"""The OpenAPI document is true: schemathesis finds no answer of ours that it does not describe, and no 5xx."""

import asyncio
import sys
from pathlib import Path

import pytest
import schemathesis

from tests.api.scene import Scene
from tests.api.test_process import running
from tests.postgres import temporary_directory

CHECKS = [
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
]


async def explore(url: str, directory: Path, checks: list[str], examples: int, seconds: int) -> str:
    """Run it; returns what it found, empty when that is nothing."""
    process = await asyncio.create_subprocess_exec(
        *(str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/api/openapi.json"),
        *("--checks", ",".join(checks), "--max-examples", str(examples), "--generation-deterministic"),
        *("--phases", "examples,coverage,fuzzing", "--max-time", str(seconds), "--no-color", "--warnings", "off"),
        *("--no-shrink", "--continue-on-failure"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=directory,
    )
    said, _ = await process.communicate()
    text = said.decode()
    assert "Test cases:" in text, text
    return "" if process.returncode == 0 else text


@pytest.mark.postgres
async def test_no_answer_is_undocumented_and_none_is_our_failure(scene: Scene) -> None:
    with temporary_directory() as directory:
        async with running(directory, dsn=scene.dsn) as made:
            assert await explore(made.url, directory, ["not_a_server_error", *CHECKS], 25, 20) == ""


async def test_without_a_database_no_answer_is_undocumented_either() -> None:
    with temporary_directory() as directory:
        async with running(directory) as made:
            assert await explore(made.url, directory, CHECKS, 2, 10) == ""


@pytest.mark.postgres
async def test_real_records_are_what_the_document_says(scene: Scene) -> None:
    """Random ids find nothing; these do."""
    ids = [*scene.ids.values(), scene.exchanges[0]]
    with temporary_directory() as directory:
        async with running(directory, dsn=scene.dsn) as made:

            def ask() -> None:
                document = schemathesis.openapi.from_url(f"{made.url}/api/openapi.json")
                for path in ("", "/request", "/response"):
                    operation = document[f"/api/v1/exchanges/{{id}}{path}"]["GET"]
                    for id in ids:
                        answer = operation.Case(path_parameters={"id": str(id)}).call_and_validate()
                        assert answer.status_code == 200
                operation = document["/api/v1/connections/{id}"]["GET"]
                answer = operation.Case(path_parameters={"id": str(scene.connections[0])}).call_and_validate()
                assert answer.status_code == 200

            await asyncio.to_thread(ask)
