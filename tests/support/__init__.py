"""What the tests of the engine share: memory of known contents, and programs that are run beside them."""
