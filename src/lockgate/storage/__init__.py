"""The broker's disk: providers of `broker.ports.Store`."""
