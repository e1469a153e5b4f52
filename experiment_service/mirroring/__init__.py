"""A copy of the registry on an MLflow tracking server, and versions that come from one.

The registry here is the truth: the copy follows it, is never read to serve, and may be
down or gone. Nothing that serves imports this, nor MLflow.
"""
