"""The way out of results: what store_result sends."""
