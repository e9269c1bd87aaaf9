"""The endpoints of this server itself, below `/api/v1/`."""
