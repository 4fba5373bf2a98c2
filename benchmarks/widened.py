"""Products of 16 bits in float32 beside PyTorch's own, on a processor without arithmetic of 16 bits.

A pass forwards, and one there and back through adapters as healing makes it, over the same tokens; by turns.

    python -m benchmarks.widened NAME
"""

import argparse
import statistics
from unittest import mock

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from benchmarks import side_by_side
from lib import corpora, models
from lib.adapters import add_adapters
from lib.widened import attend, multiplies_sixteen_bits

ATTENTION = {"plain": sdpa_attention_forward, "widened": attend}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the file in benchmarks/measured")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quantization", default="nf4", help="nf4, int8 or none")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    side_by_side.start()
    if multiplies_sixteen_bits():
        parser.error("this processor has arithmetic of 16 bits: nothing is widened on it")

    quantization = None if options.quantization == "none" else options.quantization
    networks = {}
    for way in ATTENTION:
        with mock.patch.object(models, "multiplies_sixteen_bits", lambda way=way: way == "plain"):
            model, tokenizer = models.load_model(options.model, dtype=options.dtype, quantization=quantization)
        torch.manual_seed(0)
        networks[way] = add_adapters(model, rank=8, alpha=8, dropout=0.0).train()
    texts = corpora.texts("wikipedia", split="validation")
    ids = corpora.sequences(tokenizer, texts, length=options.length, tokens=options.length)[0].long()[None]

    seconds: dict = {way: {"forwards": [], "there_and_back": []} for way in networks}
    losses, gradients = {}, {}
    for _ in range(options.repeats):
        for way, network in networks.items():
            AttentionInterface.register("sdpa", ATTENTION[way])
            with torch.no_grad():
                seconds[way]["forwards"].append(
                    side_by_side.measured(lambda network=network: network(input_ids=ids))[1]
                )
            losses[way], spent, _ = side_by_side.measured(lambda network=network: there_and_back(network, ids))
            seconds[way]["there_and_back"].append(spent)
            gradients[way] = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
            network.zero_grad()
            print(f"{way}: {seconds[way]['forwards'][-1]:.2f} s forwards, {spent:.2f} s there and back", flush=True)

    side_by_side.keep(
        f"widened-{options.name}",
        {
            "model": options.model, "dtype": options.dtype, "quantization": quantization, "length": options.length,
            "seconds": {way: {kind: [round(s, 3) for s in each] for kind, each in kinds.items()}
                        for way, kinds in seconds.items()},
            "times_faster": {kind: ratio(seconds, kind) for kind in ("forwards", "there_and_back")},
            "losses": losses,
            "cosine_of_gradients": round(torch.cosine_similarity(*gradients.values(), dim=0).item(), 5),
        },
    )  # fmt: skip


def there_and_back(network, ids: torch.Tensor) -> float:
    loss = network(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.item()


def ratio(seconds: dict, kind: str) -> float:
    pairs = zip(seconds["plain"][kind], seconds["widened"][kind], strict=True)
    return round(statistics.median(plain / widened for plain, widened in pairs), 1)


if __name__ == "__main__":
    main()
