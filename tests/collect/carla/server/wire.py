"""The sockets: msgpack-RPC in, streams out, one thread for all of it."""

import collections
import selectors
import socket
import struct
import time

import msgpack

from avtd3.tests.collect.carla.server.calls import VOID, Bare
from avtd3.tests.collect.carla.server.packing import SNAPSHOT_STREAM
from avtd3.tests.collect.carla.server.simulation import Refused

_REQUEST, _REPLY = 0, 1
_CHUNK = 1 << 18
# Messages to a subscriber that does not read are dropped.
_MOST_UNSENT_BYTES = 64 << 20


class Link:
    """A connection: passes incoming data on, and buffers outgoing data."""

    def __init__(self, selector, sock, received, closed):
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector, self._socket, self._unsent = selector, sock, bytearray()
        self._received, self._closed = received, closed
        self.is_open = True
        selector.register(sock, selectors.EVENT_READ, self._ready)

    def _ready(self, events):
        if events & selectors.EVENT_WRITE:
            self._flush()
        if events & selectors.EVENT_READ and self.is_open:
            try:
                data = self._socket.recv(_CHUNK)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if data:
                self._received(self, data)
            else:
                self.close()

    def send(self, data):
        """Send data, now or as soon as the other side reads it."""
        if self.is_open and len(self._unsent) < _MOST_UNSENT_BYTES:
            was_waiting = bool(self._unsent)
            self._unsent += data
            if not was_waiting:
                self._flush()

    def _flush(self):
        try:
            while self._unsent:
                sent = self._socket.send(self._unsent)
                del self._unsent[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        waits = selectors.EVENT_WRITE if self._unsent else 0
        self._selector.modify(self._socket, selectors.EVENT_READ | waits, self._ready)

    def close(self):
        """Close the connection; safe to call twice."""
        if self.is_open:
            self.is_open = False
            self._selector.unregister(self._socket)
            self._socket.close()
            self._closed(self)


class Streams:
    """The port of the streams: a connection names a stream and gets its messages."""

    def __init__(self, selector, host):
        self._selector, self._wanted = selector, {}
        self.port = listen(selector, host, 0, self._accept)

    def _accept(self, sock):
        self._wanted[Link(self._selector, sock, self._subscribe, self._forget)] = None

    def _subscribe(self, link, data):
        if self._wanted[link] is None and len(data) >= 4:
            self._wanted[link] = struct.unpack_from("<I", data)[0]

    def _forget(self, link):
        del self._wanted[link]

    def publish(self, stream_id, message):
        """Send a message to all subscribers of a stream."""
        for link, wanted in list(self._wanted.items()):
            if wanted == stream_id:
                link.send(struct.pack("<I", len(message)) + message)

    def counts(self):
        """Return the number of subscriptions of each stream."""
        return dict(collections.Counter(self._wanted.values()))

    def cut(self, *, snapshots):
        """Close all connections for snapshots, or all other connections."""
        for link, wanted in list(self._wanted.items()):
            if (wanted == SNAPSHOT_STREAM) == snapshots:
                link.close()


class Answers:
    """The port of the calls."""

    def __init__(self, selector, host, port, calls, faults):
        self._selector, self._calls, self._faults = selector, calls, faults
        self._unpackers = {}
        self.counts: collections.Counter[str] = collections.Counter()
        self.problems: list[str] = []
        self.port = listen(selector, host, port, self._accept)

    @property
    def clients(self):
        """Return the number of open connections."""
        return len(self._unpackers)

    def _accept(self, sock):
        link = Link(self._selector, sock, self._read, self._forget)
        self._unpackers[link] = msgpack.Unpacker(strict_map_key=False)

    def _forget(self, link):
        del self._unpackers[link]

    def _read(self, link, data):
        unpacker = self._unpackers[link]
        unpacker.feed(data)
        try:
            messages = list(unpacker)
        except (ValueError, msgpack.UnpackException):
            messages = [None]
        for message in messages:
            if not isinstance(message, list) or len(message) not in (3, 4):
                self.problems.append(f"no message of msgpack-RPC: {message!r}"[:300])
                link.close()
                return
            if message[0] == _REQUEST:
                _, number, method, (metadata, *arguments) = message
                self._answer(link, number, method, arguments, waits=not metadata[0])

    def _answer(self, link, number, method, arguments, *, waits):
        self.counts[method] += 1
        if method == "tick_cue" and self._faults.is_due("hang_after_ticks"):
            self._faults.change({"hang": True, "hang_after_ticks": None})
        if self._faults.hang:
            return
        delay_s = self._faults.slow.get(method, self._faults.slow.get("*", 0.0))
        if delay_s:
            time.sleep(delay_s)
        if not waits and self._calls.is_late("late_calls_every"):
            self._calls.later.append((method, arguments))
            link.send(msgpack.packb([_REPLY, number, None, [[False]]]))
            return
        error, result = self._result(method, arguments)
        if method == "tick_cue":
            later, self._calls.later = self._calls.later, []
            for late in later:
                self._result(*late)
        link.send(msgpack.packb([_REPLY, number, error, result]))

    def _result(self, method, arguments):
        """Return the error and the result of a call."""
        call = None if method.startswith("_") else getattr(self._calls, method, None)
        if call is None:
            self.problems.append(f"unknown call {method}{tuple(arguments)}"[:300])
            return f"unknown call {method}", None
        try:
            value = call(*arguments)
        except Refused as error:
            return None, [[True, [str(error)]] if method in VOID else [0, [str(error)]]]
        except Exception as error:  # noqa: BLE001 # an unanswered client would wait for its timeout
            self.problems.append(f"{method}{tuple(arguments)}: {error!r}"[:300])
            return repr(error), None
        if isinstance(value, Bare):
            return None, value.value
        return None, [[False]] if method in VOID else [[1, value]]


def listen(selector, host, port, accept):
    """Listen on a port, 0 for a free one; return the port."""
    listener = socket.create_server((host, port), backlog=64)
    listener.setblocking(False)

    def ready(_events):
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            return
        accept(sock)

    selector.register(listener, selectors.EVENT_READ, ready)
    return listener.getsockname()[1]
