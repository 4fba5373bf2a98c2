"""Whether a result whose asking may have stopped early is enough for a job, and what is seen in it.

Looks are at planned numbers of items, see report/stopping.py.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from deeper_layers_companion.jobs.job import Job
from deeper_layers_companion.jobs.until import Until
from deeper_layers_companion.report import looking
from deeper_layers_companion.report.looking import Seen
from deeper_layers_companion.report.stopping import StoppingRule, plan_looks
from deeper_layers_companion.results.frames import tabulate_scores
from deeper_layers_companion.results.store import Result


def is_enough(job: Job, result: Result) -> bool:
    """Whether a result answers what the job asks for, or has asked as many items as that allows."""
    assert job.until is not None
    stopping = result.details["stopping"]
    limit = count_askable(job.until, stopping["counts"])
    if stopping["items"] >= limit:
        return True
    rule = make_rule(job.until, limit, stopping["looks"])
    return looking.find_reason(look_at_result(narrow(job, result), rule)) is not None


def count_askable(until: Until, counts: Mapping[str, int]) -> int:
    """The most items that are asked: of a group, its tasks' together, as many as without a rule of stopping."""
    if until.limit is None:
        return sum(counts.values())
    return sum(min(until.limit, count) for count in counts.values())


def make_rule(until: Until, limit: int, made: Sequence[int] = ()) -> StoppingRule:
    """The rule of stopping among `limit` items; `made` are the looks of earlier runs, which count among the planned."""
    looks = sorted({*plan_looks(limit), *made})
    return StoppingRule(until.precision, tuple(looks), until.decides)


def look_at_result(result: Result, rule: StoppingRule | None = None) -> list[Seen]:
    """A look at each curve of a result by a rule, or else by the rule that stands in it."""
    settings = result.details["stopping"]["rule"]
    rule = rule or StoppingRule(**settings | {"looks": tuple(settings["looks"])})
    return looking.find_looks(tabulate_scores([result]), rule)


def narrow(job: Job, result: Result) -> Result:
    """A result with the cuts of the job alone."""
    names = {cut.name for cut in job.cuts}
    rows = [row for row in result.records if row["cut"] in names]
    return dataclasses.replace(result, key=job.key, records=rows)
