"""Measurements of Lockgate beside a peer, in one go on one machine."""
