import json
import os
import tempfile

from mistralrs import CompletionRequest, ModelDType, Runner, Which


def tokens(job):
    with tempfile.TemporaryDirectory() as folder:
        for name in os.listdir(job["folder"]):
            if name != "tokenizer.json":
                os.symlink(os.path.join(os.path.abspath(job["folder"]), name), os.path.join(folder, name))
        with open(os.path.join(job["folder"], "tokenizer.json"), encoding="utf-8") as file:
            tokenizer = json.load(file)
        tokenizer["added_tokens"] = []  # it answers with text, and leaves special tokens out of that
        with open(os.path.join(folder, "tokenizer.json"), "w", encoding="utf-8") as file:
            json.dump(tokenizer, file)
        return answered(folder, job)


def answered(folder, job):
    runner = Runner(which=Which.Plain(model_id=folder, dtype=ModelDType.F32), no_paged_attn=True)
    request = CompletionRequest(
        prompt=" ".join(f"t{token}" for token in job["prompt"]),
        model="default", max_tokens=job["tokens"], temperature=0.0, top_k=1, ignore_eos=True,
    )  # fmt: skip
    return [int(word) for word in runner.send_completion_request(request).choices[0].text.split("t")[1:]]
