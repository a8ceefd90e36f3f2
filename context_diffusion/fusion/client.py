"""Ask a web service for JSON, with limits on time and size, retries with back-off, and a key that is never shown.

Everything that can go wrong ends in one sentence. Errors are raised outside any ``except`` block, because the HTTP
client's own errors hold the address they asked for, and the address holds the key.
"""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from ..signatures import check_fields

MAX_BYTES = 1_000_000  # the current weather takes a few hundred
HIDDEN = "(key)"


@dataclass(frozen=True)
class Patience:
    """How patient to be with a service: seconds to wait for an answer, number of retries, seconds before the first.

    The pause doubles with every retry; a service that asks for more than ``longest`` seconds is not asked again.
    """

    timeout: float = 10.0
    retries: int = 3
    backoff: float = 0.5
    longest: float = 30.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.timeout <= 600 or not 0 <= self.backoff <= 600 or not 0 <= self.longest <= 600:
            raise ValueError(f"Waits are between 0 and 600 seconds, and the timeout is above 0; got {self}.")
        if not 0 <= self.retries <= 20:
            raise ValueError(f"retries is a whole number from 0 to 20; got {self.retries!r}.")


@dataclass(frozen=True)
class _Failure:
    """Why there is no answer, whether to ask again, and after how many seconds, if the service said."""

    kind: type[Exception]
    sentence: str
    again: bool = False
    wait: float | None = None


def get_json(
    who: str, url: str, parameters: Mapping[str, object], *, secret: str = "", patience: Patience | None = None
) -> dict:
    """Get a JSON object; ``who`` names the service in messages, in which ``secret`` never appears.

    Raises ``TimeoutError`` if the service is slow, ``PermissionError`` if it refuses the key, ``ValueError`` if it does
    not understand the question or answers with anything but a JSON object, ``ConnectionError`` otherwise.
    """
    patience = patience or Patience()
    attempt = 0
    while isinstance(answer := _attempt(who, url, parameters, secret, patience.timeout), _Failure):
        wait = patience.backoff * 2**attempt if answer.wait is None else answer.wait
        if not answer.again or attempt == patience.retries or wait > patience.longest:
            attempts = f" ({attempt + 1} attempts)" if attempt else ""
            raise answer.kind(_without(secret, answer.sentence + attempts + "."))
        time.sleep(wait)
        attempt += 1
    return answer


def _attempt(who: str, url: str, parameters: Mapping, secret: str, timeout: float) -> dict | _Failure:
    """Ask once."""
    import httpx

    offline = "; a recorded answer works without a network"
    try:
        with _unlogged(secret), httpx.Client(timeout=timeout) as client:
            body, deadline = b"", time.monotonic() + timeout
            with client.stream("GET", url, params=dict(parameters)) as response:
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > MAX_BYTES:
                        return _Failure(
                            ValueError, f"{who} sent more than {MAX_BYTES:,} bytes; no weather is that long"
                        )
                    if time.monotonic() > deadline:
                        raise httpx.ReadTimeout("the body arrives too slowly")
    except httpx.TimeoutException:
        return _Failure(TimeoutError, f"{who} gave no answer within {timeout:g} s{offline}", again=True)
    except httpx.TransportError as error:
        name = type(error).__name__
        return _Failure(ConnectionError, f"{who} cannot be reached or broke off ({name}){offline}", again=True)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return _Failure(ConnectionError, f"{who} cannot be asked ({type(error).__name__})")
    return _judge(who, response.status_code, response.headers, body)


def _judge(who: str, status: int, headers: Mapping[str, str], body: bytes) -> dict | _Failure:
    """Read an answer, or say what its status means."""
    answer = _parsed(body)
    said = ""
    if isinstance(answer, dict):
        said = " ".join(str(answer.get("message") or answer.get("reason") or "").split()).rstrip(".")[:120]
    quoted = f": {said!r}" if said else ""
    if status == 200:
        if isinstance(answer, dict):
            return answer
        start = " ".join(body[:40].decode("utf-8", "replace").split())
        return _Failure(ValueError, f"{who} answered with something other than a JSON object; it starts with {start!r}")
    if status in (401, 403):
        return _Failure(PermissionError, f"{who} refuses the key or the question (status {status}){quoted}")
    if status in (400, 404, 422):
        return _Failure(ValueError, f"{who} does not know what it was asked for (status {status}){quoted}")
    if status == 429:
        wait = _retry_after(headers.get("retry-after", ""))
        until = "" if wait is None else f" and wants {wait:.0f} s of rest"
        return _Failure(ConnectionError, f"{who} was asked too often (status 429){until}{quoted}", True, wait)
    return _Failure(ConnectionError, f"{who} is out of order (status {status}){quoted}", again=status >= 500)


def _parsed(body: bytes) -> object:
    """Read strict JSON, without NaN or infinity; return None for anything else."""
    try:
        return json.loads(body, parse_constant=lambda _: 1 / 0)
    except (ValueError, ArithmeticError, RecursionError):
        return None


def _retry_after(value: str) -> float | None:
    """Read a Retry-After header, seconds or a date (RFC 9110, section 10.2.3), as seconds; None if it is neither."""
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def _without(secret: str, text: str) -> str:
    return text.replace(secret, HIDDEN) if secret else text


@contextmanager
def _unlogged(secret: str) -> Iterator[None]:
    """Keep the key out of the client's log, which records every address."""

    def hide(record: logging.LogRecord) -> bool:
        record.msg, record.args = _without(secret, record.getMessage()), ()
        return True

    logger = logging.getLogger("httpx")
    logger.addFilter(hide)
    try:
        yield
    finally:
        logger.removeFilter(hide)
