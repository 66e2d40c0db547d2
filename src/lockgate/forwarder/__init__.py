"""Drains the buffer to sinks: a worker and a durable cursor for each, at least once, every message with its id."""
