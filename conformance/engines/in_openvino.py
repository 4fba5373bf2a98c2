import torch
from optimum.intel import OVModelForCausalLM

# its plug-in for processors else rounds to 16 bits, and the cache to 8
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


def tokens(job):
    model = OVModelForCausalLM.from_pretrained(job["folder"], export=True, load_in_8bit=False, ov_config=EXACT)
    prompt = torch.tensor([job["prompt"]])
    found = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=job["tokens"], do_sample=False
    )
    return found[0, prompt.shape[1] :]
