"""Credentials: where a client puts its token, and how the service's credential takes its place."""
