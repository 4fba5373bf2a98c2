import tempfile

import onnxruntime_genai
from onnxruntime_genai.models.builder import create_model, parse_extra_options


def tokens(job):
    with tempfile.TemporaryDirectory() as out, tempfile.TemporaryDirectory() as cache:
        how = ("", job["folder"], out, "fp32", "cpu", cache)
        create_model(*how, **parse_extra_options(*how, []))
        model = onnxruntime_genai.Model(out)
        options = onnxruntime_genai.GeneratorParams(model)
        options.set_search_options(max_length=len(job["prompt"]) + job["tokens"], do_sample=False)
        generator = onnxruntime_genai.Generator(model, options)
        generator.append_tokens(job["prompt"])
        while not generator.is_done():
            generator.generate_next_token()
        found = list(generator.get_sequence(0))[len(job["prompt"]) :]
        del generator, options, model
    return found
