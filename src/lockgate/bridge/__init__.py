"""Broker ↔ broker: the `connection` blocks of mosquitto.conf."""
