"""Mozilla's TCPSocket API, on AnyIO: event-driven sockets that run under asyncio and Trio alike."""

from ._activation import listen_fds
from ._errors import ConnectionLostError, InvalidStateError, TCPSocketError
from ._events import Event, EventHandler, EventTarget, TCPSocketErrorEvent
from ._framing import frames, lines
from ._machine import ReadyState
from ._options import BinaryType
from ._pipe import pipe
from ._scope import MozTCPSocket
from ._server import TCPServerSocket, TCPServerSocketEvent
from ._socket import TCPSocket, TCPSocketEvent
from ._stream import CONNECTION_LOST

__all__ = (
    "CONNECTION_LOST",
    "BinaryType",
    "ConnectionLostError",
    "Event",
    "EventHandler",
    "EventTarget",
    "InvalidStateError",
    "MozTCPSocket",
    "ReadyState",
    "TCPServerSocket",
    "TCPServerSocketEvent",
    "TCPSocket",
    "TCPSocketError",
    "TCPSocketErrorEvent",
    "TCPSocketEvent",
    "frames",
    "lines",
    "listen_fds",
    "pipe",
)
