"""Confirmed sending over a connection of its own."""
