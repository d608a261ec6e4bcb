"""Support code of the tests; what is in here is no test."""
