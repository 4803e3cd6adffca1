"""Complete programs to read and start from. Run each with ``python -m mozsocket.examples.NAME``.

========================== ================================================================================
``client``, ``echo_server``  a first client and server
``proxy``                    forwards connections to another server
``tls``, ``starttls``        TLS from the start, and TLS by STARTTLS
``upload``, ``timeouts``     sending with back-pressure; noticing silent peers
``reconnect``                connects again when the connection is lost
``service``, ``processes``   graceful shutdown; several processes on one port
``redis``, ``chat``          protocols implemented with handlers
``mail``, ``line_server``    protocols implemented with ``stream()``
``awaiting``, ``generator``  awaiting instead of handlers; lines as an async generator
``whois``                    a library and its tests
``errors``                   failures that no handler receives
========================== ================================================================================
"""
