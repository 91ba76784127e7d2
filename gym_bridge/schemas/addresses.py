"""Where our servers listen unless told otherwise, and what lets clients in elsewhere."""

LOOPBACK = "127.0.0.1"
TOKEN_VARIABLE = "GYM_BRIDGE_SERVER_TOKEN"
"""The environment variable with the bearer token that a server beyond loopback asks for, and that clients of one send."""
