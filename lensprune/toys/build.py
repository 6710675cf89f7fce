"""Train the trio from scratch and save it; stages that are already saved are not trained again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shutil import copyfile

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lensprune.errors import UserError
from lensprune.models.cache import hash_file
from lensprune.toys.beginning import new_model
from lensprune.toys.recipe import Recipe
from lensprune.toys.texts import TextSource
from lensprune.toys.tokenizer import make_tokenizer
from lensprune.toys.training import answers_right, batches, train

__all__ = ["NAMES", "TEACHER_WEIGHTS", "build"]

NAMES = ("toy-teacher", "toy-base", "toy-distilled")

TEACHER_WEIGHTS = "teacher.safetensors"

_EVALUATION_SEED = 900
_TEACHER_SEED = 500


def build(
    recipe: Recipe,
    out: Path,
    *,
    teacher_weights: Path | None = None,
    with_control: bool = False,
    log: Callable[[str], None] = print,
) -> dict[str, str]:
    """Train teacher, base and distilled, and write each to ``out/NAME`` in Hugging Face's layout, in float16.

    ``out/work`` holds the float32 weights between stages, so that a stopped build resumes with the next stage.

    Args:
        teacher_weights: ``work/teacher.safetensors`` of an earlier build, to distil from that teacher instead of
            training one.
        with_control: train ``toy-worked`` too, the distilled model's twin that learns the same texts' worked steps from
            the texts themselves.

    Returns:
        sha256 of each model's weights file.

    Raises:
        UserError: ``out`` contains a build with a different recipe.
    """
    work = out / "work"
    work.mkdir(parents=True, exist_ok=True)
    _same_recipe(recipe, work / "recipe.json")
    if teacher_weights is not None:
        copyfile(teacher_weights, work / TEACHER_WEIGHTS)
    # Thread counts change sums in the last bits, and training amplifies them.
    torch.use_deterministic_algorithms(True)
    tokenizer = make_tokenizer()
    stages = _Stages(recipe, work, tokenizer, log)
    stages.train("start", recipe.start_steps, worked=False)
    teacher = stages.train("teacher", recipe.teacher_steps, worked=True)
    base = stages.train("base", recipe.base_steps, worked=False, begin="start")
    distilled = stages.train("distilled", recipe.distilled_steps, worked=True, begin="start", teacher=teacher)
    models = dict(zip(NAMES, (teacher, base, distilled), strict=True))
    if with_control:
        models["toy-worked"] = stages.train("worked", recipe.distilled_steps, worked=True, begin="start")
    hashes = {}
    for name, model in models.items():
        folder = out / name
        model.half().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        hashes[name] = hash_file(folder / "model.safetensors")
        log(f"{name}: {sum(p.numel() for p in model.parameters())} parameters, sha256 {hashes[name]}")
    return hashes


def _same_recipe(recipe: Recipe, path: Path) -> None:
    text = json.dumps(asdict(recipe), indent=1)
    if path.exists() and path.read_text() != text:
        raise UserError(f"{path.parent} contains a build with a different recipe: choose another out folder")
    path.write_text(text)


@dataclass(frozen=True)
class _Stages:
    """The training of one model after another; each is saved below `work`."""

    recipe: Recipe
    work: Path
    tokenizer: PreTrainedTokenizerFast
    log: Callable[[str], None]

    def train(
        self,
        name: str,
        steps: int,
        *,
        worked: bool,
        begin: str | None = None,
        teacher: LlamaForCausalLM | None = None,
    ) -> LlamaForCausalLM:
        """Train one model, or load what an earlier build saved; it starts from the weights of the stage `begin`."""
        # Every stage has its own rows, except the students, which share theirs.
        order = {"start": 1, "teacher": 2, "base": 3, "distilled": 3, "worked": 3}[name] + 10 * self.recipe.seed
        # The teacher has different initial weights.
        model = new_model(
            self.recipe if name != "teacher" else replace(self.recipe, seed=self.recipe.seed + _TEACHER_SEED),
            self.tokenizer,
        )
        saved = self.work / f"{name}.safetensors"
        if saved.exists():
            model.load_state_dict(load_file(saved), strict=False)
            model.tie_weights()
            return model.eval()
        if begin is not None:
            model.load_state_dict(load_file(self.work / f"{begin}.safetensors"), strict=False)
            model.tie_weights()
        source = TextSource(order, worked)
        stream = batches(
            self.tokenizer,
            source.mixed,
            steps=steps,
            batch_tokens=self.recipe.batch_tokens,
            most=self.recipe.n_ctx,
            seed=order,
        )
        train(
            model,
            stream,
            steps=steps,
            learning_rate=self.recipe.learning_rate * (0.5 if begin is not None else 1.0),
            teacher=teacher,
            log=self.log,
            name=name,
            check=lambda: answers_right(model, self.tokenizer, TextSource(_EVALUATION_SEED, worked), texts=25),
        )
        # Tied tensors share memory, which the format rejects: one of the two names is enough.
        state = {key: value for key, value in model.state_dict().items() if key != "lm_head.weight"}
        save_file(state, saved)
        return model
