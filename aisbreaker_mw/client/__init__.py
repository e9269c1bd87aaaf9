"""The client of a request: its address, its request's host and body, and the responses to it."""
