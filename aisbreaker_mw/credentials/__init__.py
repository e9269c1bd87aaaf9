"""Credentials: where a client puts its token, and how a service's own credential takes its place."""
