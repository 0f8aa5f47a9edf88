"""Engine: reactors and their threads, for as long as a Trio run wants them."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from contextlib import nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypedDict, overload

import trio

from trio_wknet._admission import Admission
from trio_wknet._bridge import Bridge
from trio_wknet._conn import Conn
from trio_wknet._drop_in.bypass import bypass
from trio_wknet._fork import watch_forks
from trio_wknet._group import MAX_PENDING, Group, Groups
from trio_wknet._listener import Listener
from trio_wknet._native.trio.connections import Connections
from trio_wknet._native.trio.core import Core
from trio_wknet._native.trio.idle_scopes import timeout_rules
from trio_wknet._native.trio.latch import Latch
from trio_wknet._native.trio.tally import accepted, open_listeners, tally
from trio_wknet._options import ConnOptions, Limits, check_some_seconds, is_tcp
from trio_wknet._proxy.trust import parse_trusted
from trio_wknet._shortage import ShortageLog
from trio_wknet._sockets.address import parse_address
from trio_wknet._sockets.listening import close_unused, open_listening_sockets
from trio_wknet._sockets.unix_connect import connect_unix
from trio_wknet._stall import StallWatch, check_on_stall
from trio_wknet._statistics import (
    EngineStatistics,
    ReactorStatistics,
    all_ended_by,
    lag_histogram,
    refused_by,
    size_histogram,
    traffic,
)
from trio_wknet._tasks import ConnTask, tasks_of
from trio_wknet._tls import check_server_hostname, start_tls
from trio_wknet._tls_address import split_tls
from trio_wknet._tls_listener import TLSListener
from trio_wknet._top.page import TopPage, wanted_name
from trio_wknet._usage_errors import for_async_with, one_address
from trio_wknet._websocket.address import split_websocket

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable, Collection, Mapping
    from contextlib import AbstractAsyncContextManager

    from typing_extensions import Unpack

    from trio_wknet._idle import Idle
    from trio_wknet._proxy.trust import Network, Trusted
    from trio_wknet._sockets.address import Address
    from trio_wknet._stall import OnStall
    from trio_wknet._tls import TLSStream
    from trio_wknet._websocket.listener import WebSocketListener
    from trio_wknet._websocket.options import WebSocketOptions

    class ListenSettings(TypedDict, total=False):
        """What can be set of any listener."""

        handshake_time: float
        backlog: int | None
        reuse_port: bool
        idle_timeout: float | Idle | None
        proxy_protocol: Collection[Network] | None
        admission: Admission | None
        limits: Limits
        options: ConnOptions

    class ConnectSettings(TypedDict, total=False):
        """What can be set of any connection."""

        server_hostname: str | bytes | None
        limits: Limits
        options: ConnOptions

    class OwnEngine(ListenSettings, total=False):
        """The same, and the engine."""

        engine: Engine | None
        reactors: int | None
        max_buffered: int | None


MAX_REACTORS = 1024
_BY_PROGRAM = 1  # in measure.pxd
LEAST_BUFFERED = 1 << 20  # bytes
MOST_BUFFERED = 1 << 40
_SOCKET_STREAM_OPTIONS = ((socket.TCP_NODELAY, 1), (socket.TCP_NOTSENT_LOWAT, 2**14))


def check_reactors(reactors: object) -> None:
    if reactors is not None and (isinstance(reactors, bool) or not isinstance(reactors, int)):
        raise TypeError(f"reactors must be an integer or None, not {reactors!r}")
    if reactors is not None and not 0 <= reactors <= MAX_REACTORS:
        raise ValueError(f"reactors must be from 0 to {MAX_REACTORS}, not {reactors}")


def check_max_buffered(max_buffered: object) -> None:
    if max_buffered is None:
        return
    if isinstance(max_buffered, bool) or not isinstance(max_buffered, int):
        raise TypeError(f"max_buffered must be an integer or None, not {max_buffered!r}")
    if not LEAST_BUFFERED <= max_buffered <= MOST_BUFFERED:
        raise ValueError(
            f"max_buffered must be from {LEAST_BUFFERED} to {MOST_BUFFERED}, not {max_buffered}"
        )


def _choose_reactors(reactors: int | None) -> int:
    """The number of reactor threads; 0 means in-loop."""
    check_reactors(reactors)
    # A foreign thread is invisible to a mock clock: its autojump would fire while
    # bytes are in flight. So under such a clock the reactor runs in-loop.
    if _virtual_clock() is not None:
        return 0
    if reactors is None:
        return 1 if len(os.sched_getaffinity(0)) > 1 else 0
    return reactors


def _virtual_clock() -> Callable[[], float] | None:
    """The time function of a run whose clock does not follow the system's; else None."""
    clock = trio.lowlevel.current_clock()
    # A program with such a clock has imported trio.testing already. Importing it here would
    # bring in pytest, where that is installed: more modules than a small server has, and
    # more objects for each garbage collection. So it is only looked up.
    testing = sys.modules.get("trio.testing")
    virtual = testing is not None and isinstance(clock, testing.MockClock)
    return clock.current_time if virtual else None


class Engine:
    """Reactors, their threads and their connections. `open_engine` opens one.

    Its methods belong to the Trio run and the thread in which it was opened: they raise
    `RuntimeError` in any other thread, in a forked child, and once it is closed.
    """

    def __init__(self, *_: NoReturn, **__: NoReturn) -> None:
        raise TypeError(
            "an Engine cannot be constructed; write 'async with open_engine() as engine:'"
        )

    @classmethod
    def _open(cls, reactors: int, balance: str, max_buffered: int | None = None) -> Engine:
        engine = cls.__new__(cls)
        engine._start(reactors, balance, max_buffered or 0)
        return engine

    def _start(self, reactors: int, balance: str, max_buffered: int) -> None:
        make_conn = partial(Conn.__new__, Conn)  # `Conn()` is for nobody
        round_robin = balance == "round_robin"
        self._core = Core(reactors, round_robin, make_conn, _virtual_clock(), max_buffered)
        self._core.engine = self
        self._core.on_shortage = self._update_shortage
        self._connections = Connections(self._core)
        self._groups = Groups._of(self)
        self._shortages = ShortageLog(
            "cannot watch a connection for now", "watches all connections again"
        )
        self._closed = False
        self._stalls: StallWatch | None = None
        self._threads: list[threading.Thread] = []
        self._page: TopPage | None = None
        try:
            self._start_threads(reactors)
            watch_forks(self._core)
            self._open_page(reactors)
            self._bridge = Bridge(self._core, self._shut_down)
        except BaseException:
            self._join_and_close()
            raise

    def _watch_stalls(self, on_stall: OnStall | None, after: float) -> None:
        if on_stall is not None:
            self._stalls = StallWatch(self._core, on_stall, after)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._threads) or 'in-loop'} reactors"
        return f"<trio_wknet.Engine {state}>"

    @property
    def reactors(self) -> int:
        """The number of reactor threads; 0 means in-loop."""
        return len(self._threads)

    def _start_threads(self, count: int) -> None:
        # Threads inherit the mask: signals are the main thread's.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            for index in range(count):
                thread = threading.Thread(
                    target=self._core.run, args=(index,), name=f"wknet-reactor-{index}", daemon=True
                )
                thread.start()
                self._threads.append(thread)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _open_page(self, reactors: int) -> None:
        """The page for `trio-wknet top`, if this run has them."""
        name = wanted_name(default_top.get())
        if name is not None:
            self._page = TopPage(self._core, reactors, name)

    def _join_and_close(self) -> None:
        try:
            if self._page is not None:
                self._page.stop()
            self._core.stop()
            for thread in self._threads:
                thread.join()
        finally:
            self._core.close()
            if self._page is not None:
                self._page.close()

    # --- connections ---------------------------------------------------------

    @property
    def connections(self) -> Mapping[int, Conn]:
        """The open connections of this engine, by `Conn.id`: a live, read-only mapping.

        It holds connections that were accepted, connected, adopted, or are served by
        callbacks, until they are closed by this program; not those that still wait for
        ``accept``, nor those that linger. A lookup takes constant time, and the mapping
        costs nothing unless it is used. The id of a closed connection raises `KeyError`,
        and is not reused soon.

        Iteration goes over the ids that existed when it began; connections may come and
        go during it, also across an ``await``. ``values()`` and ``items()`` skip those
        that have gone. In event mode `Conn` objects are created on access::

            for conn in engine.connections.values():
                with suppress(trio.WouldBlock, trio.BrokenResourceError):
                    conn.send_nowait(b"the server will restart")

        Using the mapping raises `RuntimeError` once the engine is closed, from another
        thread, and in a forked child.
        """
        return self._connections

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """The open listeners of this engine, the oldest first. For one that serves TLS or
        WebSockets, the `Listener` of its connections.

        Using it raises `RuntimeError` once the engine is closed, from another thread, and in a
        forked child.
        """
        return tuple(open_listeners(self._core))

    def group(self, *, max_pending: int = MAX_PENDING) -> Group:
        """Make a group of connections, to send the same messages to all of them. Not a
        checkpoint. A group needs no closing.

        Args:
          max_pending: bytes that broadcasts in progress may hold, their lists of members (some
              30 bytes each) included; by default 16 MiB. One that is larger is still sent, if
              no other is in progress.

        Returns:
          A `Group`, empty.

        Raises:
          ValueError, TypeError: if an argument is invalid.
          RuntimeError: if the engine is closed, or belongs to another thread.
        """
        self._core.ensure_usable()
        return Group._of(self, max_pending)

    @property
    def groups(self) -> Groups:
        """Groups by key, each of which exists while it has members: a live mapping, see
        `Groups`."""
        return self._groups

    @overload
    async def listen(
        self,
        address: str | int,
        *,
        tls: None = None,
        websocket: None = None,
        **settings: Unpack[ListenSettings],
    ) -> Listener: ...

    @overload
    async def listen(
        self,
        address: str | int,
        *,
        tls: ssl.SSLContext,
        websocket: None = None,
        **settings: Unpack[ListenSettings],
    ) -> TLSListener: ...

    @overload
    async def listen(
        self,
        address: str | int,
        *,
        tls: ssl.SSLContext | None = None,
        websocket: WebSocketOptions,
        **settings: Unpack[ListenSettings],
    ) -> WebSocketListener: ...

    @one_address
    async def listen(
        self,
        address: str | int,
        *,
        tls: ssl.SSLContext | None = None,
        handshake_time: float = 10.0,
        websocket: WebSocketOptions | None = None,
        backlog: int | None = None,
        reuse_port: bool = False,
        idle_timeout: float | Idle | None = None,
        proxy_protocol: Collection[Network] | None = None,
        admission: Admission | None = None,
        limits: Limits = Limits(),
        options: ConnOptions = ConnOptions(),
    ) -> Listener | TLSListener | WebSocketListener:
        """Open a listener on this engine's reactors. A checkpoint.

        Args:
          address: ``"tcp://host:port"``, ``"unix:///path"``, or a port number, which
              means all interfaces. Port 0 takes a free port. If the host resolves to
              several addresses, the listener binds all of them, with the same port. A
              path is used literally, without escapes. ``"unix://@name"`` is a name in
              Linux's abstract namespace, without a file: anybody in the same network
              namespace may connect. ``"tls://host:port"`` serves TLS.
              ``"ws://host:port[/path]"`` serves WebSockets, all paths or that one, and
              ``"wss://..."`` serves them over TLS.
          tls: for ``tls://`` and ``wss://``, and for no other address: a server's
              `ssl.SSLContext`. By default None.
          handshake_time: for these, seconds that the handshake of TLS may take. Above 0, up
              to 86400; default 10.
          websocket: serve WebSockets at the address, whatever it begins with, with these
              options. None, the default, does so only for ``ws://`` and ``wss://``, with
              ``WebSocketOptions()``.
          backlog: the length of the kernel's queue of connections not yet accepted. None,
              the default, is the most that the kernel allows.
          reuse_port: give each reactor a listening socket of its own
              (``SO_REUSEPORT``), which also lets other processes listen on the
              same port. Default False.
          idle_timeout: seconds without bytes in either direction after which a connection
              is closed, with ``close_reason`` ``"idle"``, or an `Idle`, which has a limit for
              each direction. None, the default, never closes one. `Listener.serve` says how a
              handler finds out, and `Conn.idle_timeout` changes it for one connection. On TCP, what
              other software sends on the descriptor counts, too (``os.sendfile``).
          proxy_protocol: the load balancers whose connections must begin with a
              header of the PROXY protocol (version 1 or 2), from which
              `Conn.remote_address` and `Conn.proxy_header` come: networks and addresses,
              as strings (``"10.0.0.0/8"``) or objects of Python's ``ipaddress``;
              ``"unix:"`` is any process that may connect to a unix socket. Connections
              from elsewhere are refused. So is one whose header is malformed, or does not
              arrive within ``limits.proxy_header_time``: it is not accepted, it is counted
              in ``statistics().refused``, and logged as
              ``trio_wknet.proxy_protocol``. None, the default: connections begin
              with data.
          admission: bounds on which connections are let in, an `Admission`. None, the default:
              all are.
          limits: the limits of the accepted connections; by default ``Limits()``.
          options: their socket options; by default ``ConnOptions()``.

        Returns:
          A `Listener`; for TLS a `TLSListener`; for WebSockets, with or without TLS, a
          `WebSocketListener`. Close it, or use it in an ``async with`` block.

        Raises:
          ValueError, TypeError: if an argument is invalid.
          OSError: if the host does not resolve or the address cannot be bound;
              the message names it. Nothing is left open.
          MemoryError: if there is no memory for it. Nothing is left open.
          RuntimeError: if the engine is closed, or belongs to another thread.
        """
        self._core.ensure_usable()
        _check(limits, Limits, "limits")
        _check(options, ConnOptions, "options")
        check_admission(admission)
        timeout = timeout_rules(idle_timeout)
        check_some_seconds("handshake_time", handshake_time)
        plain, context = split_tls(address, tls, server_side=True)
        plain, over = split_websocket(plain, websocket)
        parsed = parse_address(plain)
        trusted = parse_trusted(proxy_protocol, unix=parsed.path is not None)
        copies = max(1, self.reactors) if reuse_port else 1
        sockets = await open_listening_sockets(parsed, backlog, reuse_port, copies, options)
        try:
            listener = self._make_listener(
                sockets,
                limits,
                timeout=timeout,
                spread=reuse_port,
                path=parsed.file,
                trusted=trusted,
                admission=admission,
            )
        except BaseException:  # the engine was closed meanwhile, or there is no memory
            close_unused(sockets, parsed.file)
            raise
        top: Listener | TLSListener = listener
        if context is not None:
            top = TLSListener(listener, context, handshake_time=handshake_time)
        return top if over is None else over(top)

    def _make_listener(
        self,
        sockets: list[socket.socket],
        limits: Limits,
        *,
        timeout: tuple[int, int] = (0, 0),
        spread: bool = False,
        path: str | None = None,
        trusted: Trusted | None = None,
        admission: Admission | None = None,
    ) -> Listener:
        self._core.ensure_usable()
        return Listener._open_on(
            self._core,
            sockets,
            limits,
            timeout=timeout,
            spread=spread,
            path=path,
            trusted=trusted,
            admission=admission,
        )

    @overload
    async def connect(
        self, address: str, *, tls: None = None, **settings: Unpack[ConnectSettings]
    ) -> Conn: ...

    @overload
    async def connect(
        self, address: str, *, tls: ssl.SSLContext, **settings: Unpack[ConnectSettings]
    ) -> TLSStream: ...

    @one_address
    async def connect(
        self,
        address: str,
        *,
        tls: ssl.SSLContext | None = None,
        server_hostname: str | bytes | None = None,
        limits: Limits = Limits(),
        options: ConnOptions = ConnOptions(),
    ) -> Conn | TLSStream:
        """Connect to an address. A checkpoint.

        If the host has several addresses, Trio's own Happy Eyeballs (RFC 8305) tries
        them, and the winner is adopted. While the queue of a unix socket's server is
        full this waits, trying again at least every 50 ms. So, as with TCP, use a deadline
        (`trio.fail_after`) against a server that is stuck, or that does not perform the
        handshake of TLS.

        Args:
          address: ``"tcp://host:port"``, ``"tls://host:port"``, ``"unix:///path"``, or
              ``"unix://@name"``.
          tls: for ``tls://``, and for no other address: an `ssl.SSLContext`, such as
              `ssl.create_default_context` makes. By default None.
          server_hostname: for ``tls://``, the name that is sent to the server, and that its
              certificate is checked for. None, the default: the address's host.
          limits: the limits of the connection; by default ``Limits()``.
          options: its socket options; by default ``ConnOptions()``.

        Returns:
          A `Conn`; for ``tls://`` a `TLSStream` over one, whose handshake is done.

        Raises:
          ValueError, TypeError: if an argument is invalid.
          OSError: if the host does not resolve, or no address could be reached.
          trio.BrokenResourceError: if the handshake of TLS fails. Its cause is the
              `OSError`, which an `ssl.SSLError` is, as for a certificate that is not trusted.
          MemoryError: if there is no memory for it. Nothing is left open.
          RuntimeError: if the engine is closed, or belongs to another thread.
        """
        self._core.ensure_usable()
        _check(limits, Limits, "limits")
        _check(options, ConnOptions, "options")
        plain, context = split_tls(address, tls, server_side=False)
        parsed = parse_address(plain)
        if context is not None:
            server_hostname = server_hostname or parsed.host
            check_server_hostname(context, server_hostname, server_side=False)
        elif server_hostname is not None:
            raise ValueError("server_hostname must be None without tls")
        conn = await self._connect(address, parsed, limits, options)
        if context is None:
            return conn
        return await start_tls(conn, context, server_side=False, server_hostname=server_hostname)

    async def _connect(
        self, address: str, parsed: Address, limits: Limits, options: ConnOptions
    ) -> Conn:
        if parsed.path is not None:
            stream = await connect_unix(parsed.path)
        elif parsed.host is None or parsed.port == 0:
            raise ValueError(f"address must name a host and a port to connect to, not {address!r}")
        else:
            with bypass():
                stream = await trio.open_tcp_stream(parsed.host, parsed.port)
        return self._adopt_stream(stream, limits, options)

    def _adopt_stream(
        self, stream: trio.SocketStream, limits: Limits, options: ConnOptions
    ) -> Conn:
        """Take over a stream of Trio's own that was connected; it may have broken since."""
        plain = _detached(stream.socket)
        try:
            options.apply(plain)
            return Conn._from_socket(self._core, plain, limits)
        except BaseException:
            plain.close()
            raise

    def _adopt_listener(
        self, listener: trio.SocketListener, admission: Admission | None
    ) -> Listener:
        """Take over a listener of Trio's own."""
        plain = _detached(listener.socket)
        try:
            # Accepted connections inherit what a SocketStream sets on its socket.
            for option, value in _SOCKET_STREAM_OPTIONS if is_tcp(plain) else ():
                with suppress(OSError):
                    plain.setsockopt(socket.IPPROTO_TCP, option, value)
            return self._make_listener([plain], Limits(), admission=admission)
        except BaseException:
            plain.close()
            raise

    def adopt(
        self,
        sock: socket.socket,
        *,
        proxy_protocol: Collection[Network] | None = None,
        admission: Admission | None = None,
        limits: Limits = Limits(),
        options: ConnOptions = ConnOptions(),
    ) -> Conn | Listener:
        """Take over a stream socket: a listening one becomes a `Listener`, a
        connected one a `Conn`. Not a checkpoint.

        Args:
          sock: a TCP or unix socket. It is detached: the engine owns its descriptor from
              here on, and makes it non-blocking. If this raises, the caller still owns it.
          proxy_protocol: for a listening socket, the load balancers whose connections
              begin with a PROXY header, as in `listen`; by default None.
          admission: for a listening socket, bounds on which connections are let in, as in
              `listen`; by default None.
          limits: the limits of the connection, or of those that the listener accepts; by
              default ``Limits()``.
          options: their socket options; by default ``ConnOptions()``.

        Returns:
          A `Listener` or a `Conn`.

        Raises:
          TypeError: if an argument has the wrong type. ``sock`` must be exactly a
              `socket.socket`: a subclass, such as `ssl.SSLSocket`, does something else
              with the bytes.
          ValueError: if ``sock`` is not an open stream socket, if it is neither listening
              nor connected, or if it is connected and ``proxy_protocol`` or ``admission`` is
              given.
          OSError: if the kernel refuses one of the options.
          MemoryError: if there is no memory for it. ``sock`` is as it was.
          RuntimeError: if the engine is closed, or belongs to another thread.
        """
        self._core.ensure_usable()
        _check(limits, Limits, "limits")
        _check(options, ConnOptions, "options")
        check_admission(admission)
        _check_plain(sock)
        if sock.fileno() < 0:
            raise ValueError(f"sock must be open, not {sock!r}")
        if sock.type != socket.SOCK_STREAM:
            raise ValueError(f"sock must be a stream socket, not {sock!r}")
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            trusted = parse_trusted(proxy_protocol, unix=sock.family == socket.AF_UNIX)
            options.apply(sock)
            return self._make_listener([sock], limits, trusted=trusted, admission=admission)
        try:
            sock.getpeername()
        except OSError as exc:
            raise ValueError(f"sock must be listening or connected: {exc}") from None
        if proxy_protocol is not None:
            raise ValueError("proxy_protocol must be None for a connected socket")
        if admission is not None:
            raise ValueError("admission must be None for a connected socket")
        options.apply(sock)
        return Conn._from_socket(self._core, sock, limits)

    def measure(self, enabled: bool = True) -> None:
        """Measure, from now on, how late Trio's loop is, and how much it and the reactors
        work. `statistics` has the results. Not a checkpoint.

        It costs two readings of the clock for each turn of a reactor and each batch of news
        that Trio's side takes. While it is off, as it is at first, it costs nothing. The results
        are kept when it is switched off, and continued when it is switched on again.

        Args:
          enabled: False switches it off. Default True.

        Raises:
          TypeError: if ``enabled`` is not a `bool`.
          RuntimeError: if the engine is closed, or belongs to another thread.
        """
        if not isinstance(enabled, bool):
            raise TypeError(f"enabled must be True or False, not {enabled!r}")
        self._core.measure(_BY_PROGRAM, enabled)

    def statistics(self) -> EngineStatistics:
        """Return a snapshot of the counters. Not a checkpoint. It looks at each open connection,
        which takes up to 0.2 microseconds each.

        Returns:
          An `EngineStatistics`.

        Raises:
          RuntimeError: if the engine is closed, or belongs to another thread.
        """
        self._core.ensure_usable()
        tally(self._core)
        return self._as_of_tally()

    def _as_of_tally(self) -> EngineStatistics:
        """What is open was counted just now."""
        totals = self._core.totals
        wakes, (used, ready, slabs, kept, live), rows = self._core.statistics()
        unwatched, shortages, _ = self._core.shortage()
        refused = self._core.refused()
        measured, busy, batches, lags, by_lag, by_size = self._core.measures()
        buffered, pauses = self._core.budget()
        return EngineStatistics(
            connections=sum(row[0] for row in rows),
            unwatched=unwatched,
            shortages=shortages,
            refused_by=refused_by(refused),
            ended_by=all_ended_by(refused),
            buffered=buffered,
            paused_by_budget=pauses,
            accepted=accepted(self._core),
            connected=totals.connected,
            open=self._core.claimed,
            closed_by=totals.closed_by(),
            traffic=traffic(totals.sums(True)),
            handshakes_done=totals.handshakes,
            handshake_seconds=totals.handshake_seconds,
            failed_handshakes=totals.failed_handshakes,
            broadcasts=totals.broadcasts,
            broadcast_to=totals.broadcast_results(),
            wakes=wakes,
            measured_time=measured / 1e9,
            loop_busy_time=busy / 1e9,
            loop_lag=lags[0] / 1e9,
            wake_latency=lag_histogram(by_lag, lags),
            batches=batches[0],
            completions=batches[1],
            batch_sizes=size_histogram(by_size, batches),
            slots_in_use=used,
            slots_ready=ready,
            slab_bytes=slabs,
            pool_kept=kept,
            pool_in_use=live,
            reactors=tuple(
                ReactorStatistics(
                    connections=row[0],
                    turns=row[1],
                    events=row[2],
                    pool_kept=row[3],
                    pool_in_use=row[4],
                    busy_time=row[5] / 1e9,
                )
                for row in rows
            ),
        )

    def tasks(self) -> list[ConnTask]:
        """Return which tasks are behind the connections: for each that has one, the handler's
        (of `Listener.serve` and of `trio.serve_listeners`) or that of an async callback, and
        other tasks that wait in a receive or send of it. Not a checkpoint.

        It looks at every task of the run, which takes some microseconds each; while nobody calls
        it, nothing is recorded. Connections of event mode have no task while no async callback
        runs. Tasks of the application's own loop around `Listener.accept` are found if they wait
        in a connection.

        Returns:
          A list of `ConnTask`, sorted by the connections' ids.

        Raises:
          RuntimeError: if the engine is closed, or belongs to another thread.
        """
        self._core.ensure_usable()
        return tasks_of(self._core)

    def _update_shortage(self) -> None:
        unwatched, shortages, error = self._core.shortage()
        self._shortages.update(self, unwatched > 0, shortages, error)

    # --- the end -------------------------------------------------------------

    async def _aclose(self) -> None:
        """Close everything that is open, let connections that were closed gracefully
        linger, then stop. Cancellation cuts the lingering short."""
        try:
            if not self._closed and not self._core.forked:
                self._core.let_go_of_all()
                await self._wait_until_quiet()
        finally:
            self._shut_down()

    async def _wait_until_quiet(self) -> None:
        # Ends by itself: no connection lingers past its limits.
        await trio.lowlevel.checkpoint()
        quiet = Latch(self._core)
        while not self._closed and not self._core.quiet(quiet.set):
            await quiet.wait()
            quiet = Latch(self._core)

    def _shut_down(self) -> None:
        """Stop the threads, wait for them, and close every descriptor."""
        if self._closed or self._core.forked:
            return
        self._closed = True
        try:
            if self._stalls is not None:
                self._stalls.close()
            self._bridge.close()
        finally:
            self._join_and_close()


def _detached(sock: trio.socket.SocketType) -> socket.socket:
    trio.lowlevel.notify_closing(sock)
    return socket.socket(sock.family, sock.type, sock.proto, fileno=sock.detach())


def _check_plain(sock: object) -> None:
    """As `trio.socket.from_stdlib_socket` checks it."""
    if type(sock) is socket.socket:
        return
    # Such a socket exists only if the module was imported.
    if "ssl" in sys.modules and isinstance(sock, sys.modules["ssl"].SSLSocket):
        advice = "; for TLS, adopt the plain socket, and call start_tls() of the Conn"
    elif isinstance(sock, trio.socket.SocketType):
        advice = "; trio_wknet.install() makes Trio's functions return a Conn"
    else:
        advice = ""
    raise TypeError(f"sock must be exactly a socket.socket, not {sock!r}{advice}")


def _check(value: object, kind: type, name: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {kind.__name__}, not {value!r}")


def check_admission(admission: object) -> None:
    if admission is not None:
        _check(admission, Admission, "admission")


@for_async_with
async def open_engine(
    reactors: int | None = None,
    *,
    balance: Literal["least_connections", "round_robin"] = "least_connections",
    max_buffered: int | None = None,
    on_stall: OnStall | None = None,
    stall_after: float = 1.0,
) -> AsyncIterator[Engine]:
    """Open an engine for the duration of an ``async with`` block.

    On leaving, what is still open is closed at once, and connections that were
    closed gracefully may linger (`Limits.linger_time`); cancellation cuts that short. All
    threads have ended when the block is left. Entering is not a checkpoint, leaving is.

    Args:
      reactors: the number of reactor threads, up to 1024. 0 runs one reactor inside Trio's
          own thread (in-loop). None, the default, means one thread, or in-loop if this
          process may use only one core. Under a `trio.testing.MockClock` the engine is
          always in-loop, because the clock cannot see other threads.
      balance: which reactor an accepted connection goes to: ``"least_connections"``, the
          default, or ``"round_robin"``.
      max_buffered: bytes that the engine may hold for its connections, all of them together:
          received and not yet taken, parts of messages, and what waits to be sent. From three
          quarters of it on, nothing is received for which no task or callback waits, nor from
          peers that do not read what they are sent. Above it the connections that hold most
          are ended, with ``close_reason`` ``"budget"``. From 1048576 to 2**40. None, the
          default: no limit.
      on_stall: a plain function, called as ``on_stall(stall)`` with a `Stall` when Trio's loop has
          not come round for ``stall_after``, because a task or a callback does not return: once
          for each stall, and once more when it ends. It is called in a thread of its own, since
          Trio's is busy: it must not use Trio or this engine, nor wait for Trio's thread, and
          what it raises is logged. ``"log"`` logs the stall, with the stack of Trio's thread, as
          ``trio_wknet.stall`` at level WARNING. None, the default: nobody looks.
      stall_after: seconds, above 0, up to 86400; default 1. It costs a look each quarter of it.

    Returns:
      An async context manager, whose value is the `Engine`.

    Raises:
      TypeError, ValueError: if an argument is invalid.
      RuntimeError: outside of a Trio run, or if no thread can be started.
      OSError: if there are no file descriptors left.
    """
    if balance not in ("least_connections", "round_robin"):
        raise ValueError(f"balance must be 'least_connections' or 'round_robin', not {balance!r}")
    check_max_buffered(max_buffered)
    check_on_stall(on_stall)
    check_some_seconds("stall_after", stall_after)
    engine = Engine._open(_choose_reactors(reactors), balance, max_buffered)
    try:
        engine._watch_stalls(on_stall, stall_after)
        yield engine
    finally:
        await engine._aclose()


# A run's default engine. `default_reactors` below is how many reactors `run` gives it.
_default: trio.lowlevel.RunVar[Engine] = trio.lowlevel.RunVar("trio_wknet default engine")


@overload
def open_wknet_listener(
    address: str | int,
    *,
    tls: None = None,
    websocket: None = None,
    **settings: Unpack[OwnEngine],
) -> AbstractAsyncContextManager[Listener]: ...


@overload
def open_wknet_listener(
    address: str | int,
    *,
    tls: ssl.SSLContext,
    websocket: None = None,
    **settings: Unpack[OwnEngine],
) -> AbstractAsyncContextManager[TLSListener]: ...


@overload
def open_wknet_listener(
    address: str | int,
    *,
    tls: ssl.SSLContext | None = None,
    websocket: WebSocketOptions,
    **settings: Unpack[OwnEngine],
) -> AbstractAsyncContextManager[WebSocketListener]: ...


@one_address
@for_async_with
async def open_wknet_listener(
    address: str | int,
    *,
    tls: ssl.SSLContext | None = None,
    handshake_time: float = 10.0,
    websocket: WebSocketOptions | None = None,
    engine: Engine | None = None,
    reactors: int | None = None,
    max_buffered: int | None = None,
    backlog: int | None = None,
    reuse_port: bool = False,
    idle_timeout: float | Idle | None = None,
    proxy_protocol: Collection[Network] | None = None,
    admission: Admission | None = None,
    limits: Limits = Limits(),
    options: ConnOptions = ConnOptions(),
) -> AsyncIterator[Any]:
    """Open a listener for the duration of an ``async with`` block::

        async with open_wknet_listener("tcp://127.0.0.1:5100") as listener:
            await listener.serve(handler)

    It is `Engine.listen` on an engine that you pass, or on one that is opened for this
    listener, and closed with it. Entering and leaving are checkpoints.

    Args:
      address: ``"tcp://host:port"``, ``"unix:///path"``, ``"unix://@name"``,
          ``"tls://host:port"``, ``"ws://host:port[/path]"``, ``"wss://host:port[/path]"``,
          or a port number, as in `Engine.listen`.
      tls: for ``tls://`` and ``wss://``, and for no other address: a server's
          `ssl.SSLContext`. By default None.
      handshake_time: for these, seconds that the handshake of TLS may take; default 10.
      websocket: serve WebSockets, with these options; by default only for ``ws://`` and
          ``wss://``, as in `Engine.listen`.
      engine: the engine to use. None, the default, opens one for this listener.
      reactors: the number of reactor threads of the listener's own engine, as in
          `open_engine`. It must be None, the default, if ``engine`` is given.
      max_buffered: bytes that the listener's own engine may hold for its connections, as in
          `open_engine`. It must be None, the default, if ``engine`` is given.
      backlog: the length of the kernel's queue of connections not yet accepted; by default
          the most that the kernel allows.
      reuse_port: give each reactor a listening socket of its own. Default False.
      idle_timeout: seconds without bytes after which a connection is closed, or an `Idle`,
          with a limit for each direction; None, the default, never closes one.
      proxy_protocol: the load balancers whose connections begin with a PROXY header, as in
          `Engine.listen`; None, the default: connections begin with data.
      admission: bounds on which connections are let in, an `Admission`. None, the default: all
          are.
      limits: the limits of the accepted connections; by default ``Limits()``.
      options: their socket options; by default ``ConnOptions()``.

    Returns:
      An async context manager, whose value is the `Listener`, the `TLSListener`, or the
      `WebSocketListener`.

    Raises:
      ValueError, TypeError: if an argument is invalid.
      OSError: if the host does not resolve or the address cannot be bound; the message
          names it. Nothing is left open.
      RuntimeError: outside of a Trio run, if no thread can be started, or if ``engine`` is
          closed or belongs to another thread.
    """
    if engine is not None:
        if not isinstance(engine, Engine):
            raise TypeError(f"engine must be an Engine, not {engine!r}")
        if reactors is not None:
            raise ValueError(f"reactors must be None if engine is given, not {reactors}")
        if max_buffered is not None:
            raise ValueError(f"max_buffered must be None if engine is given, not {max_buffered}")
    opened = nullcontext(engine) if engine else open_engine(reactors, max_buffered=max_buffered)
    async with opened as used:
        listener = await used.listen(
            address,
            tls=tls,
            handshake_time=handshake_time,
            websocket=websocket,
            backlog=backlog,
            reuse_port=reuse_port,
            idle_timeout=idle_timeout,
            proxy_protocol=proxy_protocol,
            admission=admission,
            limits=limits,
            options=options,
        )
        try:
            yield listener
        finally:
            await listener.aclose()


default_reactors: trio.lowlevel.RunVar[int | None] = trio.lowlevel.RunVar(
    "trio_wknet default reactors", None
)


# Whether every engine of a run may be watched, and under which name. None: the environment says.
default_top: trio.lowlevel.RunVar[bool | str | None] = trio.lowlevel.RunVar(
    "trio_wknet default top", None
)


default_max_buffered: trio.lowlevel.RunVar[int | None] = trio.lowlevel.RunVar(
    "trio_wknet default max_buffered", None
)

# What `run` gives to every listener of that engine.
default_admission: trio.lowlevel.RunVar[Admission | None] = trio.lowlevel.RunVar(
    "trio_wknet default admission", None
)


# What it watches stalls with, as of `open_engine`.
default_on_stall: trio.lowlevel.RunVar[tuple[OnStall | None, float]] = trio.lowlevel.RunVar(
    "trio_wknet default on_stall", (None, 1.0)
)


def default_engine(reactors: int | None, max_buffered: int | None = None) -> Engine:
    """This run's default engine. The first call opens it, with this number of reactors and this
    budget unless `run` set others. It closes when the run has ended (_bridge.py)."""
    try:
        return _default.get()
    except LookupError:
        chosen = default_reactors.get()
        budget = default_max_buffered.get()
        engine = Engine._open(
            _choose_reactors(reactors if chosen is None else chosen),
            "least_connections",
            max_buffered if budget is None else budget,
        )
        _default.set(engine)
        engine._watch_stalls(*default_on_stall.get())
        return engine
