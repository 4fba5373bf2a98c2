"""The tests of *_on_a_card.py in a process of their own: registering a device changes torch for all of a process."""

import subprocess
import sys

import pytest

from deeper_layers_companion.results.places import AROUND as ROOT

FILES = ["on_a_card.py", "paths_on_a_card.py", "faults_on_a_card.py"]


@pytest.mark.parametrize("mark", ["not thorough", pytest.param("thorough", marks=pytest.mark.thorough)])
def test_every_number_on_a_card_is_the_processors(mark):
    # one process for all: to import torch takes as long as many of these tests
    files = [f"tests/{file}" for file in FILES]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", mark, *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:]
