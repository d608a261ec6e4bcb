"""Sending tasks: one call, many calls, and what is collected in a batch."""
