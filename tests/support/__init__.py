"""Code that the tests share; there are no tests in it."""
