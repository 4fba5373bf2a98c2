"""Three tiers of tests, and the tiny model that many of them share.

A test lands in `make test` by itself. The mark `quick` puts it in `make check` too; `thorough` leaves it to
`make test-all`, which also checks the shapes and types that lib/ states in its annotations (CHECK_SHAPES=1).
"""

import os

import pytest
import torch
from jaxtyping import TypeCheckError, install_import_hook

if os.environ.get("CHECK_SHAPES"):
    install_import_hook(["deeper_layers", "deeper_layers_companion"], "beartype.beartype")

# tiny models gain nothing from more, and lose minutes where anything else runs on the machine
torch.set_num_threads(1)


def pytest_ignore_collect(collection_path, config):
    """Of one mark alone, files without it are not imported: that takes longer than the quick tests."""
    mark = config.option.markexpr
    if mark in ("quick", "thorough") and collection_path.name.startswith("test_") and collection_path.is_file():
        return f"mark.{mark}" not in collection_path.read_text(encoding="utf-8") or None
    return None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Where types are checked, a test that gives wrong ones on purpose may meet the checker before our own words."""
    try:
        return (yield)
    except TypeCheckError:
        if not item.get_closest_marker("wrong_types"):
            raise
        pytest.skip("the checker of types refuses what this test gives")


def pytest_collection_modifyitems(items):
    """First what builds the site, then files with long tests, so that no process is left with one at the end."""
    thorough = {item.path for item in items if item.get_closest_marker("thorough")}
    quick = {item.path for item in items if item.get_closest_marker("quick")}

    def place(item) -> int:
        if item.path.parent.name == "site":
            return 0 if item.path.name == "test_pages.py" else 2
        return 1 if item.path in thorough else 4 if item.path in quick else 3

    items.sort(key=place)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A folder saved by save_pretrained: a random Llama of 5 layers and a byte-level tokenizer, made without a hub."""
    from tests.tiny import write_folder

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    write_folder("llama", folder)
    return folder


@pytest.fixture(scope="session")
def opened(tiny_folder):
    """Its model and tokenizer, opened once a process: whoever changes the model takes a copy."""
    from deeper_layers import load_model

    return load_model(str(tiny_folder), dtype="float32")


@pytest.fixture(scope="session")
def tiny_gguf(opened, tmp_path_factory):
    """The same model as a GGUF file."""
    from tests.tiny import write_gguf

    return write_gguf(*opened, tmp_path_factory.mktemp("gguf") / "tiny.gguf")
