"""The columns of the tables of all results, by type: what each holds, and in which unit."""

TEXTS = {
    "model": "name of the network, as results know it",
    "dtype": "number format in which it computes",
    "bits": "type to which its weights were rounded (nf4, Q2_K); missing where they are as published",
    "cut": 'what was dropped, as `Cut.name` has it: "13,4" are 4 layers from layer 13 (0-based), "0,0" is none',
    "rule": 'whose choice the cut was; "blocks of 4" where every block of 4 was tried; missing where nobody chose it',
    "changed": "what the rule did to the weights of the layers that stay: merged, or bridged; missing for nothing",
    "healing": "settings, text and tokens of the healing, as JSON; missing where the model was not healed",
    "task": "task of lm-eval, or group of which this is one task; of losses the text",
    "subject": "of the tasks of MMLU the subject; else missing",
    "engine": "what else than this library's own forward pass answered; else missing",
    "metric": 'what was counted: "acc", "exact_match", ..., or "loss" (nats a token)',
    "measured": "when, in UTC, ISO 8601",
    "path": "file below the folder of results",
    "corpus": "text whose residuals were looked at",
    "measure": "what was measured of residuals or layers",
    "of": '"layer", or "state" for the residual that enters a layer, or leaves the last one',
    "weights": "type of the weights as they are published: Q4_1, or a data type; missing where it is not known",
    "hash": "of the weights, or their commit on a hub",
    "kind": "of the file: distances, scores, healing or geometry",
    "name": "of what was measured: tasks, text, rule or cut",
    "device": "processor or accelerator, in words",
    "commit": "of the code that measured it; missing where it is not known",
    "variant": '"whole", "sliced", "healed" or "rounded"',
    "prompt": "text that it goes on from",
    "answer": "what llama.cpp wrote",
}
COUNTS = {
    "layers": "how many layers the whole network has, L",
    "items": "how many items or sequences were counted, I",
    "repeat": "0 for the measurement that counts; 1, 2, ... for others of the same thing",
    "samples": "sequences of the text, S",
    "seed": "with which they were drawn",
    "step": "update of the adapters, from 1",
    "place": "which layer or state, from 0",
    "cuts": "pruned models in the file",
    "memory": "bytes held at most",
}
WHOLE_NUMBERS = {  # that may be missing
    "start": "first dropped layer, from 0; missing where the cut is no block",
    "size": "how many layers were dropped, n; of sublayers as the rule counts them, missing where no rule is known",
    "shots": "examples in the prompt; missing for the task's own number",
    "order": "seed of the order of these examples; missing for the usual one",
    "limit": "at most so many items, the first ones, were asked of each task, or sequences of a text; missing for all",
    "length": "of losses and distances: tokens in a sequence; 0 where each is as long as it is",
    "bytes": "of weights, where they were counted",
    "vocabulary": "tokens; missing where the file does not say",
    "other": "of a measure of pairs: the second one, further up; else missing",
}
NUMBERS = {
    "share": "size / layers",
    "value": "the score: a share of the items, or the loss over all tokens, nats a token; of geometry the measure",
    "chance": "what guessing at random scores; for losses ln V, that of guessing among all V tokens, nats a token",
    "commonest": "what always naming the commonest answer of the task scores; missing where it is not known",
    "distance": "angular distance of what enters a block and what leaves it, units of pi, mean over sequences",
    "stderr": "its standard error over sequences",
    "tokens": "seen by a healing up to the step",
    "loss": "training loss of the step, nats a token",
    "seconds": "that it took",
}
VECTORS = {
    "outcome": "the score of each item, [I]: 0 or 1, or of each sequence, nats a token; missing where none was kept",
    "chosen": "number of the choice that each item was answered with, [I]; missing where none was kept",
    "target": "number of the right choice of each item, [I]; missing where none was kept",
    "logprobs": "log-probability of each choice, nats, [I, K], nan where an item has fewer; else missing",
    "written": "tokens of each answer that was generated, [I]; else missing",
    "ended": "whether each of these ended by itself, [I]: 0 where it was cut off at the most tokens; else missing",
    "by_sequence": "distance of each sequence, [S], within 0.05%; missing where none was kept",
}
WORDS = TEXTS | COUNTS | WHOLE_NUMBERS | NUMBERS | VECTORS
TYPES = (
    dict.fromkeys(TEXTS, "str")
    | dict.fromkeys(COUNTS, "int64")
    | dict.fromkeys(WHOLE_NUMBERS, "Int64")
    | dict.fromkeys(NUMBERS, "float64")
    | dict.fromkeys(VECTORS, "object")
)
TABLES = {
    "scores": "model layers dtype bits cut start size share rule changed healing task subject shots order limit "
    "length engine metric items value outcome chosen target logprobs written ended chance commonest bytes repeat "
    "measured path",
    "distances": "model layers dtype bits start size share corpus samples length seed distance stderr by_sequence "
    "measured path",
    "healing": "model layers dtype bits cut start size share healing step tokens loss measured path",
    "geometry": "model layers dtype bits corpus measure of place other value measured path",
    "runs": "model layers weights hash dtype vocabulary kind name cuts measured seconds memory device commit path",
    "answers": "model cut size variant prompt answer path",
}
