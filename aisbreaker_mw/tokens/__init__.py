"""Tokens: claims, master keys, and the sealing of claims into tokens."""
