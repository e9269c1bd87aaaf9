"""
Sealed API keys for AI services: an ASGI middleware and a standalone streaming proxy.

    app = AIsBreakerMiddleware(app, settings=Settings(...))        # wraps any ASGI app
    app.add_middleware(AIsBreakerMiddleware, settings=settings)    # Starlette, FastAPI
    app.mount("/ai", create_app(settings))                         # under a path of another app
"""

from importlib.metadata import version as _version

from .app import create_app
from .exceptions import AIsBreakerError, ConfigurationError, InvalidToken, RequestError, ResponseInterrupted
from .middleware import AIsBreakerMiddleware
from .minting import Minted, mint
from .settings import Settings, load_settings
from .tokens.claims import RequestLimits, RequestQuotas, ServiceSecret, TokenClaims
from .tokens.keyring import Keyring, generate_key
from .tokens.sealer import TokenSealer

__version__ = _version("aisbreaker-mw")

__all__ = [
    "AIsBreakerError",
    "AIsBreakerMiddleware",
    "ConfigurationError",
    "InvalidToken",
    "Keyring",
    "Minted",
    "RequestError",
    "RequestLimits",
    "RequestQuotas",
    "ResponseInterrupted",
    "ServiceSecret",
    "Settings",
    "TokenClaims",
    "TokenSealer",
    "__version__",
    "create_app",
    "generate_key",
    "load_settings",
    "mint",
]
