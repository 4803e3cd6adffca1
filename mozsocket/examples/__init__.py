"""Whole programs, to read and to begin with: each is run by ``python -m mozsocket.examples.NAME``.

========================== ================================================================================
``client``, ``echo_server``  the first of each
``proxy``                    pairs of sockets that pass on what they receive
``tls``, ``starttls``        encrypted from the start, and later
``upload``, ``timeouts``     back-pressure, and peers that fall silent
``reconnect``                connects again when the connection is gone
``service``, ``processes``   shutting down in order; several processes on one port
``redis``, ``chat``          protocols by handlers
``mail``, ``line_server``    protocols by ``stream()``
``awaiting``, ``generator``  without handlers
``whois``                    a library, and its tests
``errors``                   what nobody was told of
========================== ================================================================================
"""
