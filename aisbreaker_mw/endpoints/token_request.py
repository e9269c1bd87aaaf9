"""Reading a token request: the JSON body of the contract, checked field by field."""

import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SecretStr,
    Tag,
    ValidationError,
)
from pydantic.alias_generators import to_camel

from ..durations import format_span, parse_span
from ..exceptions import InvalidRequest
from ..services.patterns import validate_pattern
from ..services.strict_json import strict_json
from ..tokens.claims import MAX_LIMIT, PRESENTED_TOKEN, RequestQuotas, ServiceSecret, TokenClaims
from ..tokens.sealer import new_jti

__all__ = ["MAX_LABEL_CHARACTERS", "MAX_SECRETS_IN_TURN", "TokenRequest", "parse_token_request"]

MAX_SECRETS_IN_TURN = 16
"""Most credentials of one `authSecret`."""
MAX_LABEL_CHARACTERS = 100
"""Longest label of a key."""
_MAX_SECRETS = 64
_MAX_DEPTH = 16
_CREDENTIAL = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?", re.ASCII)
# A field name, as distinct from a secret: the longest known field has 22 characters, and keys have digits, dashes or more
# characters.
_FIELD_NAME = re.compile(r"[A-Za-z][A-Za-z_]{0,29}", re.ASCII)


def _pattern(text: str) -> str:
    validate_pattern(text)
    return text


def _credential(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()
    if text and not _CREDENTIAL.fullmatch(text):
        raise ValueError("must be printable ASCII without spaces at either end")
    return secret


def _in_turn(secret: SecretStr) -> SecretStr:
    # Used in turn, they would give a credential to one request and none, or the presented token, to the next.
    if secret.get_secret_value() in ("", PRESENTED_TOKEN):
        raise ValueError(f"must be a credential: in a list neither an empty string nor {PRESENTED_TOKEN} is one")
    return secret


def _one_or_several(value: Any) -> str:
    return "several" if isinstance(value, list) else "one"


def _not_null(value: Any) -> Any:
    if value is None:
        raise ValueError("must be a string")
    return value


_Credential = Annotated[SecretStr, AfterValidator(_credential)]
_Credentials = Annotated[
    list[Annotated[_Credential, AfterValidator(_in_turn)]], Field(min_length=1, max_length=MAX_SECRETS_IN_TURN)
]


def _label(text: str) -> str:
    if len(text) > MAX_LABEL_CHARACTERS or not text.isprintable():
        raise ValueError(f"must be at most {MAX_LABEL_CHARACTERS} printable characters")
    return text


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, hide_input_in_errors=True)


class _ServiceSecret(_Model):
    """An entry of `serviceSecrets`."""

    service_id: Annotated[str, AfterValidator(_pattern)]
    auth_secret: Annotated[
        Annotated[_Credential, Tag("one")] | Annotated[_Credentials, Tag("several")], Discriminator(_one_or_several)
    ]

    def service_secret(self) -> ServiceSecret:
        """Return the secret as it is sealed. A list of one credential becomes that credential."""
        first, *others = self.auth_secret if isinstance(self.auth_secret, list) else [self.auth_secret]
        return ServiceSecret(self.service_id, first, tuple(others))


class _AuthAndQuotas(_Model):
    """The object `requestAuthAndQuotas`."""

    request_quotas: RequestQuotas = RequestQuotas()
    service_secrets: Annotated[list[_ServiceSecret], Field(max_length=_MAX_SECRETS)]


class TokenRequest(_Model):
    """The body of `POST /api/v1/oauth/token`."""

    request_auth_and_quotas: _AuthAndQuotas
    # These may be absent, but not null.
    expiration_time_span: Annotated[str | None, BeforeValidator(_not_null)] = None
    label: Annotated[str, BeforeValidator(_not_null), AfterValidator(_label)] = ""
    client_id: Annotated[str | None, BeforeValidator(_not_null)] = None
    client_secret: Annotated[SecretStr | None, BeforeValidator(_not_null)] = None

    def claims(self, *, now: int, default_lifetime: int, max_lifetime: int) -> TokenClaims:
        """
        Return the claims to seal.

        Args:
            now: seconds since the epoch.
            default_lifetime: lifetime where the request names none, in seconds; cut to `max_lifetime`.
            max_lifetime: longest lifetime, in seconds.

        Raises:
            InvalidRequest: `expirationTimeSpan` is malformed, or longer than `max_lifetime`.
        """
        lifetime = min(default_lifetime, max_lifetime)
        if self.expiration_time_span is not None:
            try:
                lifetime = parse_span(self.expiration_time_span)
            except ValueError as error:
                raise _invalid("expirationTimeSpan", str(error)) from None
        if lifetime > max_lifetime:
            raise _invalid("expirationTimeSpan", f"must be at most {format_span(max_lifetime)}")
        wanted = self.request_auth_and_quotas
        return TokenClaims(
            jti=new_jti(),
            iat=now,
            exp=now + lifetime,
            quotas=wanted.request_quotas,
            secrets=tuple(each.service_secret() for each in wanted.service_secrets),
            label=self.label,
        )


def parse_token_request(body: bytes) -> TokenRequest:
    """
    Return the token request in a JSON body.

    Raises:
        InvalidRequest: a field is wrong. The message has the path of the first one, never its value.
    """
    try:
        fields = strict_json(body, max_depth=_MAX_DEPTH)
    except ValueError as error:
        raise InvalidRequest(f"The request body {error}.") from None
    try:
        # By alias only: the contract's names are in camel case, and each field has one name.
        return TokenRequest.model_validate(fields, strict=True, by_alias=True, by_name=False)
    except ValidationError as errors:
        first = errors.errors(include_url=False, include_input=False)[0]
        raise _invalid(_path(first["loc"]), _requirement(first)) from None


def _invalid(path: str, requirement: str) -> InvalidRequest:
    return InvalidRequest(f"{path or 'The request body'}: {requirement}.", param=path or None)


def _path(location: Sequence[str | int]) -> str:
    path = ""
    for before, step in zip((None, *location), location, strict=False):
        if isinstance(step, int):
            path += f"[{step}]"
        elif before != "authSecret":  # below it, pydantic adds the tag of the union
            # An unknown field's name may be anything, a misplaced secret included.
            path += ("." if path else "") + (step if _FIELD_NAME.fullmatch(step) else "?")
    return path


def _requirement(error: Any) -> str:
    match error["type"]:
        case "missing":
            return "is required"
        case "extra_forbidden":
            return "is not a known field"
        case "model_type":
            return "must be an object"
        case "list_type":
            return "must be a list"
        case "string_type":
            return "must be a string"
        case "too_long":
            return f"must have at most {error['ctx']['max_length']} entries"
        case "too_short":
            return "must not be empty"
        case "value_error":
            return str(error["ctx"]["error"])
        case _:
            return f"must be an integer from 1 to {MAX_LIMIT}"
