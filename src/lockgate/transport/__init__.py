"""What lies under MQTT and knows none of it: TLS, WebSocket, the PROXY protocol; all without a socket."""
