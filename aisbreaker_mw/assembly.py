"""Settings into the parts of the pipeline, once, when the middleware is made."""

from collections.abc import Callable
from dataclasses import dataclass

import httpx

from .admission import AdmissionPolicy, Admissions
from .client.address import ClientIdentifier
from .client.body import BodyMemory
from .client.host import HostNames
from .credentials.authorizer import Authorizer
from .endpoints.endpoints import Endpoints
from .endpoints.token import MintingPolicy, TokenEndpoint
from .exceptions import ConfigurationError
from .guard import Guard
from .http1.fields import CLIENT_ADDRESS, HOP_BY_HOP, OVERRIDES, PAGE
from .quotas import QuotaLimiter
from .quotas.buckets import BucketPlan
from .quotas.gate import QuotaGate
from .relay import Relay
from .services.catalog import ServiceCatalog
from .services.dummy import DummyService
from .settings import Settings
from .tokens.sealer import TokenSealer
from .upstream.proxy import UpstreamProxy
from .upstream.request import Timeouts
from .upstream.senders import open_transport
from .upstream.websocket import WebSocketProxy

__all__ = ["Parts", "assemble"]

# The Host is the upstream's, and the server below us has met an expectation already (RFC 9110, 10.1.1).
_NOT_FORWARDED = HOP_BY_HOP | OVERRIDES | PAGE | {b"host", b"expect"}


@dataclass(frozen=True, slots=True)
class Parts:
    """
    The parts of the pipeline.

    Attributes:
        services: the services by path.
        relay: way 1, to a service.
        endpoints: way 1, to an endpoint of ours.
        guard: ways 2 and 3, to the wrapped app.
        proxy: the connections to AI services.
        limiter: the connections to the quota storage.
    """

    services: ServiceCatalog
    relay: Relay
    endpoints: Endpoints
    guard: Guard
    proxy: UpstreamProxy
    limiter: QuotaLimiter

    async def aclose(self) -> None:
        """Close all connections. A later request opens new ones."""
        await self.proxy.aclose()
        await self.limiter.aclose()


def assemble(settings: Settings, transport: httpx.AsyncBaseTransport | None, clock: Callable[[], float]) -> Parts:
    """
    Return the parts that the settings describe. Nothing is connected yet.

    Args:
        settings: the configuration.
        transport: carries the requests to AI services; made from the settings when None.
        clock: returns seconds since the epoch.

    Raises:
        ConfigurationError: the settings are unusable; one line that names the key.
    """
    upstream, quotas, minting = settings.upstream, settings.quotas, settings.minting
    clients = ClientIdentifier(settings.trusted_proxies)
    hosts = HostNames(settings.hosts)
    keyring = settings.keyring()
    sealer = TokenSealer(keyring, clock=clock)
    services = ServiceCatalog.load(settings.services)
    for service_id in settings.inject.values():
        if services.by_vendor(service_id.partition(":")[2].partition("/")[0]) is None:
            raise ConfigurationError("inject: takes serviceIds of vendors that the catalogue knows")

    plan = BucketPlan(quotas.server, minting=minting.requests_per_minute)
    limiter = QuotaLimiter(
        quotas.storage.get_secret_value(),
        on_storage_error=quotas.on_storage_error,
        timeout=quotas.storage_timeout,
        connect_timeout=quotas.storage_connect_timeout,
        max_clients=quotas.max_clients,
        places_key=keyring.places_key,
    )
    gate = QuotaGate(limiter)

    timeouts = Timeouts(
        connect=upstream.connect_timeout, header=upstream.header_timeout, idle=upstream.idle_timeout, pool=upstream.pool_timeout
    )
    proxy = UpstreamProxy(
        lambda: (
            transport
            or open_transport(
                upstream.transport,
                max_connections=upstream.max_connections,
                fair_share=upstream.fair_share,
                http2=upstream.http2,
            )
        ),
        timeouts,
    )
    authorizer = Authorizer(lambda: proxy.transport, clock=clock, max_signed_bytes=upstream.max_engine_scan_bytes)
    admission = AdmissionPolicy(
        default_token=settings.default_api_key.get_secret_value() if settings.default_api_key else None,
        origins=frozenset(origin.encode("ascii") for origin in settings.cors_origins if origin != "*"),
        forwards_foreign=settings.foreign_credentials == "forward",
        not_forwarded=_NOT_FORWARDED if upstream.forward_client_address else _NOT_FORWARDED | CLIENT_ADDRESS,
        max_engine_scan_bytes=upstream.max_engine_scan_bytes,
    )
    return Parts(
        services=services,
        relay=Relay(
            clients=clients,
            admissions=Admissions(sealer, hosts, plan, admission, clock),
            gate=gate,
            authorizer=authorizer,
            embedded={each.name: DummyService(each.delay) for each in services if each.embedded},
            proxy=proxy,
            websockets=WebSocketProxy(timeouts, proxy.slot, clock=clock),
            origins=settings.cors_origins,
            max_body_bytes=upstream.max_body_bytes,
            body_memory=BodyMemory(upstream.max_buffered_bytes),
        ),
        endpoints=Endpoints(
            token=TokenEndpoint(
                sealer,
                MintingPolicy(minting.mode, minting.secret, minting.default_lifetime, minting.max_lifetime),
                clock=clock,
            ),
            clients=clients,
            hosts=hosts,
            plan=plan,
            gate=gate,
            storage_state=lambda: limiter.health,
        ),
        guard=Guard(clients, hosts, sealer, plan, gate, authorizer, settings.inject),
        proxy=proxy,
        limiter=limiter,
    )
