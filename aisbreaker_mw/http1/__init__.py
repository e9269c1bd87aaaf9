"""Heads and header fields of HTTP/1.1, and their grammar, without I/O."""
