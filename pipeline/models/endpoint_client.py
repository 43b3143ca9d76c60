"""HTTP to a model's server: how long to wait, when to try again, when to give up on an answer and when on the server.

What is asked, and what an answer must hold, is the caller's business: images (``endpoint``), texts (``chat``).
Error codes: https://platform.openai.com/docs/guides/error-codes.
"""

import json
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx2

from schemas.config import ServerConfig
from schemas.errors import ModelError

T = TypeVar("T")

BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 1.0, 60.0  # doubled at each try
LONGEST_WAIT_SECONDS = 600.0  # a server that asks for more has given up on us
CONNECT_SECONDS = 15.0
MAX_ANSWER_BYTES = 200_000_000
LOST_IN_A_ROW = 8  # prompts without an answer, none with one in between: the server is down, not the prompts bad
_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
_REFUSALS = frozenset({"content_policy_violation", "moderation_blocked", "content_filter", "contentFilter", "ResponsibleAIPolicyViolation"})
_NO_MONEY = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})


class NoAnswer(Exception):
    """One prompt has no answer that can be used: a short code, a colon, what happened. Its neighbours go on."""

    def __init__(self, code: str, what: str) -> None:
        super().__init__(f"{code}: {what}")
        self.code = code


class Again(Exception):
    """A try that failed in a way that may pass; ``seconds`` is what the server asks to wait, ``code`` what it comes to if it does not."""

    def __init__(self, what: str, seconds: float | None = None, code: str = "no_answer") -> None:
        super().__init__(what)
        self.seconds, self.code = seconds, code


class EndpointClient:
    """Safe for threads. The key is sent in one header to one host, and stands in no message."""

    def __init__(self, name: str, config: ServerConfig, *, section: str = "model.endpoint", model_key: str = "model.id") -> None:
        """``name`` is the model's, ``section`` and ``model_key`` are where it stands in the configuration. Sends nothing.

        Raises ModelError if the key's variable is not set here.
        """
        self._name, self._config, self._section, self._model_key = name, config, section, model_key
        self._key = _key(name, config)
        self._base = httpx2.URL(config.url + "/")
        self._http = httpx2.Client(
            timeout=httpx2.Timeout(config.timeout_seconds, connect=min(CONNECT_SECONDS, config.timeout_seconds)),
            limits=httpx2.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency),
            follow_redirects=False,
        )
        weakref.finalize(self, self._http.close)
        self._gate = _Gate(60 / config.requests_per_minute if config.requests_per_minute else 0.0)
        self._lock = threading.Lock()
        self._requests = self._lost = 0

    def post(self, path: str, fields: Mapping[str, Any], files: Mapping[str, bytes], read: Callable[[bytes], T]) -> T:
        """What ``read`` makes of the answer; it raises Again or NoAnswer where that cannot be used. ``files`` are PNGs by field.

        Raises NoAnswer, or ModelError where asking further is of no use.
        """
        return self._patiently(lambda: read(self._send("POST", self._base.join(path), **_body(fields, files))))

    def get(self, url: httpx2.URL) -> bytes:
        """What lies at an address that an answer named. Raises as ``post``."""
        return self._patiently(lambda: self._send("GET", url))

    def address(self, text: str) -> httpx2.URL:
        """An address in an answer. Raises NoAnswer unless it is https or the server's own, httpx2.InvalidURL if it is none."""
        url = self._base.join(text)
        if url.scheme != "https" and not self._is_own(url):
            raise NoAnswer("bad_image", "the server says that the image lies at an address that is neither https nor its own")
        return url

    def take_requests(self) -> int:
        """Requests sent since the last call."""
        with self._lock:
            requests, self._requests = self._requests, 0
        return requests

    def _patiently(self, once: Callable[[], T]) -> T:
        """The result of ``once``, tried again with exponential back-off and jitter, or when the server says."""
        for number in range(1, self._config.max_tries + 1):
            self._gate.wait()
            try:
                result = once()
            except Again as again:
                if number == self._config.max_tries or (again.seconds or 0) > LONGEST_WAIT_SECONDS:
                    raise self._given_up(again, number) from None
                if again.seconds is not None:
                    self._gate.hold(again.seconds)
                else:
                    backoff = min(LONGEST_BACKOFF_SECONDS, BACKOFF_SECONDS * 2 ** (number - 1))
                    time.sleep(backoff * random.uniform(0.5, 1.0))
            except NoAnswer:
                self._answered()
                raise
            else:
                self._answered()
                return result
        raise AssertionError("unreachable")

    def _send(self, method: str, url: httpx2.URL, **body: Any) -> bytes:
        """The body of a good answer, read within the time-out."""
        headers = {"Authorization": f"Bearer {self._key}"} if self._key and self._is_own(url) else {}
        deadline = time.monotonic() + self._config.timeout_seconds
        with self._lock:
            self._requests += 1
        try:
            with self._http.stream(method, url, headers=headers, **body) as response:
                content = bytearray()
                for chunk in response.iter_bytes():
                    content += chunk
                    if time.monotonic() > deadline:
                        raise Again(f"the answer was not complete after {self._config.timeout_seconds:g} s")
                    if len(content) > MAX_ANSWER_BYTES:
                        raise NoAnswer("too_large", f"the answer is larger than {MAX_ANSWER_BYTES:,} bytes")
        except httpx2.TimeoutException:
            raise Again(f"no answer within {self._config.timeout_seconds:g} s") from None
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            raise Again(f"{type(error).__name__}: {self._clean(str(error))}") from None
        if response.status_code != 200:
            raise self._failure(response, bytes(content))
        return bytes(content)

    def _failure(self, response: httpx2.Response, content: bytes) -> Exception:
        """What an answer other than 200 means."""
        status = response.status_code
        code, message = _error_of(content)
        said = f"{status} {self._clean(message)}".strip()
        where = f"model {self._name}: {self._config.url}"
        if status == 402 or code in _NO_MONEY:
            return ModelError(f"{where} says that the account has no money left ({status}); top it up and run the same command again")
        if status in (401, 403) and code not in _REFUSALS:
            variable = self._config.api_key_variable
            remedy = f"check the key in {variable}" if variable else f"set {self._section}.api_key_variable"
            return ModelError(f"{where} does not let us in ({status}); {remedy}")
        if status in (404, 405):
            return ModelError(f"{where} does not know this model or path ({status}); check {self._model_key} and {self._section}.url")
        if code in _REFUSALS:
            return NoAnswer("refused", said)
        return Again(said, _retry_after(response)) if status in _AGAIN else NoAnswer("bad_request", said)

    def _given_up(self, why: Again, tries: int) -> Exception:
        if why.code != "no_answer":  # the server is there
            self._answered()
            return NoAnswer(why.code, f"{why}; tried {tries} times")
        with self._lock:
            self._lost += 1
            down = self._lost >= LOST_IN_A_ROW
        if down:
            return ModelError(f"model {self._name}: {self._config.url} does not answer ({why}); run the same command again when it does")
        return NoAnswer(why.code, f"{why}; tried {tries} times")

    def _answered(self) -> None:
        with self._lock:
            self._lost = 0

    def _is_own(self, url: httpx2.URL) -> bool:
        return (url.scheme, url.host, url.port) == (self._base.scheme, self._base.host, self._base.port)

    def _clean(self, text: str) -> str:
        """One short line without the key."""
        line = " ".join(text.split())
        return (line.replace(self._key, "[key]") if self._key else line)[:300]


def _key(name: str, config: ServerConfig) -> str | None:
    variable = config.api_key_variable
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ModelError(f"model {name}: the environment variable {variable} holds no key here; set it where this process starts")
    return key


def _body(fields: Mapping[str, Any], files: Mapping[str, bytes]) -> dict[str, Any]:
    """JSON, or a form with files."""
    if not files:
        return {"json": fields}
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
    return {"data": texts, "files": {name: (f"{name}.png", data, "image/png") for name, data in files.items()}}


class _Gate:
    """Lets requests pass ``interval`` seconds apart, and none while the server has asked for silence."""

    def __init__(self, interval: float) -> None:
        self._interval, self._next = interval, 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        with self._lock:
            start = max(time.monotonic(), self._next)
            self._next = max(self._next, start + self._interval)
        time.sleep(max(0.0, start - time.monotonic()))

    def hold(self, seconds: float) -> None:
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


def _error_of(content: bytes) -> tuple[str, str]:
    """(code, message) of an error answer; the text itself where it has another form."""
    try:
        error = json.loads(content)["error"]
        return str(error.get("code") or error.get("type") or ""), str(error.get("message") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        return "", content[:1000].decode("utf-8", errors="replace")


def _retry_after(response: httpx2.Response) -> float | None:
    """Seconds that the server asks to wait: ``Retry-After`` is a number or a date (RFC 9110, 10.2.3)."""
    text = response.headers.get("retry-after")
    if text is None:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, ((when if when.tzinfo else when.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds())
