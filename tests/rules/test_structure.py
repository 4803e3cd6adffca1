"""The structure of the package: which modules import which, and which use AnyIO or the event loops.

The sources are parsed, not run: imports within functions, or only for the type checker, count too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath

import pytest

import mozsocket

LAYERS = [
    # Rules and data: without I/O or waiting.
    "_unique.py",  # base classes of the public objects: not copied, no unknown attributes
    "_errors.py",  # Gecko's errors, made from Python's
    "_addresses.py",  # socket addresses, for the program, messages and the log
    "_options.py",  # the options that a program may pass, and their checks
    "_proxy_protocol.py",  # the header that load balancers send
    "_eagerness.py",  # whether to poll for more data before waiting for it
    "_machine.py",  # the rules of a connection: its states, pending events, next actions
    "_limits.py",  # time limits, and their errors
    "_tls_engine.py",  # TLS between two buffers
    # The operating system, without waiting for it.
    "_log.py",  # the logger
    "_authorities.py",  # the default SSL context: the authorities that the system trusts
    "_activation.py",  # sockets passed by a service manager
    "_listen.py",  # listening sockets
    # Waiting, with AnyIO.
    "_asyncio.py",  # facts about asyncio's tasks that AnyIO does not give
    "_raised.py",  # exceptions: cancellations apart from what the program has raised
    "_tasks.py",  # signals, the event loop, leaving task groups
    "_buffers.py",  # the send buffer, and the inbox of received data (a memory-object channel)
    "_turn.py",  # the sends of running handlers, made when they have returned
    "_readiness.py",  # waiting for sockets, by tasks
    "_poller.py",  # waiting for sockets, by one task for all of an owner
    "_connect.py",  # from a host and a port to a connected socket
    "_transport.py",  # bytes over a socket
    "_tls.py",  # bytes over TLS over a socket
    # Running: the inside of a socket.
    "_events.py",  # events, handlers and listeners
    "_dispatch.py",  # calls the handlers, one event after the other
    "_fast_path.py",  # from the kernel to the handler of data and back, while nothing else is to be looked after
    "_lifetime.py",  # from entering a block to leaving it; failures that nobody has handled
    "_journal.py",  # a connection's life, in the log
    "_connection.py",  # one connection, from its first byte to its last
    "_stream.py",  # a connection as an AnyIO stream
    # Public: what a program imports. The acceptor, the inside of a server, is here as it makes public sockets.
    "_socket.py",  # TCPSocket
    "_pipe.py",  # from one socket to another
    "_framing.py",  # handlers of lines and of frames
    "_acceptor.py",  # the inside of a server: from accepting to running connections
    "_server.py",  # TCPServerSocket
    "_scope.py",  # MozTCPSocket
    "__init__.py",
    "testing.py",  # a pair of connected sockets, an event recorder
    # The command line.
    "cli/_where.py",
    "cli/_lines.py",
    "cli/_trace.py",
    "cli/_loop.py",
    "cli/_console.py",
    "cli/_contexts.py",
    "cli/_progress.py",
    "cli/_echo.py",
    "cli/_relay.py",
    "cli/_starttls.py",
    "cli/_demo.py",
    "cli/__init__.py",
    "__main__.py",
]
"""Every module, from the bottom to the top. Each may import modules above it in this list, and none below."""

WITHOUT_ANYIO = LAYERS[: LAYERS.index("_asyncio.py")]
"""The modules that do not wait."""

UNDERSCORES = {
    "_tls_engine.py": {"_sslobj"},  # ssl.SSLObject's: its get_unverified_chain() is not public before Python 3.13
    "cli/__init__.py": {"_exit"},  # os._exit is public
}
"""The underscore names of other objects that a module may use."""

LOOPS = {"_asyncio.py": {"asyncio"}}
"""The event loops that a module may import."""

WAITING = {
    "_readiness.py": {"wait_readable", "wait_writable", "notify_closing"},
    "_poller.py": {"wait_readable", "notify_closing"},
    "cli/_console.py": {"wait_readable"},  # for the thread that reads standard input
}
"""AnyIO's functions for waiting for a socket that a module may use."""

ROOT = Path(mozsocket.__file__).parent

SOURCES = [path for path in ROOT.rglob("*.py") if "examples" not in path.parts]

TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}

each_module = pytest.mark.parametrize("module", sorted(TREES))


# Reading the sources


def imported(module: str, tree: ast.AST) -> Iterator[tuple[str, str]]:
    """The imports of a module: the absolute name of each imported module, and the name in it or ``""``."""
    package = ("mozsocket", *PurePosixPath(module).parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) + 1 - node.level] if node.level else ()
            source = ".".join([*parents, *([node.module] if node.module else [])])
            yield from ((source, alias.name) for alias in node.names)


def file_of(name: str) -> str | None:
    """The file of a module of the package; None if there is no such module."""
    top, *parts = name.split(".")
    files = ["/".join([*parts, "__init__.py"]), "/".join(parts) + ".py"]
    return next((file for file in files if top == "mozsocket" and file in TREES), None)


def dependencies(module: str, tree: ast.AST) -> set[str]:
    """The package's modules that a module imports."""
    found = {file_of(f"{source}.{name}") or file_of(source) for source, name in imported(module, tree)}
    return {file for file in found if file is not None}


def tops(module: str, tree: ast.AST) -> set[str]:
    """The top-level names of the modules that a module imports."""
    return {source.partition(".")[0] for source, _ in imported(module, tree)}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def private_imports(module: str, tree: ast.AST) -> set[str]:
    """The underscore names that a module imports from outside the package."""
    found = set()
    for source, name in imported(module, tree):
        if file_of(source) is None:
            found |= {part for part in (*source.split("."), name) if is_private(part)}
        elif file_of(f"{source}.{name}") is None and is_private(name):
            found.add(name)
    return found


def is_own(node: ast.AST) -> bool:
    """Whether an expression is ``self``, ``cls`` or ``super()``."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "super"
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def members(tree: ast.AST) -> set[str]:
    """The names that the classes of a module define: methods, attributes and slots, and attributes set on ``self``."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for statement in node.body:
                found |= set(defined(statement))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node.value):
            found.add(node.attr)
    return found


def defined(statement: ast.stmt) -> Iterator[str]:
    """The names that a statement in a class body defines."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield statement.name
    elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
        names = [node.id for node in ast.walk(statement) if isinstance(node, ast.Name)]
        yield from names
        if "__slots__" in names:
            yield from (text.value for text in ast.walk(statement) if isinstance(text, ast.Constant))  # type: ignore[misc]


def accesses(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """The attributes that a module reads and writes, directly or by :func:`getattr` and the like: the object and the
    name.
    """
    by_name = ("getattr", "setattr", "hasattr", "delattr")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.value, node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in by_name:
            owner, name = node.args[:2]
            if isinstance(name, ast.Constant):
                yield owner, str(name.value)


def private_accesses(tree: ast.AST) -> set[str]:
    """The underscore names that a module reads or writes on objects of other modules."""
    own = members(tree)
    return {name for owner, name in accesses(tree) if is_private(name) and name not in own and not is_own(owner)}


def waiting(module: str, tree: ast.AST) -> set[str]:
    """AnyIO's functions for waiting for a socket that a module uses."""
    aliases = {
        alias.asname or "anyio"
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name.partition(".")[0] == "anyio"
    }
    used = {name for owner, name in accesses(tree) if isinstance(owner, ast.Name) and owner.id in aliases}
    used |= {name for source, name in imported(module, tree) if source == "anyio"}
    return {name for name in used if name.startswith("wait_") and name.endswith("able")} | (used & {"notify_closing"})


def last_name(node: ast.expr) -> str:
    """The last name of an expression: ``Protocol`` for ``typing.Protocol[T]``."""
    if isinstance(node, ast.Subscript):
        return last_name(node.value)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def bases(node: ast.ClassDef) -> set[str]:
    """The names of a class's bases and metaclass."""
    return {last_name(each) for each in [*node.bases, *(keyword.value for keyword in node.keywords)]}


def has_abstract_methods(node: ast.ClassDef) -> bool:
    methods = [each for each in node.body if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return any(last_name(decorator) == "abstractmethod" for each in methods for decorator in each.decorator_list)


def pretenders(trees: Iterable[ast.AST]) -> set[str]:
    """The classes that have abstract methods but can be instantiated, as no base is ABC."""
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    abstract = {"ABC", "ABCMeta", "Protocol"}
    for _ in classes:  # repeated, as bases may be defined in any order
        abstract |= {node.name for node in classes if bases(node) & abstract}
    return {node.name for node in classes if has_abstract_methods(node)} - abstract


# The rules


@each_module
def test_no_module_uses_what_is_private_to_another(module: str) -> None:
    assert private_accesses(TREES[module]) == UNDERSCORES.get(module, set())
    assert private_imports(module, TREES[module]) == set()


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {module: dependencies(module, tree) for module, tree in TREES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as exc:
        pytest.fail(" is imported by ".join(exc.args[1]))


def test_every_module_has_its_layer() -> None:
    assert sorted(LAYERS) == sorted(TREES)


@each_module
def test_imports_point_down(module: str) -> None:
    assert dependencies(module, TREES[module]) - set(LAYERS[: LAYERS.index(module)]) == set()


@each_module
def test_the_event_loop_is_anyios_business(module: str) -> None:
    assert tops(module, TREES[module]) & {"asyncio", "trio", "uvloop"} == LOOPS.get(module, set())


@pytest.mark.parametrize("example", sorted(path.name for path in (ROOT / "examples").glob("*.py")))
def test_the_examples_import_no_event_loop(example: str) -> None:
    tree = ast.parse((ROOT / "examples" / example).read_text(encoding="utf-8"))
    assert not tops(f"examples/{example}", tree) & {"asyncio", "trio", "uvloop"}


@pytest.mark.parametrize("module", WITHOUT_ANYIO)
def test_what_does_not_wait_knows_nothing_of_anyio(module: str) -> None:
    assert "anyio" not in tops(module, TREES[module])
    assert not any(isinstance(node, (ast.Await, ast.AsyncFunctionDef)) for node in ast.walk(TREES[module]))


@each_module
def test_sockets_are_waited_for_in_one_place(module: str) -> None:
    assert waiting(module, TREES[module]) == WAITING.get(module, set())


def test_a_class_with_abstract_methods_is_abstract() -> None:
    assert pretenders(TREES.values()) == set()


# The checks find violations


@pytest.mark.parametrize(
    ("program", "found"),
    [
        ("sock._connection", {"_connection"}),
        ("sock._connection = None", {"_connection"}),
        ("del sock.inner._connection", {"_connection"}),
        ("accept()._connection", {"_connection"}),
        ("getattr(sock, '_connection', None)", {"_connection"}),
        ("setattr(sock, '_connection', None)", {"_connection"}),
        ("_connection = 1; sock._connection", {"_connection"}),  # a module's own name is not another's attribute
        ("self._a; cls._b; super()._c; sock.__class__; sock.send", set()),
        ("class A:\n  __slots__ = ('_a', '_b')\nsock._a; sock._b; sock._c", {"_c"}),
        ("class A:\n  _a: int = 1\n  def _b(self): self._c, self.d._d = 1, 2\nsock._a; sock._b; sock._c", {"_d"}),
    ],
)
def test_private_accesses_are_found(program: str, found: set[str]) -> None:
    assert private_accesses(ast.parse(program)) == found


@pytest.mark.parametrize(
    ("program", "found"),
    [
        ("from ._events import _drop", {"_drop"}),
        ("from mozsocket._events import Event, _drop as drop", {"_drop"}),
        ("from anyio._core import _eventloop", {"_core", "_eventloop"}),
        ("import anyio._core._eventloop", {"_core", "_eventloop"}),
        ("from __future__ import annotations; from . import _log; from ._log import error; import ssl", set()),
    ],
)
def test_private_imports_are_found(program: str, found: set[str]) -> None:
    assert private_imports("_server.py", ast.parse(program)) == found


@pytest.mark.parametrize(
    ("module", "program", "found"),
    [
        ("_server.py", "from . import _log, TCPSocket", {"_log.py", "__init__.py"}),
        ("_server.py", "from ._log import error", {"_log.py"}),
        ("_server.py", "import ssl, mozsocket._log", {"_log.py"}),
        ("_server.py", "from mozsocket.cli import _loop, cli", {"cli/_loop.py", "cli/__init__.py"}),
        ("_server.py", "if TYPE_CHECKING:\n  from ._log import error", {"_log.py"}),
        ("_server.py", "def f():\n  from ._log import error", {"_log.py"}),
        ("cli/_loop.py", "from .. import Event", {"__init__.py"}),
        ("cli/_loop.py", "from .._log import error", {"_log.py"}),
        ("cli/__init__.py", "from ._loop import words", {"cli/_loop.py"}),
    ],
)
def test_imports_are_found(module: str, program: str, found: set[str]) -> None:
    assert dependencies(module, ast.parse(program)) == found


@pytest.mark.parametrize(
    ("program", "found"),
    [
        ("import anyio\nanyio.wait_readable(sock)", {"wait_readable"}),
        ("import anyio.lowlevel\nanyio.wait_socket_writable(sock)", {"wait_socket_writable"}),
        ("import anyio as io\nio.notify_closing(sock)", {"notify_closing"}),
        ("from anyio import wait_writable as wait", {"wait_writable"}),
        ("import anyio\nwatched.wait_readable(); anyio.wait_all_tasks_blocked()", set()),
        ("from ._readiness import wait_writable\nwait_writable(sock)", set()),
    ],
)
def test_waiting_is_found(program: str, found: set[str]) -> None:
    assert waiting("_server.py", ast.parse(program)) == found


@pytest.mark.parametrize(
    ("declaration", "found"),
    [
        ("class A", {"A"}),
        ("class A(Base)", {"A"}),
        ("class A(ABC)", set()),
        ("class A(abc.ABC)", set()),
        ("class A(metaclass=ABCMeta)", set()),
        ("class A(typing.Protocol[T])", set()),
        ("class B(ABC): ...\nclass A(B)", set()),
    ],
)
def test_pretenders_are_found(declaration: str, found: set[str]) -> None:
    method = "\n  @property\n  @abc.abstractmethod\n  def f(self): ..."
    assert pretenders([ast.parse(f"{declaration}:{method}")]) == found


# The project


PROJECT = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")


def test_the_oldest_dependencies_that_are_tested_are_the_oldest_that_are_allowed() -> None:
    allowed = set(re.findall(r'"((?:anyio|trio|uvloop|click|tqdm)>=[0-9.]+)', PROJECT))
    tested = re.findall(r"^deps = \[(.*)\]$", PROJECT.split("[tool.tox.env.oldest]")[1], re.MULTILINE)[0]
    assert {each.replace(">=", "==") for each in allowed} == set(re.findall(r'"(.*?)"', tested))
