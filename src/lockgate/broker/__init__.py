"""The rules: what an MQTT Server must do; no socket, no disk, and time is an argument."""
