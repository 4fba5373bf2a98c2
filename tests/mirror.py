"""Data sets in a folder laid out as the hub is, as the parameter `datasets` names one."""

import json
from pathlib import Path

CAPITALS = {"France": "Paris", "Japan": "Tokyo", "Kenya": "Nairobi", "Peru": "Lima", "Egypt": "Cairo", "Italy": "Rome"}


def write_dataset(folder: Path, config: str, splits: dict[str, list[dict]]) -> None:
    """A data set with one configuration, each split a file."""
    folder.mkdir(parents=True)
    files = ""
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        files += f"  - split: {split}\n    path: {split}.jsonl\n"
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{files}---\n")


def write_boolq(folder: Path) -> Path:
    """BoolQ as lm-eval reads it: passage, question, label; items and, in another split, examples: ours have none."""
    rows = [
        {
            "passage": f"The capital of {country} is {city}.",
            "question": f"is {name} the capital of {country}",
            "label": label,
        }
        for country, city in CAPITALS.items()
        for label, name in enumerate(("Oslo", city))
    ]
    write_dataset(folder / "aps" / "super_glue", "boolq", {"train": rows[:4], "validation": rows[4:]})
    return folder
