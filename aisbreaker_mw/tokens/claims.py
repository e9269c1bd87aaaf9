"""What a token says: who may use which secret, how often, until when."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr
from pydantic.alias_generators import to_camel

MAX_LIMIT = 2**31
"""Requests per window."""
PRESENTED_TOKEN = "{{secret}}"  # noqa: S105 - the contract's placeholder
"""The authSecret that sends the presented token itself on."""


def _whole_number(value: Any) -> Any:
    # pydantic takes true for 1, and None would read as "no limit" where the caller may have meant none allowed.
    if isinstance(value, bool) or value is None:
        raise ValueError(f"must be an integer from 1 to {MAX_LIMIT}")
    return value


Limit = Annotated[int | None, BeforeValidator(_whole_number), Field(ge=1, le=MAX_LIMIT)]


class RequestLimits(BaseModel):
    """Requests per window; an absent window is no limit."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, hide_input_in_errors=True
    )

    requests_per_minute: Limit = None
    requests_per_hour: Limit = None
    requests_per_day: Limit = None

    def windows(self) -> tuple[int | None, int | None, int | None]:
        """Return the requests per minute, hour and day."""
        return self.requests_per_minute, self.requests_per_hour, self.requests_per_day

    @classmethod
    def of(cls, windows: list[int | None]) -> "RequestLimits":
        """Return limits from what `windows` returned."""
        names = ("requests_per_minute", "requests_per_hour", "requests_per_day")
        return cls(**{name: limit for name, limit in zip(names, windows, strict=True) if limit is not None})


class RequestQuotas(BaseModel):
    """The contract's `requestQuotas`: what each client address may ask for, and what all of them may together."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, hide_input_in_errors=True
    )

    per_client_request_limits: RequestLimits = RequestLimits()
    global_request_limits: RequestLimits = RequestLimits()


@dataclass(frozen=True, slots=True)
class ServiceSecret:
    """
    A secret, and the services that it is for.

    Args:
        service_id: pattern of serviceIds (`services.matches`).
        auth_secret: the credential; empty: none is sent; `{{secret}}`: the presented token itself is.
        others: further credentials, which are used in turn with the first.
    """

    service_id: str
    auth_secret: SecretStr
    others: tuple[SecretStr, ...] = ()

    @property
    def keyless(self) -> bool:
        """Whether no credential is sent."""
        return not self.others and not self.auth_secret.get_secret_value()

    def values(self) -> list[str]:
        """Return every credential in clear, in order."""
        return [secret.get_secret_value() for secret in (self.auth_secret, *self.others)]


@dataclass(frozen=True, slots=True)
class TokenClaims:
    """
    What is sealed in a token. Its repr shows no secret.

    Args:
        jti: the token's identifier, 22 characters of base64url (RFC 7519, 4.1.7).
        iat: when it was sealed, seconds since the epoch.
        exp: when it ceases to open, seconds since the epoch; that second itself is too late.
        quotas: requests per window.
        secrets: in the order in which they are tried.
        kid: which master key sealed it; empty before it is sealed.
        open: whether anybody could mint it, in minting mode `open`.
    """

    jti: str
    iat: int
    exp: int
    quotas: RequestQuotas
    secrets: tuple[ServiceSecret, ...]
    kid: str = ""
    open: bool = False
