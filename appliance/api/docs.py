"""The API's documentation, served by ourselves: no script, nothing from elsewhere.

``/api/openapi.json`` is the OpenAPI 3.1 document; ``/api/docs`` is the same for people.
"""

import hashlib
from base64 import b64encode
from html import escape
from typing import Any

from litestar import Request
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, OpenAPIRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme

from appliance import __version__

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b2733;
  background: #fff }
code, .path { font-family: ui-monospace, monospace } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccd5dd }
summary { cursor: pointer; padding: .3rem 0 } .method { display: inline-block; min-width: 3.5rem; font-weight: 600 }
table { border-collapse: collapse; margin: .5rem 0 1rem } td, th { text-align: left; vertical-align: top;
  padding: .2rem .8rem .2rem 0 } th { font-weight: 600 } .quiet { color: #5b6b7a }
@media (prefers-color-scheme: dark) { body { background: #12181e; color: #d7e0e8 } h2 { border-color: #33414e } }
"""
_HASH = b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
CONTENT_SECURITY_POLICY = f"default-src 'none'; style-src 'sha256-{_HASH}'; frame-ancestors 'none'; base-uri 'none'"

_ABOUT = """What Weir recorded, and how it is. Lists answer {"items": […], "next": cursor or null}; errors are problem
details (RFC 9457). Every list takes q, a filter in the language of docs/filter-language.md. The live feed is a
WebSocket at /api/v1/live (parameters q, kinds, since); docs/api.md describes its messages."""


class Pages(OpenAPIRenderPlugin):
    """The document as one page of HTML."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """Render every operation, by tag."""
        return page(openapi_schema).encode()


def config() -> OpenAPIConfig:
    """What Litestar is to document, and where it is served."""
    return OpenAPIConfig(
        title="Weir",
        version=__version__,
        description=" ".join(_ABOUT.split()),
        path="/api",
        render_plugins=[
            JsonRenderPlugin(path="/openapi.json", media_type="application/json"),  # type: ignore[arg-type]
            Pages(path="/docs"),
        ],
        components=Components(
            security_schemes={
                "token": SecurityScheme(
                    type="http",
                    scheme="bearer",
                    description="One of api.tokens. Not needed while the API listens on loopback only and has none.",
                )
            }
        ),
        security=[{}, {"token": []}],
        use_handler_docstrings=True,
    )


def page(document: dict[str, Any]) -> str:
    """The OpenAPI document as HTML. Everything in it is escaped."""
    by_tag: dict[str, list[str]] = {}
    for path, item in document["paths"].items():
        for method in ("get", "post", "put", "delete"):
            operation = item.get(method)
            if operation:
                tag = (operation.get("tags") or ["other"])[0]
                by_tag.setdefault(tag, []).append(_operation(method, path, operation))
    info = document["info"]
    sections = "".join(f"<h2>{escape(tag)}</h2>{''.join(operations)}" for tag, operations in sorted(by_tag.items()))
    schemas = "".join(
        _schema(name, schema) for name, schema in sorted(document.get("components", {}).get("schemas", {}).items())
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(info['title'])} API</title>"
        f"<meta name=viewport content='width=device-width'><style>{_STYLE}</style>"
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])}</p>"
        f"<p><a href=openapi.json>OpenAPI document</a></p>{sections}<h2>Schemas</h2>{schemas}</html>"
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(one['name'])}</code><td class=quiet>{escape(_type(one['schema']))}"
        f"<td>{escape(one.get('description', ''))}</tr>"
        for one in operation.get("parameters", [])
    )
    answers = "".join(
        f"<tr><td><code>{escape(status)}</code><td>{escape(answer.get('description', ''))}"
        f"<td class=quiet>{escape('; '.join(_media(answer)))}</tr>"
        for status, answer in sorted(operation["responses"].items())
    )
    about = operation.get("description") or operation.get("summary") or ""
    return (
        f"<details><summary><span class=method>{method.upper()}</span> <span class=path>{escape(path)}</span></summary>"
        f"<p>{escape(about)}</p>{f'<table>{rows}</table>' if rows else ''}<table>{answers}</table></details>"
    )


def _media(answer: dict[str, Any]) -> list[str]:
    content = answer.get("content") or {}
    return [f"{media}: {_type(form.get('schema', {}))}" for media, form in content.items()]


def _schema(name: str, schema: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code><td class=quiet>{escape(_type(form))}</tr>"
        for field, form in schema.get("properties", {}).items()
    )
    about = escape(schema.get("description", ""))
    return f"<details><summary class=path>{escape(name)}</summary><p>{about}</p><table>{rows}</table></details>"


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    for several in ("oneOf", "anyOf"):
        if several in schema:
            return " or ".join(_type(one) for one in schema[several])
    if "enum" in schema:
        return " | ".join(str(value) for value in schema["enum"])
    kind = schema.get("type", "any")
    name = " or ".join(kind) if isinstance(kind, list) else str(kind)
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return f"{name} ({schema['format']})" if "format" in schema else name
