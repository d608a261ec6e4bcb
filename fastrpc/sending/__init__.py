"""Sends messages with publisher confirms, over connections of its own."""
