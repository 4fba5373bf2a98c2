"""`python -m deeper_layers`: the command `deeper-layers`."""

from deeper_layers.command import main

if __name__ == "__main__":
    main(prog_name="python -m deeper_layers")
