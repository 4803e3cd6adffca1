"""With programs and servers: the command line, the examples, others' servers."""
