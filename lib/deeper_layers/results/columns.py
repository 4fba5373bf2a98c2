"""The columns of the tables of all results: what each holds, in which unit, and of which type it is."""

COLUMNS = {
    "model": "name of the network, as results know it",
    "layers": "how many layers the whole network has, L",
    "dtype": "number format in which it computes",
    "bits": "type to which its weights were rounded (nf4, Q2_K); missing where they are as published",
    "cut": 'what was dropped, as `Cut.name` has it: "13,4" are 4 layers from layer 13 (0-based), "0,0" is none',
    "start": "first dropped layer, from 0; missing where the cut is no block",
    "size": "how many layers were dropped, n; of sublayers as the rule counts them, missing where no rule is known",
    "share": "size / layers",
    "rule": 'whose choice the cut was; "blocks of 4" where every block of 4 was tried; missing where nobody chose it',
    "changed": "what the rule did to the weights of the layers that stay: merged, or bridged; missing for nothing",
    "healing": "settings, text and tokens of the healing, as JSON; missing where the model was not healed",
    "task": "task of lm-eval, or group of which this is one task; of losses the text",
    "subject": "of the tasks of MMLU the subject; else missing",
    "shots": "examples in the prompt; missing for the task's own number",
    "order": "seed of the order of these examples; missing for the usual one",
    "limit": "at most so many items, the first ones, were asked of each task, or sequences of a text; missing for all",
    "length": "of losses: tokens in a sequence; 0 where each is as long as it is",
    "engine": "what else than this library's own forward pass answered; else missing",
    "metric": 'what was counted: "acc", "exact_match", ..., or "loss" (nats a token)',
    "items": "how many items or sequences were counted, I",
    "value": "the score: a share of the items, or the loss over all tokens, nats a token",
    "outcome": "the score of each item, [I]: 0 or 1, or of each sequence, nats a token; missing where none was kept",
    "chosen": "number of the choice that each item was answered with, [I]; missing where none was kept",
    "target": "number of the right choice of each item, [I]; missing where none was kept",
    "logprobs": "log-probability of each choice, nats, [I, K], nan where an item has fewer; else missing",
    "written": "tokens of each answer that was generated, [I]; else missing",
    "ended": "whether each of these ended by itself, [I]: 0 where it was cut off at the most tokens; else missing",
    "chance": "what guessing at random scores; for losses ln V, that of guessing among all V tokens, nats a token",
    "commonest": "what always naming the commonest answer of the task scores; missing where it is not known",
    "bytes": "of weights, where they were counted",
    "repeat": "0 for the measurement that counts; 1, 2, ... for others of the same thing",
    "measured": "when, in UTC, ISO 8601",
    "path": "file below the folder of results",
}
OF_DISTANCES = {name: COLUMNS[name] for name in ("model", "layers", "dtype", "bits", "start", "size", "share")} | {
    "corpus": "text on which the residuals were compared",
    "samples": "sequences of it, S",
    "length": "tokens in a sequence, at most",
    "seed": "with which they were drawn",
    "distance": "angular distance of what enters a block and what leaves it, units of pi, mean over sequences",
    "stderr": "its standard error over sequences",
    "by_sequence": "distance of each sequence, [S], within 0.05%; missing where none was kept",
    "measured": COLUMNS["measured"],
    "path": COLUMNS["path"],
}
OF_HEALING = {
    name: COLUMNS[name] for name in ("model", "layers", "dtype", "bits", "cut", "start", "size", "share", "healing")
} | {
    "step": "update of the adapters, from 1",
    "tokens": "tokens seen up to it",
    "loss": "training loss of the step, nats a token",
    "measured": COLUMNS["measured"],
    "path": COLUMNS["path"],
}
OF_GEOMETRY = {name: COLUMNS[name] for name in ("model", "layers", "dtype", "bits")} | {
    "corpus": "text whose residuals were looked at",
    "measure": "what was measured of them",
    "of": '"layer", or "state" for the residual that enters a layer, or leaves the last one',
    "place": "which one, from 0",
    "other": "of a measure of pairs: the second one, further up; else missing",
    "value": "the measure",
    "measured": COLUMNS["measured"],
    "path": COLUMNS["path"],
}
OF_RUNS = {
    "model": COLUMNS["model"],
    "layers": COLUMNS["layers"],
    "weights": "type of the weights as they are published: Q4_1, or a data type; missing where it is not known",
    "hash": "of the weights, or their commit on a hub",
    "dtype": COLUMNS["dtype"],
    "vocabulary": "tokens; missing where the file does not say",
    "kind": "of the file: distances, scores, healing or geometry",
    "name": "of what was measured: tasks, text, rule or cut",
    "cuts": "pruned models in it",
    "measured": COLUMNS["measured"],
    "seconds": "that it took",
    "memory": "bytes held at most",
    "device": "processor or accelerator, in words",
    "commit": "of the code that measured it; missing where it is not known",
    "path": COLUMNS["path"],
}
OF_ANSWERS = {
    "model": COLUMNS["model"],
    "cut": COLUMNS["cut"],
    "size": COLUMNS["size"],
    "variant": '"whole", "sliced", "healed" or "rounded"',
    "prompt": "text that it goes on from",
    "answer": "what llama.cpp wrote",
    "path": COLUMNS["path"],
}
WHOLE_NUMBERS = ("start", "size", "shots", "order", "limit", "length", "bytes", "vocabulary", "other")  # may be missing
COUNTS = ("layers", "items", "repeat", "samples", "seed", "step", "place", "cuts", "memory")
NUMBERS = ("share", "value", "chance", "commonest", "distance", "stderr", "tokens", "loss", "seconds")
VECTORS = ("outcome", "chosen", "target", "logprobs", "written", "ended", "by_sequence")
