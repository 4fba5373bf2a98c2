import tempfile

import ctranslate2


def tokens(job):
    with tempfile.TemporaryDirectory() as out:
        ctranslate2.converters.TransformersConverter(job["folder"]).convert(out, force=True)
        generator = ctranslate2.Generator(out, compute_type="float32", intra_threads=1)
        prompt = [f"t{token}" for token in job["prompt"]]
        (found,) = generator.generate_batch(
            [prompt], max_length=job["tokens"], sampling_topk=1, include_prompt_in_result=False, return_end_token=True
        )
    return found.sequences_ids[0]
