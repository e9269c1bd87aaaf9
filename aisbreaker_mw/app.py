"""The standalone proxy as an ASGI app."""

from .middleware import AIsBreakerMiddleware
from .settings import Settings


def create_app(settings: Settings | None = None) -> AIsBreakerMiddleware:
    """
    Return the standalone proxy: services and token endpoints, and 404 for any other path.

    Runs by itself (`uvicorn --factory aisbreaker_mw:create_app`) or mounted in another app (`app.mount("/ai",
    create_app(settings))`).

    Args:
        settings: the configuration; read from the environment when not given.

    Raises:
        ConfigurationError: the settings are unusable; one line that names the key.
    """
    return AIsBreakerMiddleware(None, settings)
