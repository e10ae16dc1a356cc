"""What the user has to mend."""


class UserError(Exception):
    """Trying again does not help: a process that ends with it exits with status 2. The text says what to do."""
