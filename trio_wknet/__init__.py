"""A fast transport backend for Trio: epoll reactors on native threads."""

from trio_wknet._admission import Admission
from trio_wknet._conn import Conn
from trio_wknet._drop_in.functions import (
    open_ssl_over_tcp_listeners,
    open_ssl_over_tcp_stream,
    open_tcp_listeners,
    open_tcp_stream,
    open_unix_socket,
    serve_ssl_over_tcp,
    serve_tcp,
)
from trio_wknet._drop_in.install import install, run, uninstall
from trio_wknet._engine import Engine, open_engine, open_wknet_listener
from trio_wknet._errors import (
    BroadcastIncomplete,
    ConnectionClosed,
    DelimiterNotFound,
    FrameTooLong,
    HandshakeError,
    HandshakeRejected,
    IncompleteRead,
    MalformedFrame,
    RelayBroken,
)
from trio_wknet._frame_channel import FrameChannel
from trio_wknet._framing import Delimited, FixedLength, LengthPrefixed, VarintPrefixed
from trio_wknet._group import Broadcast, BroadcastResult, Group, Groups
from trio_wknet._idle import Idle
from trio_wknet._listener import Listener
from trio_wknet._native.public.ringbuffer import RingBuffer
from trio_wknet._native.public.timer import Timer
from trio_wknet._options import ConnOptions, Limits
from trio_wknet._proxy.header import ProxyHeader
from trio_wknet._rates import Rates
from trio_wknet._relay import RelayResult, relay
from trio_wknet._shutdown import Shutdown, drain_on_signal
from trio_wknet._sockets.systemd import systemd_sockets
from trio_wknet._stall import Stall
from trio_wknet._statistics import (
    ConnStatistics,
    EngineStatistics,
    FrameStatistics,
    Histogram,
    ListenerStatistics,
    ReactorStatistics,
    Traffic,
    WebSocketStatistics,
    WheelStatistics,
)
from trio_wknet._tasks import ConnTask
from trio_wknet._timing_wheel import TimingWheel
from trio_wknet._tls import TLSStream
from trio_wknet._tls_frame_channel import TLSFrameChannel
from trio_wknet._tls_listener import TLSListener
from trio_wknet._trace import Trace
from trio_wknet._websocket.channel import WebSocket
from trio_wknet._websocket.client import open_websocket
from trio_wknet._websocket.http import Request, Response
from trio_wknet._websocket.listener import WebSocketListener
from trio_wknet._websocket.options import PerMessageDeflate, WebSocketOptions
from trio_wknet._websocket.stream import StreamWebSocket

__version__ = "0.1.0"

__all__ = [
    "Admission",
    "Broadcast",
    "BroadcastIncomplete",
    "BroadcastResult",
    "Conn",
    "ConnOptions",
    "ConnStatistics",
    "ConnTask",
    "ConnectionClosed",
    "Delimited",
    "DelimiterNotFound",
    "Engine",
    "EngineStatistics",
    "FixedLength",
    "FrameChannel",
    "FrameStatistics",
    "FrameTooLong",
    "Group",
    "Groups",
    "HandshakeError",
    "HandshakeRejected",
    "Histogram",
    "Idle",
    "IncompleteRead",
    "LengthPrefixed",
    "Limits",
    "Listener",
    "ListenerStatistics",
    "MalformedFrame",
    "PerMessageDeflate",
    "ProxyHeader",
    "Rates",
    "ReactorStatistics",
    "RelayBroken",
    "RelayResult",
    "Request",
    "Response",
    "RingBuffer",
    "Shutdown",
    "Stall",
    "StreamWebSocket",
    "TLSFrameChannel",
    "TLSListener",
    "TLSStream",
    "Timer",
    "TimingWheel",
    "Trace",
    "Traffic",
    "VarintPrefixed",
    "WebSocket",
    "WebSocketListener",
    "WebSocketOptions",
    "WebSocketStatistics",
    "WheelStatistics",
    "drain_on_signal",
    "install",
    "open_engine",
    "open_ssl_over_tcp_listeners",
    "open_ssl_over_tcp_stream",
    "open_tcp_listeners",
    "open_tcp_stream",
    "open_unix_socket",
    "open_websocket",
    "open_wknet_listener",
    "relay",
    "run",
    "serve_ssl_over_tcp",
    "serve_tcp",
    "systemd_sockets",
    "uninstall",
]
