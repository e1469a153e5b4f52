"""The HTTP API: parse, call one use case, shape; the hot routes never touch Postgres."""
