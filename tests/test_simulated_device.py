"""The tests of *_on_a_card.py in a process of their own: registering a device changes torch for all of a process."""

import subprocess
import sys

from deeper_layers_companion.results.places import AROUND as ROOT

FILES = ["on_a_card.py", "paths_on_a_card.py", "faults_on_a_card.py"]


def test_every_number_on_a_card_is_the_processors(request):
    # one process for all: to import torch takes as long as many of these tests
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"tests/{file}" for file in FILES)]
    if request.config.option.markexpr == "not thorough":
        command += ["-m", "not thorough"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:]
