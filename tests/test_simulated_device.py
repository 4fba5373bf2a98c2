"""The tests of *_on_a_card.py in processes of their own: registering a device changes torch for all of a process."""

import subprocess
import sys

import pytest

from deeper_layers_companion.results.places import AROUND as ROOT

FILES = {"on_a_card.py": "numbers", "paths_on_a_card.py": "paths", "faults_on_a_card.py": "faults"}


@pytest.mark.parametrize("file", FILES, ids=FILES.values())
def test_every_number_on_a_card_is_the_processors(file):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/{file}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:]
