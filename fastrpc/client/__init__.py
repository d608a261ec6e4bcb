"""Receives results and matches them: from the socket to the AsyncResult that waits."""
