import pytest
import torch
from jaxtyping import install_import_hook

# array shapes and types that lib/ states in its annotations are checked in every test
install_import_hook("deeper_layers", "beartype.beartype")

# tiny models gain nothing from more, and lose minutes where anything else runs on the machine
torch.set_num_threads(1)


# files that `make check` leaves out, by what they took: the others together take less than 90 s on two cores
SLOW = {
    "test_any_cut", "test_benchmarks", "test_bits", "test_book", "test_checkpoint_fuzz", "test_cluster", "test_command",
    "test_conformance", "test_damage", "test_damaged_checkpoints", "test_dialects", "test_distillation",
    "test_distributed", "test_embedded", "test_evaluation", "test_examples", "test_families", "test_faulty_results",
    "test_generation", "test_gguf_conversion", "test_gguf_damage", "test_healed", "test_healing", "test_kept_safe",
    "test_kills", "test_machines", "test_memory", "test_model_card", "test_mtp", "test_names",
    "test_package_index", "test_resuming", "test_seeing", "test_streaming", "test_sweep", "test_taken_away",
    "test_tree", "test_unclear", "test_wheel", "test_words",
}  # fmt: skip


def is_slow(path) -> bool:
    return path.stem in SLOW or path.parent.name == "site"


def pytest_ignore_collect(collection_path, config):
    """Importing the slow files takes longer than to run the others."""
    return True if config.option.markexpr == "not slow" and is_slow(collection_path) else None


def pytest_collection_modifyitems(items):
    """First what has the site built, then what takes long, so that no process is left with it at the end.

    What looks at the site in a browser comes when it is built, and all else waits to fill what time is left.
    """
    for item in items:
        if is_slow(item.path):
            item.add_marker("slow")

    def place(item) -> int:
        if item.path.parent.name == "site":
            return 0 if item.path.name == "test_pages.py" else 2
        return 1 if is_slow(item.path) else 3

    items.sort(key=place)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A folder saved by save_pretrained: a random Llama of 5 layers and a byte-level tokenizer, made without a hub."""
    from tests.tiny import write_folder

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    write_folder("llama", folder)
    return folder
