"""Ask a web service for JSON, with limits on time and size, retries with back-off, and a key that is never shown.

Everything that can go wrong ends in one sentence. Errors are raised outside any ``except`` block, because the HTTP
client's own errors hold the address they asked for, and the address holds the key. What a service sends loses the key
before anything else looks at it: a service may echo what it was asked.
"""

import json
import logging
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, quote_plus

from ..signatures import check_fields

MAX_BYTES = 1_000_000  # the current weather takes a few hundred
HIDDEN = "(key)"
OFFLINE = "; a recorded answer works without a network"


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
    """Ask once, and wait no longer than ``timeout`` for all of the answer.

    The client's own timeout is between two pieces of an answer, so a slow trickle would outlast it.
    """
    import httpx

    answers: list[dict | _Failure] = []
    with httpx.Client(timeout=timeout) as client:  # closed at the end, which also ends a thread that still listens
        question = client.build_request("GET", url, params=dict(parameters))
        asking = threading.Thread(
            target=lambda: answers.append(_exchange(who, client, question, secret, timeout)), daemon=True
        )
        asking.start()
        asking.join(timeout)
    return answers[0] if answers else _too_slow(who, timeout)


def _exchange(who: str, client: Any, question: Any, secret: str, timeout: float) -> dict | _Failure:
    """Send the question and take the answer, piece by piece."""
    import httpx

    try:
        with _unlogged(secret):
            body, deadline = b"", time.monotonic() + timeout
            response = client.send(question, stream=True)
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > MAX_BYTES:
                    return _Failure(ValueError, f"{who} sent more than {MAX_BYTES:,} bytes; no weather is that long")
                if time.monotonic() > deadline:
                    return _too_slow(who, timeout)
    except httpx.TimeoutException:
        return _too_slow(who, timeout)
    except httpx.TransportError as error:
        name = type(error).__name__
        return _Failure(ConnectionError, f"{who} cannot be reached or broke off ({name}){OFFLINE}", again=True)
    except Exception as error:  # of the client: for example, an answer that is not in the encoding it claims
        return _Failure(ConnectionError, f"{who} cannot be asked ({type(error).__name__})")
    return _judge(who, response.status_code, response.headers, body, secret)


def _too_slow(who: str, timeout: float) -> _Failure:
    return _Failure(TimeoutError, f"{who} gave no answer within {timeout:g} s{OFFLINE}", again=True)


def _judge(who: str, status: int, headers: Mapping[str, str], body: bytes, secret: str = "") -> dict | _Failure:
    """Read an answer, or say what its status means."""
    answer = _hidden(secret, _parsed(body))
    said = ""
    if isinstance(answer, dict):
        said = " ".join(str(answer.get("message") or answer.get("reason") or "").split()).rstrip(".")[:120]
    quoted = f": {said!r}" if said else ""
    if status == 200:
        if isinstance(answer, dict):
            return answer
        start = " ".join(_without(secret, body.decode("utf-8", "replace")).split())[:40]
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
    """Hide a secret in a text: as it is, as it stands in an address, in any case."""
    if not secret:
        return text
    forms = {secret, quote(secret, safe=""), quote_plus(secret), "".join(f"%{byte:02x}" for byte in secret.encode())}
    return re.sub("|".join(map(re.escape, sorted(forms, key=len, reverse=True))), HIDDEN, text, flags=re.IGNORECASE)


def _hidden(secret: str, value: Any) -> Any:
    """Hide a secret in every text of a JSON value, the names of fields too."""
    if isinstance(value, str):
        return _without(secret, value)
    if isinstance(value, dict):
        return {_without(secret, key): _hidden(secret, one) for key, one in value.items()}
    return [_hidden(secret, one) for one in value] if isinstance(value, list) else value


@contextmanager
def _unlogged(secret: str) -> Iterator[None]:
    """Keep the key out of the client's logs, which record every address, and every header of an answer."""
    import httpcore  # noqa: F401 - whose loggers must exist
    import httpx  # noqa: F401

    def hide(record: logging.LogRecord) -> bool:
        record.msg, record.args = _without(secret, record.getMessage()), ()
        return True

    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in ("httpx", "httpcore")]
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(hide)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(hide)
