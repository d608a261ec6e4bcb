"""Bytes to Python objects and back: frames, deliveries, header tables."""
