"""A small Starlette app of somebody's own, wrapped by the middleware."""
