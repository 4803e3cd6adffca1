"""The events, and the objects that they are dispatched to, with their ``on…`` handlers and listeners.

Sources: DOM (``Event``, ``EventTarget``), Gecko's ``TCPSocketEvent``, ``TCPServerSocketEvent`` and
``TCPSocketErrorEvent``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from inspect import CO_COROUTINE, isawaitable, iscoroutine, iscoroutinefunction
from types import FunctionType, MethodType
from typing import Any, ClassVar, Generic, NamedTuple, TypeGuard, TypeVar, overload

import anyio.lowlevel

from ._errors import TCPSocketError
from ._unique import Referable, Strict, Unique, setters_of

__all__ = (
    "Event",
    "EventHandler",
    "EventTarget",
    "Listeners",
    "OnlyHandler",
    "TCPSocketErrorEvent",
    "UnfinishedEvent",
    "is_async",
    "is_to_be_awaited",
    "require_callable",
    "types_of",
)

TargetT = TypeVar("TargetT", bound="EventTarget", covariant=True)
EventT = TypeVar("EventT", bound="Event[Any]")


class Event(Referable, Generic[TargetT]):
    """Something that happened to a socket. Immutable."""

    __slots__ = ("_target", "_type")
    __match_args__ = ("type", "target")

    def __init__(self, type: str, target: TargetT) -> None:
        self._type = type
        self._target = target

    @property
    def type(self) -> str:
        """``"open"``, ``"secure"``, ``"drain"``, ``"data"``, ``"end"``, ``"error"``, ``"close"`` or ``"connect"``."""
        return self._type

    @property
    def target(self) -> TargetT:
        """The socket, or the server, that it happened to."""
        return self._target

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.type}{self._details()}, {self.target!r}>"

    def _details(self) -> str:
        return ""


class TCPSocketErrorEvent(Event[TargetT]):
    """``error``: a connection failed or was lost, or a server can no longer listen."""

    __slots__ = ("_error",)
    __match_args__ = ("type", "target", "error")

    def __init__(self, type: str, target: TargetT, error: TCPSocketError) -> None:
        super().__init__(type, target)
        self._error = error

    @property
    def error(self) -> TCPSocketError:
        """The failure as a Python exception; its ``__cause__`` is the original exception."""
        return self._error

    @property
    def name(self) -> str:
        """What happened, such as ``"ConnectionRefusedError"`` (Gecko's names)."""
        return self.error.name

    @property
    def message(self) -> str:
        """The class of the error: ``"Network"``, ``"SecurityProtocol"`` or ``"SecurityCertificate"``."""
        return self.error.message

    @property
    def errorCode(self) -> int:
        """The number of the error, see :attr:`TCPSocketError.errorCode`; 0 if it has none."""
        return self.error.errorCode

    def _details(self) -> str:
        return f" {self.error}"


class EventHandler(Generic[EventT]):
    """An ``on…`` attribute: ``None``, or a function or ``async def`` function that takes one event.

    If the handler returns an awaitable, it is awaited before the socket's next event; any other result is ignored. What
    it raises closes the socket, and leaves the block that owns it; for an accepted socket it is logged instead.

    :param doc: when the event happens, for :func:`help`
    :raises TypeError: when set to anything else
    """

    def __init__(self, doc: str = "") -> None:
        if doc:
            self.__doc__ = doc

    def __set_name__(self, owner: type[EventTarget], name: str) -> None:
        self._name, self._type = name, name[2:]

    @overload
    def __get__(self, target: None, owner: type[EventTarget]) -> EventHandler[EventT]: ...
    @overload
    def __get__(self, target: EventTarget, owner: type[EventTarget]) -> Callable[[EventT], object] | None: ...
    def __get__(
        self, target: EventTarget | None, owner: type[EventTarget]
    ) -> EventHandler[EventT] | Callable[[EventT], object] | None:
        return self if target is None else target._listeners.handlers.get(self._type)

    def __set__(self, target: EventTarget, handler: Callable[[EventT], object] | None) -> None:
        if handler is not None:
            require_callable(self._name, handler)
        target._listeners.handle(self._type, handler)

    def __delete__(self, target: EventTarget) -> None:
        raise AttributeError(f"{self._name} cannot be deleted: set it to None")


class OnlyHandler:
    """A handler for an ``on…`` attribute only, which cannot be added as a listener.

    :ivar words: what it is, for the beginning of an error message
    """

    words: str


_NO_TYPES: frozenset[str] = frozenset()


class _Listener(NamedTuple):
    call: Callable[[Any], object]
    once: bool


class Listeners:
    """The handlers and listeners of one object: for each type of event one handler, then listeners in order of adding.

    :ivar handlers: the handlers, by the type of event
    :ivar async_types: the types with an ``async def`` function among their handlers, which need a task to deliver them
    :ivar data_function: the plain function that gets every ``data`` event, and alone; None if there is no such. It is
        kept apart as there is an event for each message
    """

    __slots__ = ("_added", "async_types", "data_function", "handlers")

    def __init__(self) -> None:
        self.handlers: dict[str, Callable[[Any], object]] = {}
        self._added: dict[str, list[_Listener]] | None = None  # the listeners; None while none was ever added
        self.async_types: frozenset[str] = _NO_TYPES
        self.data_function: Callable[[Any], object] | None = None

    @classmethod
    def of(cls, type: str, handler: Callable[[Any], object] | None) -> Listeners:
        """Listeners of one handler alone; with None, of none."""
        listeners = cls()
        listeners.handle(type, handler)
        return listeners

    def handle(self, type: str, handler: Callable[[Any], object] | None) -> None:
        """Set the handler of a type, or remove it with None."""
        if handler is None:
            self.handlers.pop(type, None)
        else:
            self.handlers[type] = handler
        self._classify(type)

    def add(self, type: str, listener: Callable[[Any], object], once: bool) -> None:
        if self._added is None:
            self._added = {}
        listeners = self._added.setdefault(type, [])
        if not any(entry.call == listener for entry in listeners):
            listeners.append(_Listener(listener, once))
            self._classify(type)

    def remove(self, type: str, listener: Callable[[Any], object]) -> None:
        if self._added is not None:
            for entry in tuple(self._added.get(type, ())):
                if entry.call == listener:
                    self._remove(type, entry)

    def has(self, type: str) -> bool:
        """Whether anything listens to events of a type."""
        return type in self.handlers or bool(self._added and self._added.get(type))

    def call(self, event: Event[Any]) -> UnfinishedEvent | None:
        """Call the handler and the listeners of an event, in order, up to the first that returns an awaitable.

        :return: that awaitable and the remaining listeners; None if all have returned
        """
        if self._added is None:  # the usual case
            handler = self.handlers.get(event.type)
            result = None if handler is None else handler(event)
            if result is None or isinstance(result, bool):  # a bool comes from a lambda that calls send()
                return None
            return UnfinishedEvent(result, event, iter(())) if is_to_be_awaited(result) else None
        remaining = self._callbacks(event.type, self._added)
        for callback in remaining:
            result = callback(event)
            if result is not None and is_to_be_awaited(result):
                return UnfinishedEvent(result, event, remaining)
        return None

    def _callbacks(self, type: str, added: dict[str, list[_Listener]]) -> Iterator[Callable[[Any], object]]:
        # Listeners added meanwhile wait for the next event; listeners removed meanwhile are no longer called (DOM).
        entries = tuple(added.get(type, ()))
        handler = self.handlers.get(type)
        if handler is not None:
            yield handler
        for entry in entries:
            if any(entry is current for current in added[type]):
                if entry.once:
                    self._remove(type, entry)
                yield entry.call

    def _remove(self, type: str, entry: _Listener) -> None:
        assert self._added is not None
        self._added[type] = [other for other in self._added[type] if other is not entry]
        self._classify(type)

    def _classify(self, type: str) -> None:
        """After a change, find out what kind of functions listen to a type."""
        handler = self.handlers.get(type)
        added = None if self._added is None else self._added.get(type)
        if added:
            calls = [entry.call for entry in added]
            if handler is not None:
                calls.append(handler)
            has_async = any(map(is_async, calls))
            sole = None if len(calls) > 1 or added[0].once else calls[0]
        else:  # usually
            sole, has_async = handler, handler is not None and is_async(handler)
        if has_async is not (type in self.async_types):
            self.async_types = _with(self.async_types, type, has_async)
        if type == "data":
            self.data_function = None if has_async else sole


def _with(types: frozenset[str], type: str, is_in: bool) -> frozenset[str]:
    """A set with a type, or without it: one object for all that are equal, as there may be many connections."""
    changed = types | {type} if is_in else types - {type}
    return _TYPE_SETS.setdefault(changed, changed)


_TYPE_SETS: dict[frozenset[str], frozenset[str]] = {}


class EventTarget(Unique, Strict, Referable):
    """An object that events are dispatched to (DOM): for each type of event to one handler, then to the listeners in
    order of adding.
    """

    __slots__ = ("_listeners",)

    _listeners: Listeners

    _types: ClassVar[tuple[str, ...]] = ()  # the types of events that it has

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._types = tuple(name[2:] for name in dir(cls) if isinstance(getattr(cls, name), EventHandler))
        for name in vars(cls):
            inherited = getattr(super(cls, cls), name, None)
            if isinstance(inherited, EventHandler) and not isinstance(vars(cls)[name], EventHandler):
                raise TypeError(f"{cls.__name__}.{name} would hide the attribute: assign {name} in __init__() instead")

    def __init__(self) -> None:
        _set_listeners(self, Listeners())

    def _what_there_is(self) -> str:
        return f"; its handlers are {', '.join(f'on{type_}' for type_ in self._types)}"

    def addEventListener(self, type: str, listener: Callable[[Any], object], *, once: bool = False) -> None:
        """Call a function with each event of a type, after the ``on…`` handler and the listeners added before.

        Adding a listener that was added already does nothing (DOM).

        :param type: the type of event, such as ``"data"``
        :param listener: a function or ``async def`` function that takes one event
        :param once: whether to remove the listener when it is first called
        :raises ValueError: if this object has no events of that type
        :raises TypeError: if the listener cannot be called, or can be set as ``ondata`` only
        """
        self._check_type(type)
        require_callable("a listener", listener)
        if isinstance(listener, OnlyHandler):
            raise TypeError(
                f"{listener.words} is for ondata only: data that it leaves would reach other listeners twice"
            )
        self._listeners.add(type, listener, once)

    def removeEventListener(self, type: str, listener: Callable[[Any], object]) -> None:
        """Undo :meth:`addEventListener`. Removing a listener that was not added does nothing (DOM).

        :param type: the type of event it was added for
        :param listener: the function that was added
        :raises ValueError: if this object has no events of that type
        """
        self._check_type(type)
        self._listeners.remove(type, listener)

    def _check_type(self, type_: str) -> None:
        if type_ not in self._types:
            raise ValueError(f"unknown event type {type_!r}: it must be one of {', '.join(self._types)}")


def types_of(target: EventTarget) -> tuple[str, ...]:
    """The types of events that an object has."""
    return target._types


(_set_listeners,) = setters_of(EventTarget, "_listeners")


class UnfinishedEvent:
    """An event whose handlers have not all returned: an awaitable that one of them gave, and the listeners after it.

    Either :meth:`finish` or :meth:`drop` is called, once; :meth:`call_remaining` only after the latter.

    :ivar event: the event
    """

    __slots__ = ("_awaitable", "_remaining", "event")

    def __init__(
        self, awaitable: Awaitable[object], event: Event[Any], remaining: Iterator[Callable[[Any], object]]
    ) -> None:
        self._awaitable = awaitable
        self.event = event
        self._remaining = remaining

    async def finish(self) -> None:
        """Await the awaitable, then call and await the remaining listeners."""
        await self._awaitable
        for callback in self._remaining:
            await anyio.lowlevel.checkpoint_if_cancelled()  # no listener is called after a cancellation
            result = callback(self.event)
            if isawaitable(result):
                await result

    def drop(self) -> None:
        """Await nothing, and close the coroutine, which would otherwise warn that it was never awaited."""
        _drop(self._awaitable)

    def call_remaining(self, event: Event[Any]) -> None:
        """Call the remaining listeners, and await none of them."""
        for callback in self._remaining:
            _drop(callback(event))


def is_to_be_awaited(result: object) -> TypeGuard[Awaitable[object]]:
    """Whether the result of a handler has to be awaited."""
    return not isinstance(result, bool) and isawaitable(result)


def _drop(result: object) -> None:
    if iscoroutine(result):
        result.close()


def is_async(function: Callable[[Any], object]) -> bool:
    """Whether a function, a method or another callable is asynchronous."""
    plain = function.__func__ if isinstance(function, MethodType) else function
    if isinstance(plain, FunctionType):  # the usual case; `inspect` takes longer
        return bool(plain.__code__.co_flags & CO_COROUTINE)
    return iscoroutinefunction(function) or iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def require_callable(what: str, function: object) -> None:
    if not callable(function):
        raise TypeError(f"{what} must be a function that takes one event, not {function!r}")
