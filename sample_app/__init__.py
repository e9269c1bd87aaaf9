"""A small Starlette app, wrapped by the middleware."""
