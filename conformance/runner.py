"""One engine on many folders: PYTHON runner.py SCRIPT JOBS ANSWERS, run by the Python of the engine's environment.

JOBS is a list of {name, folder, prompt (numbers of tokens), tokens (how many more)}. ANSWERS gets a line a job as soon
as it is done: {name, tokens} or {name, error}. Jobs that have a line are not done again. Nothing of this project is
imported, and what the engine prints goes to standard error.
"""

import importlib.util
import json
import os
import sys
import traceback


def main(script: str, jobs: str, answers: str) -> None:
    os.dup2(2, 1)  # an engine's own messages are no answers
    with open(jobs, encoding="utf-8") as file:
        wanted = json.load(file)
    done = set()
    if os.path.exists(answers):
        with open(answers, encoding="utf-8") as file:
            done = {json.loads(line)["name"] for line in file}
    spec = importlib.util.spec_from_file_location("engine_script", script)
    engine = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(engine)
    for job in wanted:
        if job["name"] in done:
            continue
        try:
            answer = {"tokens": [int(token) for token in engine.tokens(job)]}
        except BaseException as error:  # whatever an engine raises is its answer, a panic of Rust too
            if isinstance(error, KeyboardInterrupt):
                raise
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        with open(answers, "a", encoding="utf-8") as file:
            file.write(json.dumps({"name": job["name"], **answer}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
