"""The tests of on_a_card.py in a process of their own: registering a device changes torch for all of a process."""

import subprocess
import sys

from deeper_layers_companion.results.places import AROUND as ROOT


def test_every_number_on_a_card_is_the_processors():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/on_a_card.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:]
