"""Receives results and hands them to the AsyncResults that wait for them."""
