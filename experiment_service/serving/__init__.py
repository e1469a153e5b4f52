"""Serving: who gets which variant and which items, from memory, without the database."""
