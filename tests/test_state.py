"""States that a model, a tokenizer or a process can be in: numbers are those of a plain model, and all stays as it was.

Each row states the state, the calls and what must hold. The plain model is fresh, in evaluation mode and alone.
"""

import contextlib
import copy
import functools
import types

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.models.decoder import decoder_layers
from deeper_layers.models.measuring import measuring
from deeper_layers.pruning import drop_layers, zero_sublayers
from deeper_layers.similarity import angular_distances, distances_by_batch
from deeper_layers.sweeping.generation import generate
from deeper_layers.sweeping.sweeps import loglikelihoods, plan, sweep, text_loss
from deeper_layers.sweeping.tree_model import Sharing, TreeModel
from deeper_layers_companion.rules.changing import bridge_cut, build_likeness, merge_layers
from deeper_layers_companion.rules.geometry import record_passes, skip_each_layer
from deeper_layers_companion.rules.needs import saliences, sublayer_cosines, token_cosines
from tests.plain import batch, requests
from tests.tiny import byte_tokenizer, tiny_model

CUTS = [Cut(0, 0), Cut(1, 2)]
DRAW = np.random.default_rng(5)
SEQUENCES = [torch.from_numpy(DRAW.integers(1, 128, length)) for length in (40, 17, 33)]
BATCHES = [batch([tokens.tolist() for tokens in SEQUENCES])]


def made(seed: int = 0):
    """A small model, with dropout while it trains, and a tokenizer."""
    model = tiny_model("llama", layers=5, seed=seed, vocab_size=300, attention_dropout=0.5, eos_token_id=0)
    return model, byte_tokenizer()


# ---- what is measured: numbers of a model --------------------------------------------------------------------


def numbers(table) -> list:
    return table["value"].tolist()


MEASURED = {
    "distances": lambda m, t: angular_distances(m, BATCHES),
    "cosines": lambda m, t: token_cosines(m, SEQUENCES),
    "sublayers": lambda m, t: sublayer_cosines(m, SEQUENCES),
    "saliences": lambda m, t: saliences(m, SEQUENCES),
    "geometry": lambda m, t: next(record_passes(m, BATCHES, tokens=3))["residuals"],
    "skips": lambda m, t: next(skip_each_layer(m, BATCHES, tokens=3))["output"],
    "loss": lambda m, t: numbers(text_loss(m, CUTS, SEQUENCES)[0]),
    "bridge": lambda m, t: decoder_layers(bridge_cut(m, Cut(2, 1), SEQUENCES))[1].mlp.down_proj.weight.detach(),
    "trained": lambda m, t: (
        decoder_layers(bridge_cut(m, Cut(2, 1), SEQUENCES, "trained"))[1].mlp.up_proj.weight.detach()
    ),
    "likeness": lambda m, t: build_likeness(m, SEQUENCES)([0, (1, 2), 3, 4]),
    "merged": lambda m, t: decoder_layers(merge_layers(m, [0, (1, 2), 3, 4]))[1].mlp.up_proj.weight.detach(),
    "pruned": lambda m, t: drop_layers(m, CUTS[1]).config.num_hidden_layers,
    "silenced": lambda m, t: len(decoder_layers(zero_sublayers(m, Cut.of([1], mlp=[3])))),
    "chosen": lambda m, t: numbers(sweep(m, t, ["capitals"], CUTS, limit=2)),
    "written": lambda m, t: written(m, t),
    "planned": lambda m, t: plan(m, t, ["capitals"], CUTS, limit=2).layer_steps,
}  # fmt: skip


def asked(number: int = 2) -> list[Instance]:
    options = {"until": ["<eos>"], "max_gen_toks": 5}
    contexts = ["Question: What is it?\nAnswer:", "capital of this, capital of this,"]
    return [Instance("generate_until", {}, (contexts[i], options), i) for i in range(number)]


@measuring
def written(model, tokenizer) -> list:
    """Texts, which `sweep` scores."""
    answers = generate(TreeModel(model, CUTS), tokenizer, asked())
    return [answer.text for of_cut in answers for answer in of_cut]


@functools.cache
def plain(name: str):
    return MEASURED[name](*made())


def everything(model, tokenizer) -> dict:
    """All that a measurement must leave as it was."""
    modules, parameters = list(model.modules()), dict(model.named_parameters(remove_duplicate=False))
    hooks = [len(value) for module in modules for name, value in vars(module).items() if name.endswith("_hooks")]
    own = [name for module in modules for name, value in vars(module).items() if isinstance(value, types.FunctionType)]
    return {
        "modes": [module.training for module in modules],
        "hooks": hooks,
        "methods": own,
        "trained": [parameter.requires_grad for parameter in parameters.values()],
        "gradients": [None if p.grad is None else p.grad.sum().item() for p in parameters.values()],
        "tensors": {name: (id(tensor), tensor.double().sum().item()) for name, tensor in parameters.items()},
        "configuration": [model.config.to_dict(), model.generation_config.to_dict()],
        "tokenizer": [tokenizer.pad_token, tokenizer.padding_side, tokenizer.truncation_side, len(tokenizer)],
        "process": [torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_rng_state().tolist()],
    }


# ---- states -------------------------------------------------------------------------------------------------


def trains_in_part(m, t):
    m.eval()
    decoder_layers(m)[1].train()


def has_gradients(m, t):
    m(input_ids=SEQUENCES[0][None], labels=SEQUENCES[0][None]).loss.backward()


def has_hooks(m, t):
    for layer in decoder_layers(m):
        layer.register_forward_hook(lambda *_: None)
        layer.mlp.register_forward_pre_hook(lambda *_: None)


def has_an_own_forward(m, t):
    for layer in decoder_layers(m):
        layer.forward = functools.partial(type(layer).forward, layer)


def says_more(m, t):
    m.set_attn_implementation("eager")
    m.config.output_hidden_states = m.config.output_attentions = True
    m(input_ids=SEQUENCES[0][None])  # transformers sets hooks of its own, once


def was_measured(m, t):
    angular_distances(m, BATCHES)
    sweep(m, t, ["capitals"], CUTS, limit=1)


def failed_before(m, t):
    with pytest.raises(InputError):
        angular_distances(m, [{"input_ids": torch.tensor([[999]]), "attention_mask": torch.tensor([[1]])}])
    with pytest.raises(InputError):
        text_loss(m, CUTS, [torch.tensor([1, 999])])


STATES = {
    "trains": lambda m, t: m.train(),
    "trains in part": trains_in_part,
    "is frozen": lambda m, t: m.requires_grad_(False),
    "is frozen in part": lambda m, t: decoder_layers(m)[2].requires_grad_(False),
    "has gradients": has_gradients,
    "has hooks": has_hooks,
    "has forwards of its own": has_an_own_forward,
    "checkpoints gradients": lambda m, t: m.train().activation_checkpointing_enable(),
    "keeps no cache": lambda m, t: setattr(m.config, "use_cache", False),
    "says more": says_more,
    "is said to be tied and is not": lambda m, t: setattr(m.config, "tie_word_embeddings", True),
    "is eager": lambda m, t: m.set_attn_implementation("eager"),
    "has no padding token": lambda m, t: setattr(t, "pad_token", None),
    "pads on the left": lambda m, t: setattr(t, "padding_side", "left"),
    "truncates on the left": lambda m, t: setattr(t, "truncation_side", "left"),
    "was measured": was_measured,
    "failed before": failed_before,
    "is beside another": lambda m, t: was_measured(*made(seed=1)),
    "has an odd default type": lambda m, t: torch.set_default_dtype(torch.float64),
    "without gradients": lambda m, t: torch.set_grad_enabled(False),
}
OF_TASKS = ("chosen", "written", "planned")
ROWS = [
    *(("trains", name) for name in MEASURED),
    *(("trains in part", name) for name in ("distances", "chosen", "written")),
    *(("is frozen", name) for name in ("saliences", "trained")),
    *(("is frozen in part", name) for name in ("saliences", "bridge")),
    *(("has gradients", name) for name in ("saliences", "trained", "chosen")),
    *(("has hooks", name) for name in ("sublayers", "loss", "pruned")),
    *(("has forwards of its own", name) for name in ("geometry", "loss")),
    *(("checkpoints gradients", name) for name in ("saliences", "loss")),
    *(("keeps no cache", name) for name in ("distances", "written")),
    *(("says more", name) for name in ("distances", "saliences", "likeness", "loss", "written")),
    *(("is said to be tied and is not", name) for name in OF_TASKS),
    *(("is eager", name) for name in ("distances", "written")),
    *(("has no padding token", name) for name in OF_TASKS),
    *(("pads on the left", name) for name in ("chosen", "written")),
    *(("truncates on the left", name) for name in ("chosen", "written")),
    *(("was measured", name) for name in ("distances", "chosen", "written")),
    *(("failed before", name) for name in ("distances", "loss")),
    *(("is beside another", name) for name in ("loss", "chosen")),
    *(("has an odd default type", name) for name in ("distances", "bridge", "written")),
    *(("without gradients", name) for name in ("saliences", "trained")),
]  # fmt: skip


@pytest.fixture(autouse=True)
def process():
    """Leaves the process as it was."""
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)


@pytest.mark.parametrize(
    ("state", "name"),
    [pytest.param(*row, marks=[] if row[1] in ("loss", *OF_TASKS) else [pytest.mark.quick]) for row in ROWS],
)
def test_a_state_changes_no_number_and_is_left_as_it_was(state, name):
    expected, (model, tokenizer) = plain(name), made()
    STATES[state](model, tokenizer)
    before = everything(model, tokenizer)
    found = MEASURED[name](model, tokenizer)
    after = everything(model, tokenizer)
    assert {of: after[of] for of in after if after[of] != before[of]} == {}
    if isinstance(expected, str | int) or name == "written":
        assert found == expected
    else:
        np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=1e-4, atol=1e-5)


# ---- what fails ----------------------------------------------------------------------------------------------

BEYOND = [{"input_ids": torch.tensor([[1, 300]]), "attention_mask": torch.ones(1, 2, dtype=torch.long)}]
FAILING = {  # a call, and words of its one line
    "distances": (lambda m, t: angular_distances(m, BATCHES + BEYOND), "a token has the number 300"),
    "a reader that stops": (lambda m, t: next(distances_by_batch(m, BATCHES * 2)), None),
    "loss": (lambda m, t: text_loss(m, CUTS, [torch.tensor([1, 2, -1])]), "a token has the number -1"),
    "bridge": (lambda m, t: bridge_cut(m, Cut(2, 1), SEQUENCES[1:2]), "17 tokens to fit a map of 48 by 48"),
    "tasks": (lambda m, t: sweep(m, t, ["capitols"], CUTS), "did you mean capitals"),
    "a part": (lambda m, t: sweep(broken(m), t, ["capitals"], CUTS, limit=1), "not a finite number in float32"),
    "words": (lambda m, t: written(unanswering(m), t), "generation_config has stop_strings, which lm-eval's"),
}


def broken(model):
    model.lm_head.weight.data.fill_(torch.inf)
    return model


def unanswering(model):
    model.generation_config.stop_strings = ["a"]
    return model


@pytest.mark.parametrize("name", FAILING)
def test_an_error_leaves_everything_as_it_was(name):
    (model, tokenizer), (call, words) = made(), FAILING[name]
    has_hooks(model, tokenizer)
    model.train()
    decoder_layers(model)[1].eval()
    before = everything(model, tokenizer)
    with pytest.raises(InputError, match=words) if words else contextlib.nullcontext():
        call(model, tokenizer)
    after = everything(model, tokenizer)
    kept = set(after) - {"tensors", "configuration"}  # which the calls themselves change first
    assert {of: after[of] for of in kept if after[of] != before[of]} == {}


# ---- a model that changes between two calls --------------------------------------------------------------------


def other_weights(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)


def other_layer(model):
    decoder_layers(model)[3] = copy.deepcopy(decoder_layers(model)[1])
    decoder_layers(model)[3].self_attn.layer_idx = 3


def other_forward(model):
    """Each layer adds half of what entered the one before it: layers can't be run one by one any more."""
    entered: list[torch.Tensor] = []

    def reach(layer, arguments, named):
        # a trial hands on tuples, as layers of older families do
        residual = arguments[0][0] if isinstance(arguments[0], tuple) else arguments[0]
        entered.append(residual)
        added = 0.5 * entered[-2] if layer.self_attn.layer_idx else 0
        return (residual + added, *arguments[1:]), named

    for layer in decoder_layers(model):
        layer.register_forward_pre_hook(reach, with_kwargs=True)


CHANGES = {
    "weights": other_weights,
    "a layer": other_layer,
    "a forward": other_forward,
    "attention": lambda m: m.set_attn_implementation("eager"),
    "the data type": lambda m: m.to(torch.bfloat16),
    "the head": lambda m: setattr(m, "lm_head", torch.nn.Linear(48, 300)),
    "the end": lambda m: setattr(m.generation_config, "eos_token_id", list(range(150))),
}
ASKED = requests(300, few_shot=60, questions=4)


def losses(model, family=None) -> np.ndarray:
    return loglikelihoods(family or TreeModel(model, CUTS), ASKED)[0]


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_between_two_calls_counts_at_once(change):
    (model, tokenizer), (fresh, _) = made(), made()
    for one in (fresh, model):
        if one is model:
            losses(model), angular_distances(model, BATCHES), written(model, tokenizer)
        torch.manual_seed(0)
        CHANGES[change](one)
    alone = [
        losses(drop_layers(fresh, cut), TreeModel(drop_layers(fresh, cut), [Cut(0, 0)], Sharing.NOTHING))
        for cut in CUTS
    ]
    rough = 0.5 if change == "the data type" else 1e-3
    np.testing.assert_allclose(losses(model), np.concatenate(alone), atol=rough)
    if change == "a forward":
        with pytest.raises(InputError, match="changes the residual between its layers"):
            angular_distances(model, BATCHES)
    else:
        np.testing.assert_array_equal(angular_distances(model, BATCHES), angular_distances(fresh, BATCHES))
    assert written(model, tokenizer) == written(fresh, tokenizer)


def test_a_tree_that_is_kept_forgets_prefixes_of_other_weights():
    (model, tokenizer), (fresh, _) = made(), made()
    family = TreeModel(model, CUTS)
    before, texts = losses(model, family), generate(family, tokenizer, asked())
    for one in (model, fresh):
        other_weights(one)
    found = losses(model, family)
    np.testing.assert_array_equal(found, losses(fresh))
    assert abs(found - before).max() > 0.01 and generate(family, tokenizer, asked()) != texts


def test_a_tree_of_another_model_or_of_other_cuts_is_refused():
    (model, tokenizer), (other, _) = made(), made(seed=1)
    for family in (TreeModel(other, CUTS), TreeModel(model, CUTS[:1])):
        with pytest.raises(InputError, match="family is of another model or other cuts"):
            sweep(model, tokenizer, ["capitals"], CUTS, limit=1, family=family)
    table = sweep(model, tokenizer, ["capitals"], CUTS, limit=2, family=TreeModel(model, CUTS))
    assert numbers(table) == numbers(sweep(model, tokenizer, ["capitals"], CUTS, limit=2))
