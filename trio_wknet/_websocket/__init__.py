"""WebSocket: handshakes, listeners and clients around the native channel."""
