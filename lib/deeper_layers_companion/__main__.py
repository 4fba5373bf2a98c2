"""The command `deeper-layers`, also `python -m deeper_layers_companion`: Ctrl-C is heeded before all imports."""

import signal
import sys


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends as Ctrl-C does
    try:
        from deeper_layers_companion.command import main

        main()
    except KeyboardInterrupt:  # before a subcommand begins, which says more: group.py
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except OSError as error:  # of help, which is printed before a subcommand begins
        print(
            f"Error: can't print ({error.strerror}): let the output go elsewhere", file=sys.stderr
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
