"""The way in without an open port: connector and edge, and who may pass."""
