"""Lockgate: the IoT edge gateway in one package."""

__version__ = "0.1.0"
