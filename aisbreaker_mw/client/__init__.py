"""The client of one request: its address, its body, and the answers that it gets."""
