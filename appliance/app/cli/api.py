"""Asking the daemon: its HTTP API, and what it means when nobody answers."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from appliance.app.errors import AppError, DaemonUnreachable, Exit, TookTooLong

DEFAULT = "http://127.0.0.1:8088"


def address(chosen: str | None, files: Sequence[Path]) -> str:
    """Where the API is: as told, ``WEIR_API``, as configured, or where it is by default."""
    found = chosen or os.environ.get("WEIR_API")
    if found:
        return found.rstrip("/") if "://" in found else f"http://{found.rstrip('/')}"
    if files:
        from appliance.app.config import load
        from appliance.model.endpoint import Endpoint, parse_endpoint

        document = load(files).document
        if document is not None:
            host, port = parse_endpoint(document.api.bind_address[0])
            return f"http://{Endpoint({'0.0.0.0': '127.0.0.1', '::': '::1'}.get(host, host), port)}"
    return DEFAULT


class Daemon:
    """A running Weir, by its API. ``token`` is needed when it is not bound to loopback."""

    def __init__(self, url: str, token: str | None, timeout: float = 30.0) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout = timeout

    def get(self, path: str, **parameters: Any) -> Any:
        """The parsed answer. Raises ``DaemonUnreachable``, ``TookTooLong``, or ``AppError`` with the API's reason."""
        return self._ask("GET", path, parameters).json()

    def post(self, path: str, **body: Any) -> Any:
        """The parsed answer to a write."""
        return self._ask("POST", path, {}, body).json()

    def status(self) -> dict[str, Any]:
        """How it is, whether ready or not."""
        return dict(self.get("/api/v1/status"))

    def live(self, **parameters: Any) -> Iterator[dict[str, Any]]:
        """What happens, until interrupted or the daemon ends the feed."""
        from urllib.parse import urlencode

        from websockets.exceptions import InvalidStatus, WebSocketException
        from websockets.sync.client import connect

        query = urlencode({name: value for name, value in parameters.items() if value is not None})
        url = f"{self._url.replace('http', 'ws', 1)}/api/v1/live" + (f"?{query}" if query else "")
        try:
            with connect(url, additional_headers=self._headers, open_timeout=self._timeout, proxy=None) as socket:
                for message in socket:
                    yield json.loads(message)
        except InvalidStatus as error:
            raise _refused(error.response.status_code, bytes(error.response.body or b"")) from error
        except TimeoutError as error:
            raise TookTooLong(f"{self._url} did not answer in {self._timeout:g} s") from error
        except OSError as error:
            raise self._unreachable(error) from error
        except WebSocketException as error:
            raise DaemonUnreachable(f"the live feed of {self._url} ended: {error}") from error

    def _ask(self, method: str, path: str, parameters: dict[str, Any], body: dict[str, Any] | None = None) -> Any:
        import httpx

        chosen = {name: value for name, value in parameters.items() if value is not None}
        try:
            # trust_env=False: this must not go through whatever proxy is set in the environment, ours for instance.
            with httpx.Client(timeout=self._timeout, headers=self._headers, trust_env=False) as client:
                answer = client.request(method, f"{self._url}{path}", params=chosen, json=body)
        except httpx.TimeoutException as error:
            raise TookTooLong(f"{self._url} did not answer in {self._timeout:g} s") from error
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from error
        if answer.status_code >= 300:
            raise _refused(answer.status_code, answer.content)
        return answer

    def _unreachable(self, error: Exception) -> DaemonUnreachable:
        return DaemonUnreachable(f"no answer from {self._url}: {error} (is weir running? else: --api URL or WEIR_API)")


def _refused(status: int, body: bytes) -> AppError:
    """The API's problem document (RFC 9457) as an error."""
    try:
        document = json.loads(body)
        reason = str(document.get("detail") or document.get("title") or document)
    except (ValueError, AttributeError):
        reason = body.decode(errors="replace")[:300]
    hint = " (give a token: --token or WEIR_TOKEN)" if status == 401 else ""
    error = AppError(f"the API answered {status}: {reason}{hint}")
    if status in (401, 403):
        error.exit = Exit.PRIVILEGE
    elif status in (400, 422):
        error.exit = Exit.USAGE
    elif status == 409:  # a reload: the new configuration has errors
        error.exit = Exit.CONFIGURATION
    return error
