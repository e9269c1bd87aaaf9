"""The way to a service and back: HTTP requests and WebSockets."""
