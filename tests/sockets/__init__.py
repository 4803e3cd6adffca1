"""Over sockets, on each event loop."""
