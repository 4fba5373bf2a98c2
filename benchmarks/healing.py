"""Healing beside a bare loop, beside the plain use of Trainer and peft on padded documents, and its three variants.

(a) forward, backward and step over packed sequences, nothing else; (b) ours, on packed sequences; (c) Trainer
and peft as one writes them down: each document cut after the length, padded to the longest of its batch; (d) ours
with the auxiliary loss; (e) ours with adapters above the cut only; (f) ours with the unpruned model as teacher.
Useful tokens are those that are no padding.
In one run, by turns, so that a machine that changes its pace changes it for all.

    python -m benchmarks.healing NAME --datasets FOLDER
"""

import argparse
import dataclasses
import functools
import statistics
import tempfile
import warnings

import torch
from peft import LoraConfig, get_peft_model
from transformers import DataCollatorForLanguageModeling, PrinterCallback, Trainer, TrainingArguments

from benchmarks import side_by_side
from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.data import corpora
from deeper_layers.data.tokens import sequences as sequences_of
from deeper_layers.healing.adapters import add_adapters, ffn_modules
from deeper_layers.healing.training import keep_freed_memory, train
from deeper_layers.models.decoder import num_layers
from deeper_layers.models.opening import load_model
from deeper_layers.presets import HealingConfig
from deeper_layers.pruning import drop_layers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the file in benchmarks/measured")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quantization", default="nf4", help="nf4, int8 or none")
    parser.add_argument("--size", type=int, default=9, help="layers dropped")
    parser.add_argument("--start", type=int, help="the first of them; left out, the simple rule's")
    parser.add_argument("--text", default="c4")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=8, help="sequences at once, a step; 8 is the Trainer's own")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--datasets", help="a local mirror of the hub")
    options = parser.parse_args()
    side_by_side.start()
    keep_freed_memory()  # as ours does, for all alike

    quantization = None if options.quantization == "none" else options.quantization
    model, tokenizer = load_model(options.model, dtype=options.dtype, quantization=quantization)
    texts = corpora.texts(options.text, split="train", datasets=options.datasets)
    layers = num_layers(model)
    cut = simple_cut(layers, options.size) if options.start is None else Cut(options.start, options.size)
    config = HealingConfig(
        rank=8, learning_rate=2e-3, sequence_length=options.length, steps=options.steps, warmup_steps=1,
        batch_sequences=options.batch, at_once=options.batch, quantization=quantization,
        gradient_checkpointing=False,
    )  # fmt: skip
    bare(drop_layers(model, cut), tokenizer, texts, config, steps=1)
    with_auxiliary, above = dataclasses.replace(config, auxiliary=1.0), dataclasses.replace(config, adapters="above")
    distilled = dataclasses.replace(config, objective="distill")
    runs = {
        "bare": functools.partial(bare, config=config),
        "ours": functools.partial(ours, config=config),
        "padded": functools.partial(padded, config=config),
        "auxiliary": functools.partial(ours, config=with_auxiliary, cut=cut, whole=model),
        "above": functools.partial(ours, config=above, cut=cut),
        "distill": functools.partial(ours, config=distilled, cut=cut, whole=model),
    }
    tokens: dict = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, run in runs.items():
            useful, seconds = run(drop_layers(model, cut), tokenizer, texts)
            tokens[name].append(round(useful / seconds))
            print(f"{name}: {tokens[name][-1]} useful tokens a second", flush=True)

    def ratio(name, other):
        return round(statistics.median(a / b for a, b in zip(tokens[name], tokens[other], strict=True)), 2)

    side_by_side.keep(
        f"healing-{options.name}",
        {
            "model": options.model, "dtype": options.dtype, "quantization": quantization,
            "cut": cut.describe(layers), "text": options.text, "length": options.length, "batch": options.batch,
            "steps": options.steps, "useful_tokens_a_second": tokens,
            "of_bare": ratio("ours", "bare"), "times_faster_than_padded": ratio("ours", "padded"),
            "auxiliary_of_ours": ratio("auxiliary", "ours"), "above_of_ours": ratio("above", "ours"),
            "distill_of_ours": ratio("distill", "ours"),
        },
    )  # fmt: skip


def bare(pruned, tokenizer, texts, config: HealingConfig, steps: int | None = None) -> tuple[int, float]:
    """(a): tokens, and the seconds of its steps alone."""
    steps = steps or config.steps
    healed = add_adapters(pruned, rank=config.rank, alpha=config.alpha, dropout=config.dropout).train()
    optimizer = torch.optim.AdamW([p for p in healed.parameters() if p.requires_grad], lr=config.learning_rate)
    needed = steps * config.batch_sequences
    sequences = sequences_of(tokenizer, texts, length=config.sequence_length, tokens=needed * config.sequence_length)

    def run():
        for first in range(0, needed, config.batch_sequences):
            ids = torch.stack(sequences[first : first + config.batch_sequences]).long()
            healed(input_ids=ids, labels=ids).loss.backward()
            torch.nn.utils.clip_grad_norm_(healed.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return needed * config.sequence_length, side_by_side.measured(run)[1]


def ours(pruned, tokenizer, texts, config: HealingConfig, **variant) -> tuple[int, float]:
    """(b), (d), (e), (f): tokens, and the seconds in training, what it prepares included."""
    record = train(pruned, tokenizer, texts, config, **variant)[1]
    return record.tokens, record.seconds


def padded(pruned, tokenizer, texts, config: HealingConfig) -> tuple[int, float]:
    """(c): tokens that are no padding, and the seconds in training."""
    adapters = LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=ffn_modules(pruned)
    )
    with warnings.catch_warnings():  # of a name that peft still asks for
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        healed = get_peft_model(pruned, adapters)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    needed = config.steps * config.batch_sequences
    documents = [tokenizer(text, truncation=True, max_length=config.sequence_length) for text in texts[:needed]]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=config.steps, per_device_train_batch_size=config.batch_sequences,
            learning_rate=config.learning_rate, use_cpu=pruned.device.type == "cpu", save_strategy="no",
            report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
        trainer = Trainer(model=healed, args=arguments, train_dataset=documents, data_collator=collate)
        trainer.remove_callback(PrinterCallback)
        seconds = side_by_side.measured(trainer.train)[1]
    return sum(len(document["input_ids"]) for document in documents), seconds


if __name__ == "__main__":
    main()
