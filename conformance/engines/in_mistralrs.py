from mistralrs import CompletionRequest, ModelDType, Runner, Which


def tokens(job):
    runner = Runner(which=Which.Plain(model_id=job["folder"], dtype=ModelDType.F32), no_paged_attn=True)
    prompt = " ".join(f"t{token}" for token in job["prompt"])
    answer = runner.send_completion_request(
        CompletionRequest(
            prompt=prompt, model="default", max_tokens=job["tokens"], temperature=0.0, top_k=1, ignore_eos=True
        )
    )
    return [int(word) for word in answer.choices[0].text.split("t")[1:]]
