"""The doors: asyncio sockets in front of the broker."""
