"""Tests over sockets, on each event loop."""
