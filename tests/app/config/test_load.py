from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.app.config import Document, Loaded, load
from appliance.app.config.load import keys, validate
from appliance.app.config.source import parse_yaml

FIXTURES = Path(__file__).parent / "fixtures"


def loaded(tmp_path: Path, text: str, **options: object) -> Loaded:
    file = tmp_path / "weir.yaml"
    file.write_text(text)
    options.setdefault("environ", {})
    return load([file], **options)  # type: ignore[arg-type]


def good(tmp_path: Path, text: str, **options: object) -> Document:
    result = loaded(tmp_path, text, **options)
    assert result.document is not None, [str(problem) for problem in result.problems]
    return result.document


@pytest.mark.parametrize("name", ["mission-proxy.yaml", "mission-retention.yaml"])
def test_the_mission_s_examples_load_with_their_keys_as_they_are(name: str) -> None:
    result = load([FIXTURES / name], environ={})
    assert not result.errors
    assert result.document is not None


def test_the_mission_s_values_arrive_in_base_units() -> None:
    document = load([FIXTURES / "mission-proxy.yaml"], environ={}).document
    assert document is not None
    assert document.protocols.http.max_body_size == 10 << 20
    assert document.protocols.http.compression.min_size == 1024
    assert document.protocols.detection.default_timeout == 0.1
    assert document.protocols.detection.port_mappings[5432] == "postgres"
    assert document.proxy.direct_http is not None
    assert document.proxy.direct_http.load_balancing.health_checks.interval == 10
    assert document.proxy.direct_http.default_upstream is not None
    assert document.transformations[0].rules[0].replace == "Bearer ${env.API_TOKEN}"


def test_the_mission_s_slip_gets_an_error_that_says_what_to_write() -> None:
    result = load([FIXTURES / "mission-proxy-slip.yaml"], environ={})
    [error] = result.errors
    assert error.place.line == 28 and "default_upstream" in error.message
    assert not [
        problem for problem in result.problems if "default_upstream" in problem.message and problem is not error
    ]


@pytest.mark.parametrize(
    "text",
    [
        "proxy: {direct_http: {upstream_routing: [{default: {upstream: 'a:1'}}]}}",
        "proxy:\n  direct_http:\n    upstream_routing: []\n    default: {upstream: 'a:1'}",
    ],
)
def test_the_slip_in_other_shapes_says_the_same(tmp_path: Path, text: str) -> None:
    assert any("direct_http.default_upstream" in error.message for error in loaded(tmp_path, text).errors)


TWELVE = """\
state_dri: /var/lib/weir
proxy:
  mode: sockz
  bind_address: "0.0.0.0"
  socks: {users: [{username: dev, password: "${env.MISSING}"}], auth_method: username_password}
limits:
  max_connections: many
  per_source_rate: 200/x
protocols:
  bypass_rules: [{port: 99999}]
  detection: {default_timeout: 100xs}
  http: {max_body_size: 10XB, sampling: {default_rate: 1.5}}
api: {bind_address: "0.0.0.0:8088"}
logging: {level: verbos}
"""


def test_twelve_mistakes_give_twelve_messages_each_at_its_text(tmp_path: Path) -> None:
    errors = loaded(tmp_path, TWELVE).errors
    assert [(error.place.line, error.place.column, error.key) for error in errors] == [
        (1, 1, "state_dri"),
        (3, 9, "proxy.mode"),
        (4, 17, "proxy.bind_address"),
        (5, 45, "proxy.socks.users[0].password"),
        (7, 20, "limits.max_connections"),
        (8, 20, "limits.per_source_rate"),
        (10, 25, "protocols.bypass_rules[0].port"),
        (11, 32, "protocols.detection.default_timeout"),
        (12, 25, "protocols.http.max_body_size"),
        (12, 56, "protocols.http.sampling.default_rate"),
        (13, 21, "api.bind_address"),
        (14, 18, "logging.level"),
    ]
    assert "did you mean 'state_dir'" in str(errors[0])
    assert "did you mean 'verbose'" not in str(errors[-1])
    assert "did you mean 'socks'" in str(errors[1])
    for error in errors:
        assert str(error).startswith(
            f"{tmp_path}/weir.yaml:{error.place.line}:{error.place.column}: error: {error.key}: "
        )


def test_the_source_line_is_shown_but_not_when_it_holds_a_secret(tmp_path: Path) -> None:
    result = loaded(
        tmp_path, "limits: {max_connections: x}\nproxy:\n  socks:\n    users: [{password: 'hush', username: 7}]\n"
    )
    text = "\n".join(error.pretty() for error in result.errors)
    assert "limits: {max_connections: x}\n" in text
    assert "proxy.socks.users[0].username: 7 is not a text" in text
    assert "hush" not in text and "users: [{password: [hidden]" in text
    for written in ("tokens: [hush]", "tokens:\n  - hush", "'tokens' : [hush]"):
        tokens = loaded(tmp_path, f"api:\n  {written}\n")
        assert "hush" not in "".join(error.pretty() for error in tokens.errors) and tokens.errors
    slip = loaded(tmp_path, "proxy: {socks: {users: [{usernme: dev, password: hush}]}}\n")
    assert "hush" not in "".join(error.pretty() for error in slip.errors) and slip.errors


def test_a_word_in_the_wrong_section_is_told_where_it_belongs(tmp_path: Path) -> None:
    [error] = loaded(tmp_path, "upstream_routing: []").errors
    assert "'proxy.direct_http.upstream_routing'" in error.message


def test_precedence_is_file_then_conf_d_then_dotenv_then_environment_then_set(tmp_path: Path) -> None:
    text = (
        "limits: {max_connections: 1, per_source_connections: 1, per_source_burst: 1}\n"
        "engine: {backlog: 1, workers: 1}\n"
    )
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "10-more.yaml").write_text(
        "limits: {per_source_connections: 2, per_source_burst: 2}\nengine: {backlog: 2, workers: 2}\n"
    )
    (tmp_path / ".env").write_text(
        "# comment\nexport WEIR__LIMITS__PER_SOURCE_BURST='3'\nWEIR__ENGINE__BACKLOG=3\nWEIR__ENGINE__WORKERS=3 # too\n"
    )
    environ = {"WEIR__ENGINE__BACKLOG": "4", "WEIR__ENGINE__WORKERS": "4", "WEIR_API": "ignored"}
    document = good(tmp_path, text, environ=environ, settings=["engine.workers=5"])
    limits, engine = document.limits, document.engine
    assert [limits.max_connections, limits.per_source_connections, limits.per_source_burst] == [1, 2, 3]
    assert [engine.backlog, engine.workers] == [4, 5]


def test_later_files_win_over_earlier_ones_and_mistakes_point_at_the_file_that_decided(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("logging: {level: debug, format: xml}\n")
    second.write_text("logging:\n  level: loud\n")
    result = load([first, second], environ={})
    assert [(Path(error.place.file).name, error.place.line) for error in result.errors] == [
        ("a.yaml", 1),
        ("b.yaml", 2),
    ]


def test_settings_reach_into_lists_and_mistakes_in_them_are_named(tmp_path: Path) -> None:
    text = "proxy: {socks: {auth_method: username_password, users: [{username: a, password: b}]}}"
    document = good(tmp_path, text, settings=["proxy.socks.users.0.password=c", "proxy.bind_address=[':1', '[::1]:2']"])
    assert document.proxy.socks.users[0].password == "c"
    assert document.proxy.bind_address == ("[::]:1", "[::1]:2")
    document = good(tmp_path, "", settings=["protocols.detection.port_mappings.8080=http"])
    assert document.protocols.detection.port_mappings == {8080: "http"}
    errors = loaded(
        tmp_path, text, settings=["proxy.socks.users.7.password=c", "nonsense", "api.x=1", "limits.a.b=1"]
    ).errors
    assert [(error.place.file, error.place.line) for error in errors] == [("--set", n) for n in (1, 2, 3, 4)]


def test_secrets_come_from_environment_dotenv_and_files_and_are_reported_as_secret(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("from-file\n")
    (tmp_path / ".env").write_text('OTHER_TOKEN="a-token-of-sixteen"\n')
    text = f"""
proxy:
  socks:
    auth_method: username_password
    users: [{{username: "${{env.NAME}}", password: "${{file:{tmp_path}/password}}"}}]
api: {{tokens: ["${{env.OTHER_TOKEN}}"]}}
state_dir: "/tmp/$${{literal}}"
"""
    result = loaded(tmp_path, text, environ={"NAME": "dev"})
    document = result.document
    assert document is not None, result.problems
    assert document.proxy.socks.users[0].username == "dev"
    assert document.proxy.socks.users[0].password == "from-file"
    assert str(document.state_dir) == "/tmp/${literal}"
    assert {"from-file", "a-token-of-sixteen"} <= result.secrets


@pytest.mark.parametrize("reference", ["${env.NOPE}", "${file:/nonexistent}", "${nonsense}", "${file:}"])
def test_a_reference_that_leads_nowhere_is_one_error_with_a_position(tmp_path: Path, reference: str) -> None:
    [error] = loaded(tmp_path, f"storage:\n  dsn: '{reference}'\n").errors
    assert (error.place.line, error.place.column) == (2, 8) and reference.split(":")[0] in error.message


def test_references_in_transformations_are_not_needed_until_a_rule_is_applied(tmp_path: Path) -> None:
    text = "transformations: [{name: a, protocol: http, rules: [{match: x, replace: '${env.NOPE}'}]}]"
    assert good(tmp_path, text).transformations[0].rules[0].replace == "${env.NOPE}"


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("proxy: {mode: direct_http}", "proxy.direct_http", "section is missing"),
        ("proxy: {mode: transparent}", "proxy.transparent", "section is missing"),
        ("proxy: {mode: hybrid, transparent: {}}", "proxy.transparent.interfaces", "at least one interface"),
        ("proxy: {mode: hybrid, direct_http: {}}", "proxy.direct_http", "nowhere to send"),
        ("proxy: {socks: {auth_method: username_password}}", "proxy.socks.users", "nobody"),
        ("proxy: {bind_address: '0.0.0.0:8088'}", "api.bind_address", "taken by proxy.bind_address"),
        ("engine: {workers: 2, inspectors: 3}", "engine.inspectors", "exactly one"),
        ("engine: {tap: {ring_size: 4MB, turn_head: 4MB}}", "engine.tap.turn_head", "two whole turns"),
        ("protocols: {bypass_rules: [{mode: fast_path}]}", "protocols.bypass_rules[0]", "everything"),
        ("protocols: {bypass_rules: [{address: 'a.*.b'}]}", "protocols.bypass_rules[0].address", "star"),
        ("protocols: {bypass_rules: [{address: 'a:1', port: 2}]}", "protocols.bypass_rules[0].port", "says 1"),
        ("storage: {dsn: sqlite}", "storage.dsn", "postgresql://"),
        ("api: {bind_address: '[::]:8088'}", "api.bind_address", "api.tokens"),
        ("api: {tokens: [short]}", "api.tokens[0]", "at least 16"),
        ("state_dir: here", "state_dir", "relative"),
        (f"state_dir: /{'d' * 90}", "state_dir", "bytes too long"),
        ("proxy: {bind_address: 'example.com:1'}", "proxy.bind_address", "is a name"),
        ("proxy: {socks: {allow: [1.2.3.4/99]}}", "proxy.socks.allow[0]", "not a network"),
    ],
)
def test_what_contradicts_is_an_error(tmp_path: Path, text: str, key: str, words: str) -> None:
    [error] = loaded(tmp_path, text).errors
    assert error.key == key and words in error.message, str(error)


def test_keys_that_do_nothing_yet_are_warned_about(tmp_path: Path) -> None:
    result = loaded(
        tmp_path, "proxy: {tls: {cert_path: a.crt}, transparent: {}}\nstorage: {retention: {hot_tier: {}}}\n"
    )
    assert result.document is not None
    assert [(problem.key, problem.severity) for problem in result.problems] == [
        ("proxy.tls", "warning"),
        ("proxy.transparent", "warning"),
        ("storage.retention", "warning"),
    ]


def test_a_document_survives_the_channel() -> None:
    for name in ("mission-proxy.yaml", "mission-retention.yaml"):
        document = load([FIXTURES / name], environ={}).document
        assert document is not None
        assert Document.model_validate(document.model_dump(mode="json")) == document


@pytest.mark.parametrize(
    "text",
    [
        "\tproxy: {}",
        "a: b: c",
        "- 1\n- 2",
        "just words",
        "a: &a [*a]",
        "a: &a {x: *a}",
        "? [1, 2]\n: 3",
        "%YAML 9.9\n---\n",
        "%TAG ! !\n",
        "!!python/object:os.system {}",
        "state_dir: !!binary aGk=",
        '"\\xZZ": 1',
        "[" * 5000,
        "{" * 5000,
        "a: \x00",
        "---\na: 1\n---\nb: 2\n",
        "a: &x [1]\n"
        + "".join(f"k{i}: &x{i} [{', '.join(['*x' + str(i - 1) if i else '*x'] * 10)}]\n" for i in range(12)),
        "limits: {max_connections: 1e999}",
        "limits: {max_connections: .nan}",
        f"limits: {{max_connections: {'9' * 5000}}}",
        'state_dir: "\\0"',
        "limits: null",
        "proxy: [1]",
        "<<: 3",
    ],
)
def test_malformed_files_are_errors_and_never_a_crash(tmp_path: Path, text: str) -> None:
    result = loaded(tmp_path, text)
    assert result.errors and result.document is None
    for error in result.errors:
        assert error.message and error.place.line >= 1 and "\n" not in error.message


def test_binary_missing_and_unreadable_files_are_errors(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, words in (("binary", "UTF-8"), ("missing", "No such file"), (".", "directory")):
        [error] = load([tmp_path / name], environ={}).errors
        assert words in error.message


_scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.just("${env.X}"))
_words = st.sampled_from(sorted({part for key in keys() for part in key.split(".")})) | st.text(max_size=6)
_documents = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_words, inner, max_size=4), max_leaves=20
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(Document.model_fields)), _documents, max_size=4))
def test_any_tree_is_a_document_or_errors(data: dict[str, object]) -> None:
    import json

    tree, problems = parse_yaml(json.dumps(data), "x.yaml")
    document, found = validate(tree)
    assert (document is None) == any(problem.severity == "error" for problem in found)
    for problem in problems + found:
        assert problem.pretty().startswith("x.yaml:")


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab:-[]{}&*!|>'\"%#?,\n\t 0.\x00\\~<"), max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    tree, problems = parse_yaml(text, "x.yaml")
    validate(tree)
    for problem in problems:
        assert str(problem)
