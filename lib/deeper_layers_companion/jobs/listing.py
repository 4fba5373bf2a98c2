"""Which jobs a notebook stands on: one function for each notebook that measures.

Jobs are listed one by one, as later ones may follow from the results of earlier ones: each is to be got, or in a plan
looked for, before the next is asked for. The inputs of rules are got here, see select_cuts.py.
"""

import sys
from collections.abc import Callable, Iterator

from deeper_layers import export
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError
from deeper_layers_companion.jobs import job as jobs
from deeper_layers_companion.jobs.job import Job, list_unknown_cuts
from deeper_layers_companion.jobs.options import parse_numbers
from deeper_layers_companion.jobs.select_cuts import (
    list_blocks,
    select_cuts_by_rule,
    select_cuts_by_task,
)
from deeper_layers_companion.jobs.session import Session
from deeper_layers_companion.rules.table import REGISTERED, RULES


def jobs_of(notebook: str, session: Session) -> Iterator[Job]:
    """The jobs that a notebook stands on, under the options of a session. Raises InputError where one is impossible."""
    yield from LISTS[notebook](session) if notebook in LISTS else ()


def get_all(notebook: str, session: Session) -> None:
    """Measure what results lack for a notebook; in a plan, collect it."""
    for job in jobs_of(notebook, session):
        session.get(job)


def list_sweep(session: Session) -> Iterator[Job]:
    """One job for each task or text, with its cuts by rule."""
    for name, cuts_by_rule in select_cuts_by_task(session).items():
        yield jobs.scores_job(session.source, session.options, [name], cuts_by_rule)


def _list_distances(session: Session) -> Iterator[Job]:
    yield jobs.distances_job(session.source, session.options)


def _list_question_answering(session: Session) -> Iterator[Job]:
    source = session.source
    options = session.options
    for task, cuts_by_rule in select_cuts_by_task(session).items():
        yield jobs.scores_job(source, options, [task], cuts_by_rule)
        shots = options.parsed_tasks[task]["shots"]
        prompts = [(number, 0) for number in parse_numbers(options.numbers)]
        prompts += [(shots, order) for order in parse_numbers(options.orders)]
        for number, order in [(shots, 0), *prompts] if prompts else ():
            prompt = {"shots": number, "order": order}
            for rule, cuts in cuts_by_rule.items():
                yield jobs.scores_job(source, options, [task], {rule: cuts}, prompt)


def _list_healings(session: Session) -> Iterator[Job]:
    """Before healing, then each cut healed under the rules that chose it, in each way."""
    source = session.source
    options = session.options
    cuts_by_rule = select_cuts_by_rule(options.list_sizes(source.num_layers), session)
    cuts: list[Cut] = []
    for name in [*options.texts, *options.task_list]:
        swept = jobs.scores_job(source, options, [name], cuts_by_rule)
        cuts = swept.cuts
        yield swept
    configs = [
        options.make_config(),
        *(options.make_config(rank=rank) for rank in parse_numbers(options.ranks)),
    ]
    configs += [options.make_config(seed=seed) for seed in parse_numbers(options.seeds)]
    for config in dict.fromkeys(configs):
        for cut in cuts:
            rules = [rule for rule, chosen in cuts_by_rule.items() if cut in chosen]
            healed = jobs.healed_job(source, options, cut, config, rules)
            yield from healed.needs
            yield healed


def _list_which_layers(session: Session) -> Iterator[Job]:
    source = session.source
    options = session.options
    yield jobs.distances_job(source, options, by_sequence=True)
    blocks = list_blocks(options.list_sizes(source.num_layers), source.num_layers)
    yield jobs.scores_job(source, options, options.texts, blocks)
    yield jobs.geometry_job(source, options)
    yield from list_comparison(session)


def list_comparison(session: Session) -> Iterator[Job]:
    """For each rule its choice, then the scores of the models that it leaves. A rule that changes no weights shares its
    scores with sweeps. A rule that does not fit the model is skipped, with a message on stderr."""
    source = session.source
    options = session.options
    sizes = options.list_share_sizes(source.num_layers)
    for rule in options.rule_list:
        choice = jobs.choice_job(source, options, rule, sizes)
        try:
            chosen = session.get(choice)
        except InputError as error:
            print(f"{rule}: {error}; it is left out", file=sys.stderr)
            continue
        cuts = list_unknown_cuts(rule, sizes)
        if chosen:
            cuts = [Cut.named(name) for name in chosen.details["cuts"][rule]]
        for task in options.task_list:
            yield jobs.chosen_job(
                source, options, task, [UNPRUNED] * (rule in RULES) + cuts, choice
            )


def _list_last_layers(session: Session) -> Iterator[Job]:
    """Each task under each rule in a job of its own, each text under all rules, then maps in the layers' place."""
    source = session.source
    options = session.options
    cuts_by_rule = select_cuts_by_rule(options.list_sizes(source.num_layers), session)
    for task in options.task_list:
        for rule, cuts in cuts_by_rule.items():
            yield jobs.scores_job(source, options, [task], {rule: cuts})
    for text in options.texts:
        yield jobs.scores_job(source, options, [text], cuts_by_rule)
    last_layers = REGISTERED["reverse"].choose(options.map_size_list, source.num_layers)
    for rule in options.map_list:
        for task in options.mapped_tasks:
            yield jobs.mapped_job(
                source, options, task, rule, last_layers, options.describe_map(rule)
            )


def _list_take_away(session: Session) -> Iterator[Job]:
    source = session.source
    options = session.options
    rule = options.rule_list[0]
    if source.is_gguf:
        (cut,) = select_cuts_by_rule([options.drop], session, [rule])[rule]
        made = {"config": options.make_config(), "text": options.text, "bits": options.gguf_type}
        file = jobs.file_job(source, options, rule, cut, **made)
        if options.measure and session.find(file) is None:
            export.check_llama_cpp()  # before healing, which takes long
        yield file
    cuts_by_rule = select_cuts_by_rule(options.list_sizes(source.num_layers), session, [rule])
    for bits in options.list_bits(source):
        yield jobs.rounded_job(source, options, bits, cuts_by_rule)


LISTS: dict[str, Callable[[Session], Iterator[Job]]] = {
    "01-similarity": _list_distances,
    "02-question-answering": _list_question_answering,
    "03-reasoning": list_sweep,
    "04-healing": _list_healings,
    "05-which-layers": _list_which_layers,
    "06-letters-or-words": list_sweep,
    "08-take-away": _list_take_away,
    "11-what-do-the-last-layers-hold": _list_last_layers,
}
