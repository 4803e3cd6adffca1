"""Tests without I/O: the rules of a connection, and rules for the project itself."""
