"""What needs no I/O: the rules, and the project itself."""
