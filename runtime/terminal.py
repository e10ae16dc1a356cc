"""What others wrote, for a terminal: nothing in it may move the cursor, hide text, or begin a line of its own."""


def printable(text: str) -> str:
    """Returns `text` in one line of printable characters; all others are escaped as in Python's strings."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
