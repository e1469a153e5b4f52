"""Logs to replay: read from files and experiments; policies compared on them."""
