"""The way in of results: from the socket to the AsyncResult that waits."""
