"""Would the tests notice? One small change of the code at a time, drawn by a seed, and which of them no test fails for.

    python -m tests.mutants                               # 25 of each part of PARTS
    python -m tests.mutants cuts export --count 5

Each runs in a copy of this checkout, against the files of tests named with its part (of them what `make test` runs).
What survives and is not the same program in other words is a missing test.
"""

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

SECONDS, ROOT = 900, Path(__file__).resolve().parent.parent
PARTS = {  # of each part its files below deeper_layers and its tests
    "cuts": ("cuts.py", "pruning rules any_cut jobs tree"),
    "similarity": ("similarity.py", "similarity rules widened"),
    "pruning": ("pruning.py", "pruning any_cut slicing"),
    "sweeping": ("sweeping/*.py", "tree sweep evaluation generation families streaming rules scans"),
    "statistics": ("report/statistics.py report/estimates.py report/pairing.py", "estimates report"),
    "claims": ("report/claims.py report/paper.py", "claims report"),
    "export": ("export/*.py", "slicing quantized seeing gguf merging prune model_card engines damage files"),
    "healing": ("healing/*.py presets.py", "healing healed merging"),
}
PAIRS = "Lt LtE, Gt GtE, Eq NotEq, Is IsNot, In NotIn, Add Sub, Mult Div, And Or"
SWAPS = {getattr(ast, one): getattr(ast, other) for one, other in map(str.split, PAIRS.split(", "))}
SWAPS |= {other: one for one, other in SWAPS.items()}


def changes(tree: ast.Module) -> list[tuple[ast.AST, str, object]]:
    """Every change of a file's functions: a node, the name of what it holds, and what it holds instead."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    code = dict.fromkeys(node for function in functions for line in function.body for node in ast.walk(line))
    found = []
    for node in code:
        match node:
            case ast.Compare(ops=[operator, *more]) if type(operator) in SWAPS:
                found.append((node, "ops", [SWAPS[type(operator)](), *more]))
            case ast.BinOp(op=operator) | ast.BoolOp(op=operator) if type(operator) in SWAPS:
                found.append((node, "op", SWAPS[type(operator)]()))
            case ast.Constant(bool(value)):
                found.append((node, "value", not value))
            case ast.Constant(int(value) | float(value)):
                found.append((node, "value", value + 1))
            case ast.Return(ast.AST() as value) | ast.Assign(value=value) if ast.unparse(value) != "None":
                found.append((node, "value", ast.Constant(None)))
    return found


def draw(part: str, count: int) -> Iterator[tuple[Path, str, str]]:
    """Of a part first a file as it is, then mutants: the file, its text, and what was changed."""
    files = sorted({path for glob in PARTS[part][0].split() for path in (ROOT / "lib" / "deeper_layers").glob(glob)})
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in files}
    every = [(path, *change) for path, tree in trees.items() for change in changes(tree)]
    yield files[0], ast.unparse(trees[files[0]]), "nothing"
    for path, node, name, value in random.Random(0).sample(every, min(count, len(every))):
        held, before = getattr(node, name), ast.unparse(node)
        setattr(node, name, value)
        yield path, ast.unparse(trees[path]), f"{path.name}:{node.lineno}: {before:.60} is {ast.unparse(node):.60}"
        setattr(node, name, held)


def fails(folder: Path, part: str) -> bool:
    """Whether one of a part's files of tests fails in a folder, or hangs."""
    tests = [f"tests/test_{name}.py" for name in PARTS[part][1].split()]
    words = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not thorough", *tests]
    paths = {"PYTHONPATH": f"{folder}/lib{os.pathsep}{folder}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(words, capture_output=True, cwd=folder, env=os.environ | paths, timeout=SECONDS)
        return done.returncode != 0
    except subprocess.TimeoutExpired:
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="all by default")
    parser.add_argument("--count", type=int, default=25, help="of each part")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        left_out = shutil.ignore_patterns(".git", ".venv", "_build", "executed", "__pycache__")
        folder = Path(shutil.copytree(ROOT, f"{place}/checkout", symlinks=True, ignore=left_out))
        for part in options.parts or PARTS:
            for path, text, said in draw(part, options.count):
                (folder / path.relative_to(ROOT)).write_text(text, encoding="utf-8")
                print("killed  " if fails(folder, part) else "survived", f"{part}: {said}", flush=True)
                shutil.copyfile(path, folder / path.relative_to(ROOT))


if __name__ == "__main__":
    main()
