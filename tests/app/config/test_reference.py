import json
from pathlib import Path

from appliance.app.config import Document
from appliance.app.config.load import keys, validate
from appliance.app.config.reference import EXAMPLE, as_yaml, entries, markdown, schema, shown
from appliance.app.config.source import parse_yaml

DOCUMENTATION = Path(__file__).parents[3] / "docs" / "configuration.md"


def test_the_documentation_is_what_the_program_says() -> None:
    assert DOCUMENTATION.read_text() == markdown(), "run: ./run weir config reference > docs/configuration.md"


def test_every_key_is_documented_with_words() -> None:
    text = DOCUMENTATION.read_text()
    for entry in entries():
        assert f"| `{entry.name}` |" in text
        assert entry.text.endswith("."), entry.name
    assert {entry.name.replace("[]", "") for entry in entries()} == set(keys())


def test_the_example_is_valid() -> None:
    tree, problems = parse_yaml(EXAMPLE, "example")
    document, found = validate(tree)
    assert document == Document() and not problems and not found


def test_what_is_shown_reads_back_and_holds_no_secret() -> None:
    document = Document.model_validate(
        {
            "proxy": {"socks": {"users": [{"username": "dev", "password": "hunter2"}]}},
            "storage": {"dsn": "postgresql://weir:hunter2@db/weir"},
            "api": {"tokens": ["hunter2hunter2hunter2"]},
        }
    )
    text = as_yaml(shown(document)) + json.dumps(shown(document))
    assert "hunter2" not in text and "dev" in text
    tree, _ = parse_yaml(as_yaml(shown(Document())), "shown")
    assert validate(tree)[0] == Document()


def test_the_schema_knows_every_section() -> None:
    assert set(schema()["properties"]) == set(Document.model_fields)
