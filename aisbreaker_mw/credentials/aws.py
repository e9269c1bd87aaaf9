"""
AWS credentials for Bedrock.

A secret with a colon is `aws_access_key_id:secret_access_key`, or `aws_access_key_id:secret_access_key:session_token` for a
temporary key. It signs the request (Signature Version 4,
https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html). A secret without a colon is a
Bedrock API key, which is sent as a Bearer token.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256

from ..client.body import RequestBody
from ..exceptions import CredentialUnsupported, PayloadTooLarge
from ..http1.fields import RawHeaders, get
from ..upstream.request import UpstreamRequest

__all__ = ["SignatureStrategy"]

_logger = logging.getLogger("aisbreaker_mw")

_TOO_LARGE = "The request body is too large to be signed, as this service wants it."
_IN_THREAD = 256 * 1024
"""Bytes. A longer body is hashed in a thread."""
# AWS's own SDKs sign these headers, and no proxy on the way has a reason to change them.
_SIGNED = (b"host", b"content-type")
_OURS = frozenset({b"authorization", b"x-amz-date", b"x-amz-security-token", b"x-amz-content-sha256"})
# https://docs.aws.amazon.com/bedrock/latest/APIReference/CommonErrors.html. AWS sends 403 both for a bad credential and for a
# good one without the permission, so the type decides. The message is not read: for a bad signature it quotes the signed text,
# with the session token.
_REJECTED = frozenset(
    {
        b"ExpiredTokenException",
        b"IncompleteSignature",
        b"IncompleteSignatureException",
        b"InvalidClientTokenId",
        b"InvalidSignatureException",
        b"MissingAuthenticationToken",
        b"MissingAuthenticationTokenException",
        b"RequestExpired",
        b"SignatureDoesNotMatch",
        b"UnrecognizedClientException",
    }
)


class SignatureStrategy:
    """
    Signs requests with AWS's Signature Version 4.

    The signature covers a hash of the body, so the body is collected first. Path and query are signed as they are sent.

    Args:
        region: AWS region, such as `us-east-1`.
        service: signing name of the service, such as `bedrock`.
        clock: returns seconds since the epoch.
        max_body_bytes: largest body, in bytes; a longer one is 413.
    """

    def __init__(self, *, region: str, service: str, clock: Callable[[], float], max_body_bytes: int) -> None:
        self._region = region
        self._service = service
        self._clock = clock
        self._max_body_bytes = max_body_bytes
        self._imported = False  # importing botocore takes a while, so the first signature is made in a thread

    async def authorize(self, request: UpstreamRequest, body: RequestBody, secret: str) -> UpstreamRequest:
        """Return the request with the credential in place; see `CredentialStrategy`."""
        headers = [header for header in request.headers if header[0] not in _OURS]
        if ":" not in secret:
            bearer = (b"authorization", b"Bearer " + secret.encode("ascii"))
            return replace(request, headers=[*headers, bearer], credential=secret)
        data = await body.collect(self._max_body_bytes, lambda: PayloadTooLarge(_TOO_LARGE))
        if get(headers, b"transfer-encoding") is not None:
            # AWS takes no chunks, and the length is known now.
            headers = [header for header in headers if header[0] != b"transfer-encoding"]
            headers.append((b"content-length", b"%d" % len(data)))
        request = replace(request, headers=headers)
        if len(data) > _IN_THREAD or not self._imported:
            signature = await asyncio.to_thread(self._sign, request, data, secret)
            self._imported = True
        else:
            signature = self._sign(request, data, secret)
        return replace(request, headers=[*headers, *signature])

    def rejects(self, secret: str, status: int, headers: RawHeaders) -> bool:
        """Return whether the response rejects the credential; see `CredentialStrategy`."""
        if status in (400, 403):
            kind = get(headers, b"x-amzn-errortype") or b""
            return kind.partition(b":")[0].rpartition(b"#")[2] in _REJECTED
        return status == 401

    def _sign(self, request: UpstreamRequest, data: bytearray, secret: str) -> RawHeaders:
        """
        Return the headers that sign a request.

        botocore's `add_auth` is not used: it has its own clock, and it logs the text that it signs.

        Raises:
            CredentialUnsupported: botocore is not installed.
        """
        try:
            from botocore.auth import SigV4Auth
            from botocore.awsrequest import AWSRequest
            from botocore.credentials import Credentials
        except ImportError:
            _logger.error("a secret for AWS can't be used: install aisbreaker-mw[bedrock]")
            raise CredentialUnsupported from None
        key, _, rest = secret.partition(":")
        secret_key, _, session_token = rest.partition(":")
        digest = sha256(data).hexdigest()
        now = datetime.fromtimestamp(self._clock(), UTC).strftime("%Y%m%dT%H%M%SZ")
        added = [(b"x-amz-date", now.encode("ascii"))]
        if session_token:
            added.append((b"x-amz-security-token", session_token.encode("ascii")))
        # Only the path and query of this URL count. The host is signed from the Host header.
        wanted = AWSRequest(request.method, "https://host" + request.target.decode("ascii"))
        wanted.context["timestamp"] = now
        for name, value in [*request.headers, *added]:
            if name in _SIGNED or name.startswith(b"x-amz-"):
                wanted.headers[name.decode("ascii")] = value.decode("latin-1")
        signer = SigV4Auth(Credentials(key, secret_key), self._service, self._region)
        signer.payload = lambda _: digest
        signature = signer.signature(signer.string_to_sign(wanted, signer.canonical_request(wanted)), wanted)
        names = signer.signed_headers(signer.headers_to_sign(wanted))
        authorization = f"AWS4-HMAC-SHA256 Credential={signer.scope(wanted)}, SignedHeaders={names}, Signature={signature}"
        return [*added, (b"authorization", authorization.encode("ascii"))]
