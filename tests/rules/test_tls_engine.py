"""TLS engines connected in memory, without sockets or an event loop."""

from __future__ import annotations

import _ssl
import ast
import ctypes
import errno
import gc
import itertools
import random
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mozsocket import _tls_engine
from mozsocket._tls_engine import FRUITLESS_RECORDS, MAX_ANSWERS, RECORD_SIZE, Phase, TLSEngine

from ..certificates import VERSIONS, client_context, server_context
from ..records import ALERT, DATA, HANDSHAKE, RecordPeer, alert, plain

TLS12, TLS13 = VERSIONS.values()
ERR_LIB_SYS = 2  # of OpenSSL: the number of an error is one of the system's
MUCH = random.Random(2).randbytes(200_000)
AT_ONCE = 65_536


def engine(role: str, *, version: ssl.TLSVersion | None = None, standard_compatible: bool = True) -> TLSEngine:
    return TLSEngine(
        client_context(version=version) if role == "client" else server_context(version=version),
        server_side=role == "server",
        server_hostname="localhost",
        standard_compatible=standard_compatible,
    )


def phase(ours: TLSEngine) -> Phase:
    """The engine's current phase. A function, as the type checker would assume that the attribute cannot change."""
    return ours.phase


_ways = {"as one": False}


@pytest.fixture(scope="module", params=[False, True], ids=["open", "open_one"], autouse=True)
def way(request: pytest.FixtureRequest) -> None:
    """Whether :func:`opened` gives records to ``open_one()``, as a reader does that expects one with data."""
    _ways["as one"] = request.param


def opened(ours: TLSEngine, data: bytes) -> bytes:
    """Decrypt records as far as possible."""
    if data and _ways["as one"] and ours.phase is Phase.UP and not ours.pending:
        return ours.open_one(data) or everything(ours)
    if data:
        ours.feed(data)
    return everything(ours)


def everything(ours: TLSEngine) -> bytes:
    parts = []
    while ours.pending and (part := ours.open(AT_ONCE)) != b"":
        parts.append(part or b"")
    return b"".join(parts)


def failing(ours: TLSEngine) -> tuple[bytes, ssl.SSLError]:
    """Decrypt until TLS fails: the data before the failure, and the error."""
    data = b""
    while ours.pending:
        ours.forget_answers()
        try:
            data += ours.open(AT_ONCE) or b""
        except ssl.SSLError as exc:
            return data, exc
    raise AssertionError("it does not fail")


def meet(client: TLSEngine, server: TLSEngine) -> None:
    client.do_handshake()
    while not (client.established and server.established):
        assert opened(server, client.take()) == b""
        assert opened(client, server.take()) == b""


def pair(version: ssl.TLSVersion | None = None, *, standard_compatible: bool = True) -> tuple[TLSEngine, TLSEngine]:
    """A client and a server, after the handshake."""
    client = engine("client", version=version, standard_compatible=standard_compatible)
    server = engine("server", standard_compatible=standard_compatible)
    meet(client, server)
    return client, server


def sides(role: str, version: ssl.TLSVersion | None = None, *, standard_compatible: bool = True) -> list[TLSEngine]:
    """Two engines after the handshake: ours in a role, then the peer's."""
    both = pair(version, standard_compatible=standard_compatible)
    return [*both] if role == "client" else [*reversed(both)]


def records(data: bytes) -> list[bytes]:
    found = []
    while data:
        size = 5 + int.from_bytes(data[3:5], "big")
        found.append(data[:size])
        data = data[size:]
    return found


class Wire:
    """Replaces the blocking socket of a :class:`RecordPeer`; an engine is at its other end."""

    def __init__(self, ours: TLSEngine) -> None:
        self.ours = ours

    def sendall(self, data: bytes) -> None:
        if data:
            assert opened(self.ours, data) == b""

    def recv(self, size: int) -> bytes:
        if self.ours.phase is Phase.NEW:
            self.ours.do_handshake()
        return self.ours.take()


@contextmanager
def met(role: str, version: ssl.TLSVersion = TLS13) -> Iterator[tuple[TLSEngine, RecordPeer]]:
    """An engine in a role, and a peer with hand-made records, after the handshake."""
    ours = engine(role)
    context = server_context(version=version) if role == "client" else client_context(version=version)
    peer = RecordPeer(Wire(ours), context, server_side=role == "client")  # type: ignore[arg-type]
    assert phase(ours) is Phase.UP
    peer.open(ours.take())
    ours.forget_answers()
    yield ours, peer


# Its dependencies


def test_it_does_no_input_or_output() -> None:
    """It does no I/O, and imports nothing else of the package."""
    imported = set()
    for node in ast.walk(ast.parse(Path(_tls_engine.__file__).read_text())):
        if isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level
            imported.add(node.module or "")
        assert not isinstance(node, (ast.AsyncFunctionDef, ast.Await))
    assert imported == {"__future__", "collections.abc", "contextlib", "enum", "ssl", "sys", "typing"}


# The handshake


def test_its_phases(version: ssl.TLSVersion) -> None:
    client, server = engine("client", version=version), engine("server")
    assert (client.phase, server.phase) == (Phase.NEW, Phase.NEW)
    assert client.open(AT_ONCE) is None
    assert phase(client) is Phase.NEW
    client.do_handshake()
    assert phase(client) is Phase.HANDSHAKE
    assert not client.pending
    server.feed(client.take())
    assert (server.phase, server.pending) == (Phase.NEW, True)
    assert server.open(AT_ONCE) is None
    assert (server.phase, server.established) == (Phase.HANDSHAKE, False)
    meet(client, server)
    assert (client.phase, server.phase) == (Phase.UP, Phase.UP)
    client.close()
    assert phase(client) is Phase.UP
    server.feed(client.take())
    assert phase(server) is Phase.UP
    assert server.open(AT_ONCE) == b""
    assert phase(server) is Phase.ENDED
    assert server.established
    client.feed(plain(DATA, bytes(32)))
    assert phase(client) is Phase.UP
    with pytest.raises(ssl.SSLError):
        client.open(AT_ONCE)
    assert phase(client) is Phase.FAILED
    assert client.established


def test_nothing_is_sealed_before_it_is_up(role: str) -> None:
    ours = engine(role)
    assert ours.seal([b"secret"]) == 0
    assert phase(ours) is Phase.NEW
    assert ours.take() == b""


@given(st.sampled_from([TLS12, TLS13]), st.lists(st.integers(1, 40) | st.integers(1, 3000), min_size=1))
def test_in_pieces_of_any_size(version: ssl.TLSVersion, sizes: list[int]) -> None:
    """This holds for the handshake, the first data of each side, and the end."""
    client, server = engine("client", version=version), engine("server")
    client.do_handshake()
    got = {client: b"", server: b""}
    on_the_way = {client: b"", server: b""}  # the bytes in transit to each side
    for size in itertools.cycle(sizes):
        for ours, theirs in ((client, server), (server, client)):
            if ours.established and not ours.closed:
                assert ours.seal([b"hello ", bytearray(b"there")]) == 11
                ours.close()
            on_the_way[theirs] += ours.take()
            piece, on_the_way[ours] = on_the_way[ours][:size], on_the_way[ours][size:]
            got[ours] += opened(ours, piece)
        if client.closed and server.closed and not any(on_the_way.values()):
            break
    assert got == {client: b"hello there", server: b"hello there"}
    assert (client.phase, server.phase) == (Phase.ENDED, Phase.ENDED)


def test_who_is_not_trusted() -> None:
    client = TLSEngine(
        client_context(trusting=False), server_side=False, server_hostname="localhost", standard_compatible=True
    )
    server = engine("server")
    client.do_handshake()
    opened(server, client.take())
    client.feed(server.take())
    with pytest.raises(ssl.SSLCertVerificationError):
        client.open(AT_ONCE)
    assert (client.phase, client.established) == (Phase.FAILED, False)
    assert client.shown_certificates()
    assert client.open(AT_ONCE) is None
    client.close()
    server.feed(client.take())
    with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
        server.open(AT_ONCE)
    assert (server.phase, server.established) == (Phase.FAILED, False)


@pytest.mark.parametrize("began", [False, True])
def test_plaintext_in_place_of_tls(role: str, began: bool) -> None:
    ours = engine(role)
    if began:
        ours.do_handshake()
    ours.feed(b"220 mail.example.com ready\r\n")
    with pytest.raises(ssl.SSLError):
        ours.open(AT_ONCE)
    assert (ours.phase, ours.established, ours.pending) == (Phase.FAILED, False, False)
    ours.feed(b"more")
    assert ours.open(AT_ONCE) is None
    ours.feed(b"")
    assert ours.open(AT_ONCE) == b""


def test_plaintext_is_refused_as_soon_as_it_can_be(role: str) -> None:
    ours = engine(role)
    for byte in b"220 mail"[:5]:
        ours.feed(bytes((byte,)))
    with pytest.raises(ssl.SSLError):
        ours.open(AT_ONCE)


@pytest.mark.parametrize("fed", [b"", b"\x16\x03"])
def test_an_end_in_the_handshake(role: str, fed: bytes) -> None:
    ours = engine(role, standard_compatible=False)
    ours.do_handshake()
    if fed:
        assert opened(ours, fed) == b""
    ours.feed(b"")
    with pytest.raises(ssl.SSLEOFError):
        ours.open(AT_ONCE)
    assert not ours.established


def has_ticket(client: TLSEngine) -> bool:
    session = client.ssl_object.session
    return session is not None and session.has_ticket


def test_tickets_wait_for_the_first_record() -> None:
    client, server = engine("client"), engine("server")
    client.do_handshake()
    opened(server, client.take())
    opened(client, server.take())
    opened(server, client.take())
    assert client.established
    assert server.established
    assert server.outgoing.pending == 0
    server.seal([b"hello"])
    assert not has_ticket(client)
    assert opened(client, server.take()) == b"hello"
    assert has_ticket(client)


# Data


@pytest.mark.parametrize("size", [1, 1000, RECORD_SIZE, AT_ONCE, 1 << 20])
def test_data_both_ways(role: str, version: ssl.TLSVersion, size: int) -> None:
    ours, theirs = sides(role, version)
    for sender, receiver in ((ours, theirs), (theirs, ours)) * 2:
        data = MUCH if size > 1 else MUCH[:100]
        assert sender.seal([data[:10], memoryview(data)[10:]]) == len(data)
        receiver.feed(sender.take())
        got = bytearray()
        while receiver.pending:
            part = receiver.open(size)
            assert part is None or 0 < len(part) <= size
            got += part or b""
        assert got == data


def test_little_is_decrypted_at_once(role: str) -> None:
    ours, theirs = sides(role)
    for _ in range(1000):
        theirs.seal([b"x"])
    ours.feed(theirs.take())
    first = ours.open(AT_ONCE)
    assert first is not None
    assert 50 < len(first) < 200
    assert len(everything(ours)) == 1000 - len(first)


def test_one_record(role: str, version: ssl.TLSVersion) -> None:
    ours, theirs = sides(role, version)
    for data in (b"first", bytes(RECORD_SIZE), b"x"):
        theirs.seal([data])
        assert ours.open_one(records(theirs.take())[-1]) == data
        assert not ours.pending
        assert not ours.outgoing.pending


def test_what_is_not_one_record_with_data_is_left_to_open(role: str, version: ssl.TLSVersion) -> None:
    ours, theirs = sides(role, version)
    theirs.seal([b"a", b"b"])
    two = b"".join(records(theirs.take())[-2:])
    assert ours.open_one(two) == b""
    assert opened(ours, b"") == b"ab"
    theirs.seal([b"c"])
    record = theirs.take()
    assert ours.open_one(record[:7]) == b""
    assert ours.open(AT_ONCE) is None
    assert not ours.pending
    assert ours.open_one(record[7:]) == b""
    assert ours.open(AT_ONCE) == b"c"
    theirs.seal([b"d"])
    theirs.close()
    assert ours.open_one(theirs.take()) == b""
    assert ours.open(AT_ONCE) == b"d"
    assert ours.open(AT_ONCE) == b""
    assert phase(ours) is Phase.ENDED


def test_one_record_that_is_no_data(role: str) -> None:
    ours, theirs = sides(role)
    theirs.close()
    assert ours.open_one(records(theirs.take())[-1]) == b""
    assert ours.pending
    assert ours.open(AT_ONCE) == b""
    assert phase(ours) is Phase.ENDED


def test_records_fed_one_by_one(role: str) -> None:
    ours, theirs = sides(role)
    for i in range(100):
        theirs.seal([b"%d," % i])
    for record in records(theirs.take()):
        ours.feed(record)
    assert everything(ours) == b"".join(b"%d," % i for i in range(100))


# The end


def test_close_notify_from_either_side(role: str, version: ssl.TLSVersion) -> None:
    ours, theirs = sides(role, version)
    theirs.seal([b"last"])
    theirs.close()
    ours.feed(theirs.take())
    assert ours.open(AT_ONCE) == b"last"
    assert ours.open(AT_ONCE) == b""
    assert ours.open(AT_ONCE) == b""
    assert ours.pending
    assert ours.seal([b"answer"]) == 6
    ours.close()
    ours.close()
    assert opened(theirs, ours.take()) == b"answer"
    assert (ours.phase, theirs.phase) == (Phase.ENDED, Phase.ENDED)


def test_what_comes_behind_the_end_is_ignored(role: str) -> None:
    ours, theirs = sides(role)
    theirs.close()
    ours.feed(theirs.take() + b"no TLS")
    assert ours.open(AT_ONCE) == b""
    ours.feed(b"nor this")
    ours.feed(b"")
    assert ours.open(AT_ONCE) == b""
    assert ours.outgoing.pending == 0


@pytest.mark.parametrize("size", [1, 7, 3000])
def test_closing_loses_nothing_that_is_there(role: str, version: ssl.TLSVersion, size: int) -> None:
    """This includes data that is not decrypted yet."""
    ours, theirs = sides(role, version)
    theirs.seal([MUCH[:20_000], MUCH[20_000:40_000]])
    ours.feed(theirs.take())
    got = ours.open(size)
    assert got == MUCH[:size]
    ours.close()
    theirs.seal([b"more"])
    ours.feed(theirs.take())
    while got[-4:] != b"more":
        part = ours.open(3000)
        assert part
        got += part
    assert got == MUCH[:40_000] + b"more"
    assert phase(ours) is Phase.UP
    assert opened(theirs, ours.take()) == b""
    assert phase(theirs) is Phase.ENDED


def test_closing_before_the_handshake_makes_nothing(role: str) -> None:
    ours = engine(role)
    ours.close()
    assert ours.take() == b""
    ours.feed(b"anything")
    with pytest.raises(ssl.SSLError):
        ours.open(AT_ONCE)
    assert ours.take() == b""


@pytest.mark.parametrize("standard_compatible", [True, False])
def test_cut_off(role: str, version: ssl.TLSVersion, standard_compatible: bool) -> None:
    ours, theirs = sides(role, version, standard_compatible=standard_compatible)
    theirs.seal([b"some", b"more"])
    ours.feed(theirs.take()[:-1])
    ours.feed(b"")
    assert ours.open(AT_ONCE) == b"some"
    assert ours.pending
    if standard_compatible:
        for _ in range(2):
            with pytest.raises(ssl.SSLEOFError):
                ours.open(AT_ONCE)
        assert phase(ours) is Phase.UP
    else:
        assert ours.open(AT_ONCE) == b""
        assert phase(ours) is Phase.ENDED
    assert ours.seal([b"still"]) == 5
    assert opened(theirs, ours.take()) == b"still"


# Failures


@given(st.integers(0, 2), st.integers(0, 1 << 16), st.booleans())
def test_a_record_that_was_tampered_with(which: int, at: int, at_once: bool) -> None:
    """The records before it are decrypted; those after it are not, even if they are intact."""
    client, server = pair()
    for _ in range(4):
        server.seal([b"data"])
    good = records(server.take())[-4:]
    bad = bytearray(good[which])
    bad[5 + at % (len(bad) - 5)] ^= 1
    good[which] = bytes(bad)
    got = b""
    for part in [b"".join(good)] if at_once else good:
        if not _ways["as one"]:
            client.feed(part)
        elif not client.pending:  # else it has the bad one: nothing is fed before open() has raised the error
            got += client.open_one(part)
    rest, error = failing(client)
    assert got + rest == b"data" * which
    assert error.reason in ("DECRYPTION_FAILED_OR_BAD_RECORD_MAC", "RECORD_LAYER_FAILURE")
    assert phase(client) is Phase.FAILED
    assert not client.pending
    client.feed(good[3])
    assert client.open(AT_ONCE) is None
    client.feed(b"")
    assert client.open(AT_ONCE) == b""
    client.close()
    server.feed(client.take())
    with pytest.raises(ssl.SSLError, match="ALERT_BAD_RECORD_MAC"):
        server.open(AT_ONCE)


def test_a_failure_that_sealing_raises(role: str) -> None:
    """The call that seals raises the error, once."""
    ours, theirs = sides(role)
    theirs.seal([b"before"])
    ours.feed(theirs.take() + plain(DATA, bytes(32)))
    assert ours.open(AT_ONCE) == b"before"
    assert phase(ours) is Phase.UP
    for _ in range(2):
        with pytest.raises(ssl.SSLError, match=r"BAD_RECORD_MAC|RECORD_LAYER_FAILURE"):
            ours.seal([b"too late"])
    assert phase(ours) is Phase.FAILED
    assert ours.open(AT_ONCE) is None


def test_a_failure_that_nobody_raises_keeps_nothing_alive(role: str) -> None:
    gc.collect()
    before = sum(isinstance(each, TLSEngine) for each in gc.get_objects())
    gc.disable()
    try:
        ours, theirs = sides(role)
        theirs.seal([b"before"])
        ours.feed(theirs.take() + plain(DATA, bytes(32)))
        assert ours.open(AT_ONCE) == b"before"
        del ours, theirs
        assert sum(isinstance(each, TLSEngine) for each in gc.get_objects()) == before
    finally:
        gc.enable()


# Peers whose records are made by hand


def test_key_updates_are_answered_in_order(role: str) -> None:
    with met(role) as (ours, peer):
        assert ours.seal([b"before"]) == 6
        assert ours.answers == 0
        assert opened(ours, peer.key_update() + peer.record(b"x")) == b"x"
        assert ours.answers == ours.outgoing.pending - len(b"before") - 22
        assert ours.seal([b"after"]) == 5
        assert peer.open(ours.take()) == b"beforeafter"
        ours.forget_answers()
        assert ours.answers == 0


def test_answers_that_are_not_taken_choke_it(role: str) -> None:
    with met(role) as (ours, peer):
        ours.feed(b"".join(peer.key_update() + peer.record(b"x") for _ in range(4000)))
        got = 0
        while not ours.choked:
            got += len(ours.open(AT_ONCE) or b"")
        assert MAX_ANSWERS < ours.outgoing.pending == ours.answers < MAX_ANSWERS + 4000
        assert ours.pending
        assert ours.open(AT_ONCE) is None
        peer.open(ours.take())
        ours.forget_answers()
        assert not ours.choked
        while ours.pending and not ours.choked:
            got += len(ours.open(AT_ONCE) or b"")
        assert got == 4000


def test_nothing_is_answered_behind_our_end(role: str) -> None:
    with met(role) as (ours, peer):
        ours.seal([b"last"])
        ours.close()
        assert opened(ours, b"".join(peer.key_update() + peer.record(b"x") for _ in range(4000))) == bytes(b"x" * 4000)
        assert ours.answers == 0
        assert peer.open(ours.take()) == b"last"
        assert peer.ended
        assert ours.take() == b""


def test_a_peer_that_sends_no_data_for_long(role: str) -> None:
    with met(role) as (ours, peer):
        some = FRUITLESS_RECORDS - 10
        asked = peer.record(b"before")
        asked += b"".join(peer.key_update(requested=False) for _ in range(some)) + peer.record(b"between")
        assert opened(ours, asked) == b"beforebetween"
        ours.feed(b"".join(peer.key_update(requested=False) for _ in range(2 * FRUITLESS_RECORDS)))
        with pytest.raises(ssl.SSLError, match="records without data"):
            everything(ours)
        assert phase(ours) is Phase.FAILED


def test_a_failure_behind_what_has_choked_it(role: str) -> None:
    """Nothing blocks the data after it any more."""
    with met(role) as (ours, peer):
        ours.feed(b"".join(peer.key_update() + peer.record(b"x") for _ in range(4000)))
        while not ours.choked:
            ours.open(AT_ONCE)
        ours.forget_answers()
        ours.feed(peer.record(alert(80), ALERT))
        _, error = failing(ours)
        assert "INTERNAL_ERROR" in str(error)
        assert not ours.choked
        ours.feed(b"")
        assert ours.open(AT_ONCE) == b""


def test_nothing_is_sealed_while_a_renegotiation_lasts() -> None:
    """Received data is still decrypted."""
    with met("client", TLS12) as (ours, peer):
        hello_request = peer.record(bytes(4), HANDSHAKE)
        assert opened(ours, hello_request + peer.record(b"x")) == b"x"
        assert ours.outgoing.pending == ours.answers > 0
        ours.take()
        assert ours.seal([b"y"]) == 0
        assert ours.take() == b""
        assert opened(ours, peer.record(b"z")) == b"z"
        assert phase(ours) is Phase.UP


# Errors of other code, which OpenSSL keeps in a queue of the thread


class Disturbed:
    """An ``SSLObject``: other code leaves an error in its thread before each call, unless the last one has failed."""

    def __init__(self, ssl_object: ssl.SSLObject) -> None:
        self._ssl_object = ssl_object
        self._libcrypto = ctypes.CDLL(getattr(_ssl, "__file__", None))
        self._has_failed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ssl_object, name)

    def leave_error(self) -> None:
        self._libcrypto.ERR_new()
        self._libcrypto.ERR_set_error(ERR_LIB_SYS, errno.EPIPE, None)

    def read(self, size: int) -> bytes:
        if not self._has_failed:
            self.leave_error()
        self._has_failed = False
        try:
            return self._ssl_object.read(size)
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            raise
        except OSError:
            self._has_failed = True
            raise
        finally:
            self._libcrypto.ERR_clear_error()  # the other engine is in this thread too
            if self._has_failed:
                self.leave_error()  # an exception does not always remove what was left: in Python 3.15 EPIPE remains

    def unwrap(self) -> None:
        self.leave_error()
        try:
            self._ssl_object.unwrap()
        finally:
            self._libcrypto.ERR_clear_error()


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has other code leave errors between the calls of OpenSSL that engines make."""
    if not hasattr(ctypes.CDLL(getattr(_ssl, "__file__", None)), "ERR_set_error"):
        pytest.skip("another version of OpenSSL")
    init = TLSEngine.__init__

    def disturbed(self: TLSEngine, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.ssl_object = Disturbed(self.ssl_object)  # type: ignore[assignment]

    monkeypatch.setattr(TLSEngine, "__init__", disturbed)


@pytest.mark.usefixtures("left")
@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
def test_errors_that_were_left_disturb_nothing(role: str, version: ssl.TLSVersion) -> None:
    ours, theirs = sides(role, version)
    theirs.seal([MUCH])
    sent = theirs.take()
    got = b"".join(opened(ours, sent[at : at + 1000]) for at in range(0, len(sent), 1000))
    assert got == MUCH
    assert ours.seal([b"one", b"two"]) == 6
    assert opened(theirs, ours.take()) == b"onetwo"
    theirs.close()
    assert opened(ours, theirs.take()) == b""
    assert phase(ours) is Phase.ENDED
    ours.close()
    assert opened(theirs, ours.take()) == b""
    assert phase(theirs) is Phase.ENDED


@pytest.mark.usefixtures("left")
def test_errors_that_were_left_beside_records_without_data(role: str) -> None:
    with met(role) as (ours, peer):
        assert opened(ours, peer.key_update()) == b""
        assert opened(ours, peer.record(b"x")) == b"x"
        assert peer.open(ours.take()) == b""


@pytest.mark.usefixtures("left")
@pytest.mark.parametrize("bad", [plain(DATA, bytes(32)), None], ids=["record", "alert"])
def test_errors_that_were_left_hide_no_failure(role: str, bad: bytes | None) -> None:
    with met(role) as (ours, peer):
        ours.feed(peer.record(b"before") + (bad or peer.record(alert(80), ALERT)))
        data, error = failing(ours)
        assert data == b"before"
        assert isinstance(error, ssl.SSLError)
        assert phase(ours) is Phase.FAILED
