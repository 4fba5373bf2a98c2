"""The Trainer of transformers with checkpoints of our own: it pickles its own, and opens pickles to go on.

What it saves and loads goes through `Checkpoints`. The rest of going on is its own: batches that were trained on are
passed over, and the order of the text is drawn from the same seed.
"""

import tempfile
from pathlib import Path

import torch
from transformers import Trainer, TrainerCallback, TrainerState

from deeper_layers.healing.resuming import Checkpoints, Progress

AVERAGES = ("exp_avg", "exp_avg_sq")  # of AdamW, as torch names them


class ResumedTrainer(Trainer):
    """A Trainer that goes on from the last checkpoint, bit by bit as if it had not been interrupted.

    Args:
        watch: a callback that counts `seconds` in training, those `before` an interruption included.
    """

    def __init__(self, *, checkpoints: Checkpoints, watch: TrainerCallback, **options):
        super().__init__(**options)
        self.checkpoints, self.watch = checkpoints, watch
        self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def go_on(self) -> None:
        """Train from the last checkpoint, or the beginning; nothing where it is the end."""
        self.resumed = self.checkpoints.last(self._tensors(fresh=True))
        if self.resumed is None:
            self.train()
            return
        progress, _ = self.resumed
        state = TrainerState(
            global_step=progress.step,
            max_steps=self.args.max_steps,
            logging_steps=self.args.logging_steps,
            save_steps=self.args.save_steps,
            train_batch_size=self._train_batch_size,
            num_input_tokens_seen=progress.tokens,
            log_history=[{"loss": loss, "step": step} for step, loss in enumerate(progress.losses, 1)],
        )
        self.watch.before = progress.seconds
        if progress.step >= self.args.max_steps:
            self._load_from_checkpoint("")
            self.state = state
            return
        with tempfile.TemporaryDirectory() as folder:  # all that the Trainer itself asks of a checkpoint
            state.save_to_json(str(Path(folder) / "trainer_state.json"))
            self.train(resume_from_checkpoint=folder)

    def _tensors(self, *, fresh: bool = False) -> dict[str, torch.Tensor]:
        """All that a checkpoint holds; where `fresh`, only of which shapes and types it is."""
        tensors = {"random": torch.get_rng_state()}
        if self.args.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.args.device)
        for name, parameter in self.trained.items():
            tensors[f"adapter.{name}"] = parameter
            # where no gradient came, as to experts that no token chose, the optimizer has nothing yet
            nothing = {"step": torch.zeros(()), **dict.fromkeys(AVERAGES, torch.zeros_like(parameter))}
            of_it = nothing | ({} if fresh else self.optimizer.state.get(parameter, {}))
            tensors |= {f"{entry}.{name}": of_it[entry].clone() for entry in nothing}
        return tensors

    def _save_checkpoint(self, model, trial):
        if not self.args.should_save:  # the first of several processes does
            return
        if not all(bool(parameter.isfinite().all()) for parameter in self.trained.values()):
            return  # the next loss will be no number
        losses = [entry["loss"] for entry in self.state.log_history if "loss" in entry]
        progress = Progress(
            step=self.state.global_step,
            losses=losses,
            tokens=int(self.state.num_input_tokens_seen),
            seconds=float(self.watch.seconds),
        )
        self.checkpoints.write(progress, self._tensors())

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        _, tensors = self.resumed
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(tensors[f"adapter.{name}"])

    def _load_optimizer_and_scheduler(self, checkpoint):
        if checkpoint is None:
            return
        progress, tensors = self.resumed
        for name, parameter in self.trained.items():
            step = tensors[f"step.{name}"]
            if step > 0:
                self.optimizer.state[parameter] = {"step": step.clone()} | {
                    entry: tensors[f"{entry}.{name}"].to(parameter.device) for entry in AVERAGES
                }
        schedule = self.lr_scheduler
        rates = [base * rate(progress.step) for base, rate in zip(schedule.base_lrs, schedule.lr_lambdas)]
        for group, rate in zip(self.optimizer.param_groups, rates):
            group["lr"] = rate
        done = {"last_epoch": progress.step, "_step_count": progress.step + 1, "_last_lr": rates}
        schedule.load_state_dict(schedule.state_dict() | done)

    def _load_rng_state(self, checkpoint):
        if checkpoint is None:
            return
        _, tensors = self.resumed
        torch.set_rng_state(tensors["random"])
        if "random.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random.cuda"], self.args.device)
