"""Configuration: files and environment read once into frozen data."""
