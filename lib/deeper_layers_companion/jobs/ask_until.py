"""A task whose items are asked in a random order, until its answer is precise enough or time is up.

Looks are at planned numbers of items (report/stopping.py). Between two of them all cuts are asked together, and what is
finished is kept in shards. An earlier result has the first items, which are not asked again.
"""

import math
import shutil
import sys
import time

from tqdm import tqdm

from deeper_layers import data, sweeping
from deeper_layers.errors import InputError
from deeper_layers.sweeping.shards import Shards
from deeper_layers_companion.jobs.answers import Answers
from deeper_layers_companion.jobs.job import Job
from deeper_layers_companion.jobs.looks import count_askable, make_rule, narrow
from deeper_layers_companion.jobs.scoring import Measured, list_task_rows, sweep_options
from deeper_layers_companion.jobs.subject import Subject
from deeper_layers_companion.jobs.until import Until
from deeper_layers_companion.report import looking
from deeper_layers_companion.report.looking import Seen
from deeper_layers_companion.report.stopping import ALL_ASKED, OUT_OF_TIME, UP_TO_LIMIT
from deeper_layers_companion.results.frames import tabulate_scores
from deeper_layers_companion.results.schema import ACCURACY
from deeper_layers_companion.results.store import Result

# under a clock items are asked in parts: a few first, which tell the pace, then more, so that time is kept
FEW_ITEMS = 4
PART_ITEMS = 30
BELOW_TABLE = (
    3  # lines of a terminal for what stands below the table: the bar, its overflow and the cursor
)


def measure_until(job: Job, subject: Subject, shards: Shards) -> Measured:
    """Ask items until the rule, the clock or the last item stops it. Details have "stopping": where and why."""
    until = job.until
    assert until is not None
    _check_cuts(job, until)
    asking = Asking(job, until, subject, shards)
    display = Display()
    try:
        while (reason := asking.find_reason()) is None:
            if asking.ask():
                display.show(asking.write_table(), asking.describe())
    except KeyboardInterrupt:
        display.close()
        print(f"\n{asking.write_table()}", file=sys.stderr)
        raise
    finally:
        display.close()
    return asking.make_rows(), asking.make_details(reason)


def _check_cuts(job: Job, until: Until) -> None:
    """Raise InputError where what decides has no meaning for the cuts."""
    if not all(cut.is_of_layers for cut in job.cuts):
        raise InputError(
            "precision is given, and a cut of sublayers has no number of layers: leave precision out"
        )
    for rule, names in job.key["cuts"].items():
        sizes = [cut.size for cut in job.cuts if cut.name in names]
        if until.decides != ACCURACY and len(set(sizes)) < len(sizes):
            raise InputError(
                f"decides is {until.decides!r}, and {rule} has several cuts of one size, expected accuracy: ask for it"
            )


class Asking:
    """What was asked so far, and what comes next."""

    def __init__(self, job: Job, until: Until, subject: Subject, shards: Shards):
        ((self.task, settings),) = job.key["tasks"].items()
        self.job = job
        self.until = until
        self.shards = shards
        self.layers = subject.source.num_layers
        self.weights = subject.source.quantized
        how = sweep_options(settings, subject.options)
        del how["limit"]
        self.questions = sweeping.Questions(*subject.open(job.key), self.task, job.cuts, **how)
        self.order = data.order_items(self.questions.counts, settings["seed"])
        self.limit = count_askable(until, self.questions.counts)
        self.answers = Answers()
        self.looks: list[int] = []
        self.seen: list[Seen] = []
        self.started = time.monotonic()
        self.seconds_per_item: float | None = None
        self.is_time_up = False
        self.first = 0  # items that are known already
        self.rule = make_rule(until, self.limit)
        if earlier := subject.find(job):
            self._go_on_from(earlier)

    def _go_on_from(self, earlier: Result) -> None:
        stopping = earlier.details["stopping"]
        self.answers.add(narrow(self.job, earlier).records, earlier.details["targets"])
        self.first = self.answers.items
        self.looks = list(stopping["looks"])
        self.rule = make_rule(self.until, self.limit, self.looks)
        self._look()

    def find_reason(self) -> str | None:
        """Why asking stops here; None if it goes on."""
        items = self.answers.items
        reason = looking.find_reason(self.seen) if self.seen else None
        if reason is not None:
            return reason
        if items >= len(self.order):
            return ALL_ASKED
        if items >= self.limit:
            return UP_TO_LIMIT
        return OUT_OF_TIME if self.is_time_up else None

    def _count_affordable(self) -> int:
        """How many items of the next part can be asked before time is up, at the pace so far."""
        if self.until.seconds is None:
            return self.limit
        if self.seconds_per_item is None:
            return FEW_ITEMS
        left = self.until.seconds - (time.monotonic() - self.started)
        return math.floor(min(PART_ITEMS, left / self.seconds_per_item))

    def ask(self) -> bool:
        """Ask the items up to the next look, or under a clock the next part of them; whether a look was made."""
        items = self.answers.items
        next_look = min(
            [look for look in self.rule.looks if items < look <= self.limit], default=self.limit
        )
        stop = min(next_look, items + max(FEW_ITEMS, self._count_affordable()))
        asked = self.order[items:stop]
        table = self.questions.ask(asked, self.shards.part(f"{items}-{stop}"))
        details: dict = {"levels": {}, "groups": {}, "targets": {}}
        rows = list_task_rows(self.task, table, self.job.cuts, details)
        self.answers.add(rows, details["targets"], asked)
        if self.answers.items != stop:
            raise InputError(
                f"precision is given, and {self.task} is not scored right or wrong item by item: leave precision out"
            )
        # what an interrupted run left in shards took its time then
        seconds = time.monotonic() - self.started + self.shards.seconds_before
        self.seconds_per_item = seconds / (stop - self.first)
        self.is_time_up = self._count_affordable() < FEW_ITEMS
        if stop < next_look and not self.is_time_up:
            return False
        self.looks.append(stop)
        self._look()
        return True

    def _look(self) -> None:
        details = {**self.make_details(""), "num_layers": self.layers, "weights": self.weights}
        result = Result("scores", self.job.key, {"measured": ""}, self.make_rows(), details)
        self.seen = looking.find_looks(tabulate_scores([result]), self.rule)
        if not self.seen:
            raise InputError(
                f"precision is given, and {self.task} has no whole model and cut that are right or wrong: leave it out"
            )

    def make_rows(self) -> list[dict]:
        return self.answers.write_rows(self.job.cuts, list(self.questions.counts))

    def make_details(self, reason: str) -> dict:
        counts = self.questions.counts
        stopping: dict = {
            "items": self.answers.items,
            "counts": counts,
            "rule": self.rule.as_settings(),
        }
        stopping |= {"looks": self.looks, "reason": reason}
        groups = {} if list(counts) == [self.task] else {self.task: sorted(counts)}
        levels = {
            "levels": self.questions.levels,
            "groups": groups,
            "targets": self.answers.write_targets(),
        }
        return levels | {"stopping": stopping}

    def describe(self) -> str:
        """The answer so far in one line, and what is left."""
        items = self.looks[-1]
        left = self.limit - items
        seconds = left * (self.seconds_per_item or 0)
        line = f"{self.task}: {items:,} of {len(self.order):,} items, {looking.describe_line(self.seen, self.rule)}"
        reason = self.find_reason()
        return f"{line}; {reason or f'at most {left:,} items are left, about {seconds:.0f} s'}"

    def write_table(self) -> str:
        """The answer so far as tables, and what is left."""
        if not self.seen:
            return f"{self.task}: no look yet, the first is after {self.rule.looks[0]} items"
        return "\n".join([*looking.write_tables(self.seen), self.describe()])


class Display:
    """The answer so far: on a terminal redrawn in place, above the bar of what runs; in a log one line a look."""

    def __init__(self) -> None:
        self.lines: list[tqdm] = []

    def show(self, table: str, line: str) -> None:
        """Show the table on a terminal, else the line."""
        if not sys.stderr.isatty():
            print(line, file=sys.stderr)
            return
        texts = table.splitlines()
        room = shutil.get_terminal_size().lines - BELOW_TABLE
        if len(texts) > room:
            texts = [*texts[: room - 1], "..."]
        for place in range(len(self.lines), len(texts)):
            self.lines.append(
                tqdm(bar_format="{desc}", position=place, leave=False, file=sys.stderr)
            )
        for place, bar in enumerate(self.lines):
            bar.set_description_str(texts[place] if place < len(texts) else "")

    def close(self) -> None:
        """Remove the table from the terminal."""
        for bar in reversed(self.lines):
            bar.close()
        self.lines = []
