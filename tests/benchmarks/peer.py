"""lm-eval 0.4.13 on the same weights: one evaluation a variant, the component removed by a PyTorch hook."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from lensprune.models.sources.bundled import BUNDLED
from tests.benchmarks.ours import Metrics
from tests.benchmarks.random_weights import has_no_weights, random_model
from tests.benchmarks.stopwatch import Stopwatch, Times
from tests.benchmarks.works import Setting, Work
from tests.helpers import lm_eval_tasks

__all__ = ["LmEvalSide"]

BATCH_SIZES = (8, 32)
GPU_BATCH_SIZES = (32, 128)
_TRIAL = {BATCH_SIZES: 64, GPU_BATCH_SIZES: 256}
"""So many requests decide on the batch size."""


class LmEvalSide:
    """Only the model's calls and their tokenization are timed: tasks are loaded and prompts written beforehand."""

    def __init__(self, work: Work, setting: Setting, data_dir: Path) -> None:
        self._setting, self._plain, self._tokenizer = setting, *_model(setting)
        self._generates = work.protocol == "generate"
        cache_dir = Path(tempfile.mkdtemp())
        if work.subjects:
            loaded = lm_eval_tasks.load_mmlu(
                work.form, work.subjects, data_dir, cache_dir, work.shots, work.max_new_tokens
            )
        else:
            loaded = lm_eval_tasks.load(work.task, data_dir, cache_dir, work.shots, work.max_new_tokens)
        self._tasks = list(loaded["tasks"].values())
        for task in self._tasks:
            task.build_all_requests(limit=work.peer_limit or work.limit)
        self._lm: Any = None

    def choose_batch_size(self) -> int:
        """Time the clean model at each batch size and keep the fastest."""
        seconds = {}
        sizes = GPU_BATCH_SIZES if self._setting.on_gpu else BATCH_SIZES
        # A first call is slower than the others.
        for size in (sizes[0], *sizes):
            self._lm = self._with_batches_of(size)
            times, _ = self._ask(self._instances()[: _TRIAL[sizes]], "clean")
            seconds[size] = times.wall if self._setting.on_gpu else times.cpu
        best = min(seconds, key=lambda size: seconds[size])
        self._lm = self._with_batches_of(best)
        return best

    def _with_batches_of(self, size: int) -> HFLM:
        return HFLM(pretrained=self._plain, tokenizer=self._tokenizer, batch_size=size, device=self._setting.device)

    def run(self, names: list[str]) -> tuple[Times, dict[str, Metrics]]:
        """Times for one variant, and its metrics."""
        (name,) = names
        instances = self._instances()
        times, answers = self._ask(instances, name)
        for instance, answer in zip(instances, answers, strict=True):
            instance.resps = [answer]
            instance.filtered_resps = {}
        return times, {name: [metrics for task in self._tasks for metrics in _metrics(task)]}

    def _instances(self) -> list[Any]:
        return [instance for task in self._tasks for instance in task.instances]

    def _ask(self, instances: list[Any], name: str) -> tuple[Times, list[Any]]:
        watch = Stopwatch()
        with _removed(self._plain, name), torch.inference_mode():
            ask = self._lm.generate_until if self._generates else self._lm.loglikelihood
            answers = ask(instances, disable_tqdm=True)
        return watch.read(), answers


def _model(setting: Setting) -> tuple[Any, Any]:
    if has_no_weights(setting.model):
        return random_model(setting.model, setting.dtype, setting.device, "sdpa")
    folder = BUNDLED[setting.model].folder()
    plain: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, setting.dtype)).eval()
    return plain.to(setting.device), AutoTokenizer.from_pretrained(folder)


def _metrics(task: Any) -> Metrics:
    task.apply_filters()
    by_doc: dict[int, list[Any]] = {}
    for instance in task.instances:
        by_doc.setdefault(instance.doc_id, []).append(instance)
    found = []
    for doc_id in sorted(by_doc):
        instances = sorted(by_doc[doc_id], key=lambda instance: instance.idx)
        metrics: dict[str, float] = {}
        for name in instances[0].filtered_resps:
            values = task.process_results(instances[0].doc, [i.filtered_resps[name] for i in instances])
            metrics.update(
                {metric if name == "none" else f"{metric},{name}": float(value) for metric, value in values.items()}
            )
        found.append(metrics)
    return found


@contextmanager
def _removed(plain: Any, name: str) -> Iterator[None]:
    """The model without the component that a variant's name says."""
    if name == "clean":
        yield
        return
    match = re.fullmatch(r"L(\d+)(?:\.H(\d+)\.zero|\.skip)", name)
    assert match, name
    layer = plain.model.layers[int(match[1])]
    if match[2] is None:
        handle = layer.register_forward_hook(_skip, with_kwargs=True)
    else:
        size = layer.self_attn.head_dim
        columns = slice(int(match[2]) * size, (int(match[2]) + 1) * size)
        handle = layer.self_attn.o_proj.register_forward_pre_hook(_zero(columns))
    try:
        yield
    finally:
        handle.remove()


def _skip(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    entering = args[0] if args else kwargs["hidden_states"]
    return (entering, *output[1:]) if isinstance(output, tuple) else entering


def _zero(columns: slice) -> Any:
    def zero(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        changed = args[0].clone()
        changed[..., columns] = 0
        return (changed, *args[1:])

    return zero
