"""The tunnel: a connector that dials out, and the edge it dials (docs/explanation/tunnel.md)."""
