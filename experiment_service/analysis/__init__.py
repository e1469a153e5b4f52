"""Statistics of experiments: from moments to intervals and health checks.

Pure functions of sufficient statistics; nothing here reads a database, a clock
or a random generator.
"""
