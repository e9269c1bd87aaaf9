"""
The tree of errors.

    AIsBreakerError
    ├── ConfigurationError                 the start is refused
    ├── ResponseInterrupted                a response that had begun was broken off
    ├── ClientDisconnected                 there is nobody to answer
    └── RequestError                       answered to the client, in the dialect of its SDK (500 internal_error)
        ├── CredentialUnsupported          500 credential_unsupported
        ├── InvalidRequest                 400 invalid_request
        ├── MissingCredential              401 missing_credential
        ├── InvalidToken                   401 invalid_token
        ├── InvalidClient                  401 invalid_client
        ├── ServiceNotAllowed              403 service_not_allowed
        ├── MintingRefused                 403 minting_refused
        ├── NotFound                       404 not_found
        ├── MethodNotAllowed               405 method_not_allowed
        ├── RequestTimeout                 408 request_timeout
        ├── PayloadTooLarge                413 payload_too_large
        ├── UnsupportedMediaType           415 unsupported_media_type
        ├── MisdirectedRequest             421 misdirected_request
        ├── RateLimitExceeded              429 rate_limit_exceeded
        ├── HeadTooLarge                   431 request_header_fields_too_large
        ├── MethodUnknown                  501 method_unknown
        ├── UpstreamError                  502 upstream_error
        ├── UpstreamCredentialRejected     502 upstream_credential_rejected
        ├── QuotaStorageUnavailable        503 quota_storage_unavailable
        ├── UpstreamBusy                   503 upstream_busy
        ├── ServerBusy                     503 server_busy
        ├── TooMuchBuffered                503 too_much_buffered
        ├── ShuttingDown                   503 server_shutting_down
        ├── UpstreamTimeout                504 upstream_timeout
        ├── VersionUnsupported             505 http_version_unsupported
        └── LoopDetected                   508 loop_detected

A message is a fixed text that may be shown to anybody: no exception text, no upstream host, no part of a token or secret.
"""

import math

from .http1.fields import RawHeaders

LONGEST_RETRY = 60.0
"""Longest wait, in seconds, after which an SDK should retry by itself. Beyond it the SDK is told not to."""


class AIsBreakerError(Exception):
    """The root of every error that this package raises."""


class ConfigurationError(AIsBreakerError):
    """The configuration is unusable. The message is one line: the key and what it takes, never a secret's value."""


class ResponseInterrupted(AIsBreakerError):
    """
    A response that had begun can't be completed, so the client's connection must be closed without a proper end.

    It leaves the ASGI app as an exception. That is how a server is told to cut a connection, as ASGI has no event for it, and
    how any middleware around us learns that the body is not whole.
    """


class ClientDisconnected(AIsBreakerError):
    """The client went away, so nobody is there to answer."""


class RequestError(AIsBreakerError):
    """
    An error that the client is told.

    Args:
        message: a fixed text for the client; the class's own when not given.
        param: path of the request's field that is wrong, where there is one.
    """

    status = 500
    code = "internal_error"
    message = "The request could not be processed."

    def __init__(self, message: str | None = None, *, param: str | None = None) -> None:
        super().__init__(message or self.message)
        self.message = message or self.message
        self.param = param

    @property
    def headers(self) -> RawHeaders:
        """The headers that belong to the error, names in lower case."""
        return []


class InvalidRequest(RequestError):
    """The request is malformed, or could be read in two ways (RFC 9110, 15.5.1)."""

    status = 400
    code = "invalid_request"
    message = "The request is malformed."


class MissingCredential(RequestError):
    """The request carries no credential (RFC 6750, 3.1)."""

    status = 401
    code = "missing_credential"
    message = "No API key was sent. Send an aisbreaker_... token where your SDK puts its API key."

    @property
    def headers(self) -> RawHeaders:
        # RFC 6750, 3.1: without any authentication information the challenge carries no error code.
        return [(b"www-authenticate", b"Bearer")]


class InvalidToken(RequestError):
    """
    A token does not open, or has expired (RFC 6750, 3.1).

    Args:
        message: a fixed text for the client; the class's own when not given.
        reason: for the operator alone: `unknown_key`, `not_opened`, `expired`; or None.
        kid: for the operator alone: the master key that the token names, or None.
    """

    status = 401
    code = "invalid_token"
    message = "The API key is not valid on this server."

    def __init__(self, message: str | None = None, *, reason: str | None = None, kid: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.kid = kid

    @property
    def headers(self) -> RawHeaders:
        description = self.message.encode("ascii")
        return [(b"www-authenticate", b'Bearer error="invalid_token", error_description="' + description + b'"')]


class InvalidClient(RequestError):
    """Minting asks for a clientSecret, and the request's is wrong or missing (RFC 6749, 5.2)."""

    status = 401
    code = "invalid_client"
    message = "This server issues tokens only to those who send its clientSecret."

    @property
    def headers(self) -> RawHeaders:
        return [(b"www-authenticate", b"Bearer")]


class ServiceNotAllowed(RequestError):
    """No secret of the token matches what was asked for."""

    status = 403
    code = "service_not_allowed"
    message = "The token holds no secret for the requested service."


class MintingRefused(RequestError):
    """The server's configuration lets nobody mint."""

    status = 403
    code = "minting_refused"
    message = "This server does not issue tokens."


class NotFound(RequestError):
    """Nothing is at the request's path."""

    status = 404
    code = "not_found"
    message = "There is nothing at this path."


class MethodNotAllowed(RequestError):
    """
    The endpoint knows other methods (RFC 9110, 15.5.6).

    Args:
        allowed: the methods that it knows.
    """

    status = 405
    code = "method_not_allowed"
    message = "The method is not allowed here."

    def __init__(self, *allowed: str) -> None:
        super().__init__()
        self.allowed = allowed

    @property
    def headers(self) -> RawHeaders:
        return [(b"allow", ", ".join(self.allowed).encode("ascii"))]


class PayloadTooLarge(RequestError):
    """The request's body has too many bytes (RFC 9110, 15.5.14)."""

    status = 413
    code = "payload_too_large"
    message = "The request body is too large."


class UnsupportedMediaType(RequestError):
    """The request's body has another media type or content coding than the endpoint reads (RFC 9110, 15.5.16)."""

    status = 415
    code = "unsupported_media_type"
    message = "The request body must be application/json."


class HeadTooLarge(RequestError):
    """The head of the request has too many fields or bytes (RFC 6585, 5)."""

    status = 431
    code = "request_header_fields_too_large"
    message = "The request's header fields are too many or too large."


class RequestTimeout(RequestError):
    """The client sent its request too slowly (RFC 9110, 15.5.9)."""

    status = 408
    code = "request_timeout"
    message = "The request was sent too slowly."


class MisdirectedRequest(RequestError):
    """The request is for a host that is not this server's (RFC 9110, 15.5.20)."""

    status = 421
    code = "misdirected_request"
    message = "This server does not answer for the requested host."


class _Retryable(RequestError):
    """
    An error that passes with time.

    Args:
        message: a fixed text for the client; the class's own when not given.
        retry_after: seconds until a retry can succeed.
    """

    def __init__(self, message: str | None = None, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    @property
    def headers(self) -> RawHeaders:
        headers = [
            (b"retry-after", b"%d" % max(1, math.ceil(self.retry_after))),
            (b"retry-after-ms", b"%d" % max(1, math.ceil(self.retry_after * 1000))),
        ]
        if self.retry_after > LONGEST_RETRY:
            headers.append((b"x-should-retry", b"false"))
        return headers


class RateLimitExceeded(_Retryable):
    """A window has no room for the request (RFC 6585, 4)."""

    status = 429
    code = "rate_limit_exceeded"
    message = "The rate limit of this token or server is exceeded. Retry later."


class CredentialUnsupported(RequestError):
    """The library for the service's kind of credential is not installed. The log names it."""

    status = 500
    code = "credential_unsupported"
    message = "This server is not equipped to authenticate with the AI service."

    @property
    def headers(self) -> RawHeaders:
        return [(b"x-should-retry", b"false")]


class MethodUnknown(RequestError):
    """The method is no registered one (RFC 9110, 15.6.2)."""

    status = 501
    code = "method_unknown"
    message = "The request method is not known."

    @property
    def headers(self) -> RawHeaders:
        return [(b"x-should-retry", b"false")]


class UpstreamError(RequestError):
    """The service could not be reached, or sent no valid response (RFC 9110, 15.6.3)."""

    status = 502
    code = "upstream_error"
    message = "The AI service could not be reached, or gave no valid answer."


class UpstreamCredentialRejected(RequestError):
    """The service refused the credential that is sealed in the token."""

    status = 502
    code = "upstream_credential_rejected"
    message = "The AI service rejected the credential that is sealed in the token."

    @property
    def headers(self) -> RawHeaders:
        return [(b"x-should-retry", b"false")]


class QuotaStorageUnavailable(_Retryable):
    """The quota storage does not answer, and the policy is `deny`."""

    status = 503
    code = "quota_storage_unavailable"
    message = "The quotas can't be checked at the moment. Retry later."


class UpstreamBusy(_Retryable):
    """No connection to the service became free in time."""

    status = 503
    code = "upstream_busy"
    message = "All connections to the AI service are in use. Retry later."


class ServerBusy(_Retryable):
    """The process has no file left for another connection."""

    status = 503
    code = "server_busy"
    message = "The server has too many open connections. Retry later."


class TooMuchBuffered(_Retryable):
    """The memory for request bodies is used up (`upstream.max_buffered_bytes`)."""

    status = 503
    code = "too_much_buffered"
    message = "The server holds too many request bodies. Retry later."


class ShuttingDown(_Retryable):
    """The server drains. A request without a response can be sent again, elsewhere or later."""

    status = 503
    code = "server_shutting_down"
    message = "The server is shutting down. Retry."


class UpstreamTimeout(RequestError):
    """The service was slower than a timeout (RFC 9110, 15.6.5)."""

    status = 504
    code = "upstream_timeout"
    message = "The AI service did not answer in time."


class VersionUnsupported(RequestError):
    """The request is in a version of HTTP above 1.1 (RFC 9110, 15.6.6)."""

    status = 505
    code = "http_version_unsupported"
    message = "Only HTTP/1.1 and HTTP/1.0 are spoken here."

    @property
    def headers(self) -> RawHeaders:
        return [(b"x-should-retry", b"false")]


class LoopDetected(RequestError):
    """The request has passed this server already (RFC 5842, 7.2)."""

    status = 508
    code = "loop_detected"
    message = "The request has come back to this server: the base URL of `network` leads here."

    @property
    def headers(self) -> RawHeaders:
        return [(b"x-should-retry", b"false")]
