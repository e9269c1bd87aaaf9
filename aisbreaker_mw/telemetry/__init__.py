"""The log, which tells an operator what the server does."""
