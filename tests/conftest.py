import torch
from jaxtyping import install_import_hook

# array shapes and types that lib/ states in its annotations are checked in every test
install_import_hook("lib", "beartype.beartype")

# tiny models gain nothing from more, and lose minutes where anything else runs on the machine
torch.set_num_threads(1)
