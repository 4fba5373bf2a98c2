import torch
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)


def tokens(job):
    model = AutoModelForCausalLM.from_pretrained(job["folder"], dtype=torch.float32).eval()
    prompt = torch.tensor([job["prompt"]])
    found = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=job["tokens"], do_sample=False
    )
    return found[0, prompt.shape[1] :]
