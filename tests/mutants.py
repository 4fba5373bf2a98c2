"""Would the tests notice? One small change of the code at a time, drawn by a seed, and which of them no test fails for.

    python -m tests.mutants                               # 25 of each part of PARTS
    python -m tests.mutants cuts export --count 5

Each runs in a copy of this checkout, against the files of tests named with its part (of them what `make test` runs).
What survives and is not the same program in other words is a missing test.
"""

import argparse
import ast
import os
import queue
import random
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

AT_ONCE, SECONDS, ROOT = 2, 900, Path(__file__).resolve().parent.parent
PARTS = {  # of each part its files below deeper_layers and its tests
    "cuts": ("cuts.py", "pruning rules any_cut jobs tree"),
    "similarity": ("similarity.py", "similarity rules widened"),
    "pruning": ("pruning.py", "pruning any_cut slicing bridges"),
    "sweeping": ("sweeping/*.py", "tree sweep evaluation generation families streaming rules scans"),
    "statistics": ("report/statistics.py report/estimates.py report/pairing.py", "estimates report"),
    "claims": ("report/claims.py report/paper.py", "claims report"),
    "export": (
        "export/*.py",
        "slicing quantized seeing gguf merging prune model_card engines damage files",
    ),
    "healing": ("healing/*.py presets.py", "healing healed distillation merging"),
}
SWAPS = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==", ast.Is: "is not",
    ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in", ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*",
    ast.FloorDiv: "/", ast.Mod: "*", ast.Pow: "*", ast.And: "or", ast.Or: "and",
}  # fmt: skip


def changes(source: str) -> list[tuple[int, int, str]]:
    """Every change of a file's functions: where it begins and ends, in bytes, and what stands there instead."""
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def span(node) -> tuple[int, int]:
        return starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset

    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    code = [node for function in functions for line in function.body for node in ast.walk(line)]
    found = []
    for node in {span(node): node for node in code if hasattr(node, "lineno")}.values():
        match node:
            case (
                ast.Compare(left, [operator, *_], [right, *_])
                | ast.BinOp(left, operator, right)
                | ast.BoolOp(operator, [left, right, *_])
            ) if type(operator) in SWAPS:
                found.append((span(left)[1], span(right)[0], f" {SWAPS[type(operator)]} "))
            case ast.UnaryOp(ast.Not(), operand):
                found.append((span(node)[0], span(operand)[0], ""))
            case ast.Constant(bool(value)):
                found.append((*span(node), str(not value)))
            case ast.Constant(int(value) | float(value)):
                found.append((*span(node), str(value + 1)))
            case ast.Return(ast.AST() as value) | ast.Assign(_, value):
                found.append((*span(value), "None"))
    # brackets and comments between two sides stay whole: such an operator is left out
    return sorted(one for one in found if one[2] == "None" or not set(b"()#") & set(source.encode()[one[0] : one[1]]))


def draw(part: str, count: int) -> list[tuple[str, Path, bytes, str]]:
    """Of a part first a file as it is, then mutants: the part, the file, its content, and what was changed."""
    files = sorted({path for glob in PARTS[part][0].split() for path in (ROOT / "lib" / "deeper_layers").glob(glob)})
    every = [(path, *change) for path in files for change in changes(path.read_text(encoding="utf-8"))]
    mutants = [(part, files[0].relative_to(ROOT), files[0].read_bytes(), "nothing")]
    for path, start, end, put in random.Random(0).sample(every, min(count, len(every))):
        text, name = path.read_bytes(), path.relative_to(ROOT)
        gone = " ".join(text[start:end].decode().split())[:60]
        said = f"{name}:{text[:start].count(10) + 1}: {gone!r} is {put!r}"
        mutants.append((part, name, text[:start] + put.encode() + text[end:], said))
    return mutants


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


def copy(place: Path) -> Path:
    """What git knows of this checkout, in a folder of its own."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in listed.splitlines():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, place / name, follow_symlinks=False)
    return place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="all by default")
    parser.add_argument("--count", type=int, default=25, help="of each part")
    options = parser.parse_args()
    parts, folders = options.parts or list(PARTS), queue.Queue()
    mutants = [one for part in parts for one in draw(part, options.count)]

    def run(mutant: tuple[str, Path, bytes, str]) -> bool:
        (part, name, content, said), folder = mutant, folders.get()
        (folder / name).write_bytes(content)
        killed = fails(folder, part)
        (folder / name).write_bytes((ROOT / name).read_bytes())
        folders.put(folder)
        print("killed  " if killed else "survived", f"{part}: {said}", flush=True)
        return killed

    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(AT_ONCE) as pool:
        for number in range(AT_ONCE):
            folders.put(copy(Path(place) / str(number)))
        fates = list(pool.map(run, mutants))
    for part in parts:
        broken, *killed = [fate for fate, (of, *_) in zip(fates, mutants, strict=True) if of == part]
        print(f"{part}: {sum(killed)} of {len(killed)} killed{', but its tests fail without a change' * broken}")


if __name__ == "__main__":
    main()
