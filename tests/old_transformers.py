"""One folder in two versions: saved by one transformers, sliced, opened in the oldest that we name and in this.

The reference is the whole model in the transformers that saved it, with the dropped layers taken out of its list in
memory: its logits in float32. Printed is the largest difference of the sliced folder's, in each version. Run by hand,
since it needs a Python with the old version, torch and gguf:

    python -m tests.old_transformers PYTHON [FAMILY ...]
"""

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from tests.tiny import ALL_FAMILIES, SETTINGS, VOCABULARY, tiny_model
from tests.tiny_seeing import LAYERS as SEEING_LAYERS
from tests.tiny_seeing import SEEING, answers, seeing

LAYERS, START, STOP = 6, 2, 4
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
STATES = {"mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 12, "mamba_chunk_size": 8, "mamba_n_groups": 1}
GLMS = {"n_routed_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2, "head_dim": 12, "n_group": 1,
        "topk_group": 1}  # fmt: skip
# by name: the family, and settings besides those of tests/tiny.py; the words of the old version, which both read
CASES: dict[str, tuple[str, dict]] = {
    "llama, llama3 rope": ("llama", {"rope_theta": 500_000.0, "rope_scaling": LLAMA3}),
    "qwen2, theta 1e6": ("qwen2", {"rope_theta": 1e6}),
    "qwen3, theta 1e6": ("qwen3", {"rope_theta": 1e6}),
    "qwen3_moe, theta 1e6": ("qwen3_moe", {"rope_theta": 1e6}),
    "granitemoehybrid": ("granitemoehybrid", {
        **STATES, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 32, "rope_theta": 1e5,
        "layer_types": ["mamba", "mamba", "attention", "mamba", "attention", "mamba"],
        "position_embedding_type": "rope",
    }),
    "mamba2": ("mamba2", {"num_heads": 8, "head_dim": 12, "state_size": 8, "n_groups": 1, "chunk_size": 8}),
    "gemma3, two thetas": ("gemma3", {"rope_theta": 1e6, "rope_local_base_freq": 5e3}),
    "phi, partial rotary": ("phi", {"partial_rotary_factor": 0.34, "rope_theta": 2e4}),
    "gpt_neox, partial rotary": ("gpt_neox", {"rotary_pct": 0.5, "rotary_emb_base": 2e4}),
    "glm4_moe": ("glm4_moe", GLMS),
    "bamba": ("bamba", {**STATES, "attn_layer_indices": [2, 4]}),
    **{name: (name, {}) for name in ALL_FAMILIES},
    "olmo3": ("olmo3", {"rope_theta": 5e5}),  # any other is read wrongly by transformers 5.24, uncut too
}  # fmt: skip


IMAGES = {f"{family} with images": family for family in SEEING}
CLOSE = 1e-4  # logits of one model may differ so much between two versions, where sums are in another order


def main(python: str, names: list[str]) -> None:
    """Print the table. The old version runs in processes of its own, since a process holds one transformers."""
    with tempfile.TemporaryDirectory() as folder:
        other = functools.partial(in_old, python, folder)
        other("save", names)
        save(folder, "new", names)
        for way in ("old", "new"):
            for name in names:
                slice_one(Path(folder), way, name)
        other("read", names)
        read(folder, "new", names)
        found = {}
        for reader in ("old", "new"):
            found |= json.loads((Path(folder) / f"{reader}.json").read_text())
        old = found.pop("old version")
        print(f"| family | saved by {old}: in {old} | in {found['new version']} | saved by {found['new version']}: "
              f"in {old} | in {found['new version']} |\n|---|---|---|---|---|")  # fmt: skip
        for name in names:
            cells = (found.get(f"{name}: {way} in {reader}", "") for way in ("old", "new") for reader in ("old", "new"))
            print(f"| {name} | {' | '.join(cells)} |")


def in_old(python: str, folder: str, what: str, names: list[str]) -> None:
    words = [python, "-m", "tests.old_transformers", f"--{what}", folder, *names]
    subprocess.run(words, check=True, env=os.environ | {"TRANSFORMERS_VERBOSITY": "error"})


def save(folder: str, by: str, names: list[str]) -> None:
    """Checkpoints of one version, and the logits that they should have without some layers."""
    for name in names:
        path = Path(folder) / by / name
        path.mkdir(parents=True)
        try:
            model = made(name)
            model.save_pretrained(path)
            whole = logits(name, model)
            expected = logits(name, without(model))
        except Exception as error:  # one family fewer
            (path / "failed.txt").write_text(f"can't be made: {type(error).__name__}")
            print(by, name, repr(error)[:200], file=sys.stderr)
            continue
        torch.save((whole, expected), Path(folder) / f"{by}-{name}.pt")


def made(name: str):
    if name in IMAGES:
        return seeing(IMAGES[name])
    family, settings = CASES[name]
    SETTINGS.setdefault(family, {})
    return tiny_model(family, layers=LAYERS, **settings)


def without(model):
    """The model whose list of layers lacks some; each layer keeps what it knows of itself."""
    owner, attribute = next(
        (owner, attribute)
        for owner in model.modules()
        for attribute, layers in owner.named_children()
        if isinstance(layers, torch.nn.ModuleList) and len(layers) in (LAYERS, SEEING_LAYERS)
        if not any(word in type(owner).__name__ for word in ("Vision", "CLIP", "Siglip", "Pixtral"))
    )
    for layer in getattr(owner, attribute)[START:STOP]:
        layer.forward = functools.partial(_identity, layer.forward)
    return model


def _identity(forward, hidden_states, *arguments, **keywords):
    output = forward(hidden_states, *arguments, **keywords)
    return (hidden_states, *output[1:]) if isinstance(output, tuple) else hidden_states


@torch.no_grad()
def logits(name: str, model) -> torch.Tensor:
    if name in IMAGES:
        return torch.cat([found.flatten() for found in answers(IMAGES[name], model)])
    tokens = torch.randint(1, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(1))
    return model(tokens, use_cache=False).logits


def slice_one(folder: Path, by: str, name: str) -> None:
    from deeper_layers.cuts import Cut
    from deeper_layers.errors import InputError
    from deeper_layers.export.slicing import slice_checkpoint  # of this version only

    source = folder / by / name
    if (source / "failed.txt").exists():
        return
    try:
        slice_checkpoint(source, Cut(START, STOP - START), folder / f"{by}-sliced" / name)
    except InputError as error:
        (source / "failed.txt").write_text("refused")
        print(by, name, error, file=sys.stderr)


def read(folder: str, reader: str, names: list[str]) -> None:
    """The differences of what was sliced, by name."""
    found = {f"{reader} version": transformers.__version__}
    for name in names:
        for by in ("old", "new"):
            key, path = f"{name}: {by} in {reader}", Path(folder) / f"{by}-sliced" / name
            if (failed := Path(folder) / by / name / "failed.txt").exists():
                found[key] = failed.read_text()
                continue
            whole, expected = torch.load(Path(folder) / f"{by}-{name}.pt")
            found[key] = said = compared(name, path, expected)
            if not said[0].isdigit() or float(said) > CLOSE:  # is it the cut?
                found[key] += f" (uncut: {compared(name, Path(folder) / by / name, whole)})"
    (Path(folder) / f"{reader}.json").write_text(json.dumps(found))


def compared(name: str, path: Path, expected: torch.Tensor) -> str:
    """The largest difference of a checkpoint's logits, in words."""
    try:
        kind = AutoModelForImageTextToText if name in IMAGES else AutoModelForCausalLM
        model, report = kind.from_pretrained(path, output_loading_info=True)
        if any(report.values()):
            raise ValueError(f"{report}")
        return f"{(logits(name, model.eval()) - expected).abs().max():.1e}"
    except Exception as error:
        print(path, repr(error)[:300], file=sys.stderr)
        return f"does not load: {type(error).__name__}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if sys.argv[1] == "--save":
        save(sys.argv[2], "old", sys.argv[3:])
    elif sys.argv[1] == "--read":
        read(sys.argv[2], "old", sys.argv[3:])
    else:
        main(sys.argv[1], sys.argv[2:] or [*CASES, *IMAGES])
