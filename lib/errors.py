"""The one exception for everything a user can get wrong."""


class InputError(ValueError):
    """A value that the user gave, or a model or file that the user named, cannot be used.

    The message is one line: the value received, what was expected, and what to do next.
    """

    def __init__(self, message: str):
        # messages of other libraries, quoted in ours, may hold line breaks
        super().__init__(" ".join(message.split()))

    def _render_traceback_(self) -> list[str]:
        """The lines that a notebook prints for this error: the message alone, without a traceback."""
        return [f"{type(self).__name__}: {self}"]
