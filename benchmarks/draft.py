"""Greedy text of a whole model with its pruned copies as drafts beside without one, turn by turn, in transformers.

    python -m benchmarks.draft NAME --sizes 1,4,8

writes measured/draft-NAME.json. A draft proposes `--ahead` tokens, and the whole model takes those that it would have
chosen itself. So the text is the same, and a draft pays where the share taken is above its cost (Leviathan et al. 2023,
corollary 3.9): then a round of the whole model gives more tokens than it costs.
"""

import torch
from transformers.generation.candidate_generator import AssistedCandidateGenerator

from benchmarks import harness
from deeper_layers import angular_distances, drop_layers, load_model, similarity_cut
from deeper_layers.data import corpora
from deeper_layers.data.tokens import text_batches, token_sequences
from deeper_layers.models.decoder import num_layers

PROMPT = 64  # tokens


class Counted:
    """Counts what drafts proposed and what was taken, round by round, while it is entered."""

    def __enter__(self) -> "Counted":
        self.proposed, self.taken, self._update = 0, 0, AssistedCandidateGenerator.update_candidate_strategy

        def update(generator, input_ids, scores, num_matches):
            self.proposed += scores.shape[1] - 1
            self.taken += num_matches
            return self._update(generator, input_ids, scores, num_matches)

        AssistedCandidateGenerator.update_candidate_strategy = update
        return self

    def __exit__(self, *_) -> None:
        AssistedCandidateGenerator.update_candidate_strategy = self._update


def write_texts(model, draft, prompts: list[torch.Tensor], tokens: int, ahead: int) -> tuple[list, float]:
    """The greedy text after each prompt, and the share of proposed tokens that was taken (NaN without a draft)."""
    texts = []
    settings = {"do_sample": False, "min_new_tokens": tokens, "max_new_tokens": tokens, "pad_token_id": 0}
    if draft is not None:
        draft.generation_config.num_assistant_tokens = ahead
        draft.generation_config.num_assistant_tokens_schedule = "constant"
        draft.generation_config.assistant_confidence_threshold = 0.0
        settings["assistant_model"] = draft
    with Counted() as counted, torch.inference_mode():
        for prompt in prompts:
            ids = prompt[None].long()
            written = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
            texts.append(written[0, len(prompt) :].tolist())
    return texts, counted.taken / counted.proposed if counted.proposed else float("nan")


def main() -> None:
    options = harness.options(__doc__, sizes="1,2,4,8", prompts=8, tokens=32, ahead=3)
    model, tokenizer = load_model(options.model, dtype=options.dtype)
    layers = num_layers(model)
    tokens = PROMPT * options.prompts
    prompts = token_sequences(tokenizer, corpora.texts("wikipedia"), length=PROMPT, tokens=tokens)
    batches = text_batches(tokenizer, corpora.texts("wikipedia"), samples=16, length=128)
    distances = angular_distances(model, batches)
    cuts = {size: similarity_cut(distances, int(size)) for size in options.sizes.split(",")}
    drafts = {"none": None} | {size: drop_layers(model, cut) for size, cut in cuts.items()}
    ways = {
        name: lambda draft=draft: write_texts(model, draft, prompts, options.tokens, options.ahead)
        for name, draft in drafts.items()
    }
    found = harness.by_turns(ways, options.repeats)
    alone = found["none"][0].result[0]
    rows = []
    for name, cut in cuts.items():
        written, taken = found[name][0].result
        same = sum(a == b for one, other in zip(alone, written) for a, b in zip(one, other))
        rows.append(
            {
                "start": cut.start,
                "size": cut.size,
                "cost_of_layers": round(1 - cut.size / layers, 3),
                "taken": round(taken, 3),
                "tokens_equal": same / (len(alone) * options.tokens),
                "times_faster_than_without": harness.ratio(found, "none", name, 3),
            }
        )
    seconds = harness.seconds(found)
    content = {
        "model": options.model,
        "dtype": options.dtype,
        "layers": layers,
        "prompts": len(prompts),
        "tokens": options.tokens,
        "ahead": options.ahead,
        "drafts": rows,
        "tokens_a_second_without": round(len(prompts) * options.tokens / min(seconds["none"]), 2),
        "seconds": seconds,
    }
    harness.keep(f"draft-{options.name}", content)


if __name__ == "__main__":
    main()
