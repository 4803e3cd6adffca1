"""A Redis server with a few commands, without the network: it turns received bytes into replies.

All subjects that serve Redis share it, so that they differ only in how they use their sockets.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ("Session", "Store")

Store = dict[bytes, bytes]

END = b"\r\n"
ARRAY, STRING = b"*", b"$"


class Session:
    """The state of one connection.

    :param store: the keys and values, shared by all connections
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rest = b""

    def answer(self, data: bytes) -> bytes:
        """Execute the commands that this data completes, and return the replies. An incomplete command is kept.

        :raises ValueError: if a command is not an array of bulk strings
        """
        data, begin = self._rest + data, 0
        replies = []
        try:
            while begin < len(data):
                command, begin = _take_command(data, begin)
                replies.append(self._reply(command))
        except _IncompleteError:
            pass
        self._rest = data[begin:]
        return b"".join(replies)

    def _reply(self, command: list[bytes]) -> bytes:
        name, *arguments = command
        count, function = COMMANDS.get(name.upper(), (len(arguments), None))
        if len(arguments) != count:
            return b"-ERR wrong number of arguments for '%b'\r\n" % name
        if function is None:
            return b"-ERR unknown command '%b'\r\n" % name
        return function(self._store, *arguments)


class _IncompleteError(Exception):
    """The remainder of a command has not arrived yet."""


def _take_command(data: bytes, begin: int) -> tuple[list[bytes], int]:
    """Parse the command at ``begin``: its words, and the index behind it."""
    count, begin = _take_number(data, begin, ARRAY)
    if not count:
        raise ValueError("an empty command")
    command = []
    for _ in range(count):
        length, begin = _take_number(data, begin, STRING)
        end = begin + length
        mark = data[end : end + 2]
        if mark != END:
            if END.startswith(mark):
                raise _IncompleteError
            raise ValueError("a string longer than its length says")
        command.append(data[begin:end])
        begin = end + 2
    return command, begin


def _take_number(data: bytes, begin: int, kind: bytes) -> tuple[int, int]:
    """Parse a line with a number at ``begin``: the number, and the index behind the line."""
    if not data.startswith(kind, begin):
        if begin < len(data):
            raise ValueError("neither an array nor a bulk string where one is expected")
        raise _IncompleteError
    end = data.find(END, begin)
    if end < 0:
        raise _IncompleteError
    digits = data[begin + 1 : end]
    if not digits.isdigit():
        raise ValueError("a length that is not a number")
    return int(digits), end + 2


def _bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def _ping(store: Store) -> bytes:
    return b"+PONG\r\n"


def _echo(store: Store, message: bytes) -> bytes:
    return _bulk(message)


def _set(store: Store, key: bytes, value: bytes) -> bytes:
    store[key] = value
    return b"+OK\r\n"


def _get(store: Store, key: bytes) -> bytes:
    value = store.get(key)
    return b"$-1\r\n" if value is None else _bulk(value)


def _increment(store: Store, key: bytes) -> bytes:
    try:
        number = int(store.get(key, b"0")) + 1
    except ValueError:
        return b"-ERR value is not an integer\r\n"
    store[key] = b"%d" % number
    return b":%d\r\n" % number


def _config(store: Store, verb: bytes, name: bytes) -> bytes:
    """Answer ``CONFIG GET``, which redis-benchmark sends first: every setting is empty."""
    if verb.upper() != b"GET":
        return b"-ERR unknown subcommand '%b'\r\n" % verb
    return b"*2\r\n" + _bulk(name) + _bulk(b"")


COMMANDS: dict[bytes, tuple[int, Callable[..., bytes]]] = {
    b"PING": (0, _ping),
    b"ECHO": (1, _echo),
    b"SET": (2, _set),
    b"GET": (1, _get),
    b"INCR": (1, _increment),
    b"CONFIG": (2, _config),
}
"""The number of arguments of each command, and the function that answers it."""
