"""Measurements of sandboxd against its alternatives; see README.md here."""
