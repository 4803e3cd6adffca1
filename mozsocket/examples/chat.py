"""A chat server in the manner of IRC: ``python -m mozsocket.examples.chat 6667``.

``lines()`` turns a handler of lines into a handler of ``data``. A client that sends an overlong line is disconnected,
and so is one that does not read, before either can fill the memory.
"""

from __future__ import annotations

import sys

import anyio

from mozsocket import MozTCPSocket, TCPServerSocketEvent, TCPSocket, TCPSocketEvent, lines


class User:
    """A connected client."""

    def __init__(self, chat: Chat, socket: TCPSocket) -> None:
        self.chat: Chat = chat
        self.socket: TCPSocket = socket
        self.name = ""
        socket.ondata = lines(self._on_line, limit=512)
        socket.onclose = lambda event: chat.leave(self)

    def tell(self, line: str) -> None:
        if self.socket.readyState == "open":
            try:
                self.socket.send(line.encode() + b"\r\n")
            except BufferError:
                self.socket.closeImmediately()

    def _on_line(self, event: TCPSocketEvent) -> None:
        self._obey(*event.data.decode("utf-8", "replace").strip().partition(" ")[::2])

    def _obey(self, command: str, rest: str) -> None:
        match command.upper():
            case "NICK" if rest and rest not in self.chat.users:
                self.chat.rename(self, rest)
            case "NICK":
                self.tell(f"433 {rest} :Nickname is already in use")
            case _ if not self.name:
                self.tell("451 :You have not registered")
            case "JOIN":
                self.chat.channels.setdefault(rest, set()).add(self)
                self.chat.tell(rest, f":{self.name} JOIN {rest}")
            case "PRIVMSG":
                target, _, text = rest.partition(" :")
                self.chat.tell(target, f":{self.name} PRIVMSG {target} :{text}", besides=self)
            case "PING":
                self.tell(f"PONG {rest}")
            case "QUIT":
                self.chat.leave(self)
                self.socket.close()
            case _:
                self.tell(f"421 {command} :Unknown command")


class Chat:
    """The users and channels of the server."""

    def __init__(self) -> None:
        self.users: dict[str, User] = {}
        self.channels: dict[str, set[User]] = {}

    def welcome(self, event: TCPServerSocketEvent) -> None:
        User(self, event.socket)  # kept alive by the handlers it sets

    def rename(self, user: User, name: str) -> None:
        self.users.pop(user.name, None)
        user.name, self.users[name] = name, user
        user.tell(f"001 {name} :Welcome")

    def tell(self, target: str, line: str, besides: User | None = None) -> None:
        listeners = self.channels.get(target) or ({self.users[target]} if target in self.users else set())
        for user in tuple(listeners):
            if user is not besides:
                user.tell(line)

    def leave(self, user: User) -> None:
        self.users.pop(user.name, None)
        for channel, members in self.channels.items():
            if user in members:
                members.remove(user)
                self.tell(channel, f":{user.name} QUIT")


async def main(port: int) -> None:
    async with MozTCPSocket() as tcp:
        server = tcp.listen(port, max_buffered_amount=1_000_000)
        chat = Chat()
        server.onconnect = chat.welcome
        print("listening on", server.localPort, flush=True)


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 6667)
