"""Compression of what is sent, by the name HTTP gives it."""

from __future__ import annotations

from collections.abc import Callable

from lockgate.config.errors import ConfigError

Compress = Callable[[bytes], bytes]


def compressor(name: str) -> Compress | None:
    """What compresses in one go, None for "none". Raises ConfigError where its library is not installed."""
    if name == "gzip":
        import gzip

        return lambda data: gzip.compress(data, 6, mtime=0)
    if name == "zstd":
        try:
            import zstandard
        except ImportError:
            raise ConfigError("zstd needs a library: pip install 'lockgate[zstd]'", key="compression") from None
        return lambda data: zstandard.ZstdCompressor().compress(data)
    return None
