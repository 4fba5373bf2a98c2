"""A local mirror of the hub with one small data set, for tests that ask for examples: our own tasks have none."""

import json
from pathlib import Path

CAPITALS = {"France": "Paris", "Japan": "Tokyo", "Kenya": "Nairobi", "Peru": "Lima", "Egypt": "Cairo", "Italy": "Rome"}


def write_boolq(folder: Path) -> Path:
    """BoolQ as lm-eval reads it: passage, question, label; items and, in another split, examples."""
    rows = [
        {
            "passage": f"The capital of {country} is {city}.",
            "question": f"is {name} the capital of {country}",
            "label": label,
        }
        for country, city in CAPITALS.items()
        for label, name in enumerate(("Oslo", city))
    ]
    boolq = folder / "aps" / "super_glue"
    boolq.mkdir(parents=True)
    for split, part in (("train", rows[:4]), ("validation", rows[4:])):
        (boolq / f"{split}.jsonl").write_text("\n".join(map(json.dumps, part)))
    files = "".join(f"  - split: {split}\n    path: {split}.jsonl\n" for split in ("train", "validation"))
    (boolq / "README.md").write_text(f"---\nconfigs:\n- config_name: boolq\n  data_files:\n{files}---\n")
    return folder
