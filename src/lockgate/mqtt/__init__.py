"""The language: bytes to MQTT Control Packets and back; no socket, no clock, no session."""
