"""Hours of the tests that find what is rare; see `__main__`."""
