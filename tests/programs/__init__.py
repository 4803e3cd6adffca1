"""Tests with programs and servers: the command line, the examples, and other projects' servers and libraries."""
