"""A plug-in from outside the package: one row or decorator for each thing that can be registered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes

import lensprune as lp
from lensprune.ablation import components, kinds
from lensprune.engine import HookedExecutor, registry
from lensprune.errors import UserError
from lensprune.heads import ScoreOptions
from lensprune.heads import registry as head_functions
from lensprune.models.base import HookedModel, ModelFacts
from lensprune.protocols import LoglikelihoodResponse, Outcome, Response, score_answer
from lensprune.protocols import registry as protocols
from lensprune.results import analyses
from lensprune.runs.outcomes import Outcomes
from lensprune.runs.spec import SweepSpec
from lensprune.tasks import Rows, Task, task_names
from lensprune.tasks import registry as task_registry
from lensprune.tasks.base import Doc, Item, PromptFormat
from lensprune.tasks.formats import three_protocols, uniform_chance
from tests.helpers.tolerances import assert_tensors_agree

mpl.use("agg")

TASK = "facts"
LIMIT = 4
EVERY_WAY = ("continuation", "generate", "opposite")


@contextmanager
def registered() -> Iterator[None]:
    """Everything that the plug-in registers, taken back afterwards."""
    analyses.analyses()
    task_names()
    tables: list[Any] = [
        components._PARTS,
        kinds._KINDS,
        protocols._PROTOCOLS,
        registry._EXECUTORS,
        head_functions._SCORES,
        analyses._ANALYSES,
    ]
    before = [(table, dict(table._rows), dict(table._origins)) for table in tables]
    classes = dict(components._BY_CLASS)
    builders = dict(task_registry._builders)
    _register()
    yield
    for table, rows, origins in before:
        table._rows.clear()
        table._rows.update(rows)
        table._origins = origins
    task_registry._builders.clear()
    task_registry._builders.update(builders)
    components._BY_CLASS.clear()
    components._BY_CLASS.update(classes)


def _half(facts: ModelFacts, half: int) -> range:
    return range(half * facts.d_model // 2, (half + 1) * facts.d_model // 2)


def _register() -> None:
    @lp.register_ablation
    def halve(site: lp.AblatedSite) -> torch.Tensor:
        """Half of the activation."""
        return site.activation / 2

    @lp.register_ablation(name="tenth", reads_activation=False)
    def constant(site: lp.AblatedSite) -> torch.Tensor:
        """A tenth everywhere."""
        return site.full(0.1)

    @lp.register_ablation(name="twice-mean", reference="mean", reads_activation=False)
    def twice_mean(site: lp.AblatedSite) -> torch.Tensor:
        """Twice the mean over reference prompts."""
        return 2 * site.reference.mean(site.component.site, site.position_ids)

    @lp.register_part(
        "mlp_half",
        over="mlp-halves",
        slot=lp.Slot.MLP,
        label="L{layer}.mlp{half}",
        size=lambda facts: 2,
        select=_half,
        index_word="MLP half",
        default_ablation="halve",
    )
    @dataclass(frozen=True, order=True)
    class MLPHalf(lp.Component):
        """One half of the dimensions of what an MLP adds to the residual stream."""

        half: int

    @lp.register_protocol(form="continuation", measure="logprob_margin")
    def opposite(fmt: PromptFormat, item: Item, responses: Sequence[Response]) -> Outcome:
        """The least likely option."""
        turned = [replace(r, logprob=-r.logprob) for r in responses if isinstance(r, LoglikelihoodResponse)]
        return score_answer(fmt, item, turned)

    @lp.register_protocol(form="generate")
    def first_word(fmt: PromptFormat, item: Item, responses: Sequence[Response]) -> Outcome:
        """The text's first word, which is never right."""
        return replace(score_answer(fmt, item, responses), prediction="The", correct=False)

    @lp.register_executor("backwards")
    def backwards(model: HookedModel, budget: Any) -> Any:
        """By hooks, the last variant first."""
        return Backwards(model)

    @lp.register_head_score(range="0 to 1", source="here")
    def place(model: HookedModel, options: ScoreOptions) -> torch.Tensor:
        """Where the head stands, the last one at 1."""
        shape = (model.facts.n_layers, model.facts.n_heads)
        return torch.linspace(0, 1, shape[0] * shape[1]).reshape(shape)

    @lp.register_task
    def sums(largest: int = 5) -> Task:
        """Sums of two numbers."""
        return _sums("sums", largest, lambda doc: "")

    @lp.register_task
    def sums_told(largest: int = 5) -> Task:
        """Sums behind their results."""
        told = _sums("sums_told", largest, lambda doc: f"It is {doc['c']}. ")
        return replace(told, closed_book="sums")

    @lp.register_analysis(
        title="Moved <answers>",
        draw=_bars,
        alt=lambda table: f"Bars: {len(table)} of them",
        columns={"variant": "", "task": "", "protocol": "", "moved": ".3f"},
        saved=True,
    )
    def moved_answers(
        outcomes: Outcomes, task: str | None = None, protocol: str | None = None, *, at_least: float = 0.0
    ) -> pd.DataFrame:
        """How far a variant moves the answer's
        log-probability, in nats."""
        records = outcomes.records(task=task, protocol=protocol).dropna(subset="gold_logprob")
        if records.empty:
            raise UserError("nothing is moved: no answer has a log-probability")
        clean = records[records["variant"] == "clean"]
        both = records.merge(clean, on=["task", "protocol", "item_id"], suffixes=("", "_clean"))
        both["moved"] = (both["gold_logprob"] - both["gold_logprob_clean"]).abs()
        found = both.groupby(["variant", "task", "protocol"], sort=False)["moved"].mean().reset_index()
        return found[(found["variant"] != "clean") & (found["moved"] >= at_least)]


def _sums(name: str, largest: int, told: Callable[[Doc], str]) -> Task:
    def question(doc: Doc) -> str:
        return f"{told(doc)}{doc['a']} + {doc['b']} ="

    def options(doc: Doc) -> list[str]:
        return [str(doc["c"] + i) for i in range(3)]

    docs = [{"a": a, "b": b, "c": a + b} for a in range(largest) for b in range(largest)]
    return Task(
        name=name,
        summary="sums of two numbers",
        kind="reasoning",
        formats=three_protocols(question, options, lambda doc: 0, continuation_context=question),
        chance=uniform_chance(options),
        load=lambda request: Rows(docs, docs, "made here", fewshot_is_evaluated=True),
    )


def _bars(table: pd.DataFrame, spec: SweepSpec) -> Axes:
    _, axes = plt.subplots()
    axes.bar(range(len(table)), table["moved"])
    axes.set_title(spec.model)
    return axes


class Backwards(HookedExecutor):
    """An executor that does without ``on_work``."""

    name = "backwards"

    def run(self, requests: Any, variants: Any, **options: Any) -> Any:
        return super().run(requests, list(variants)[::-1], **options)


def sweep(folder: Path, over: str = "mlp-halves", ablation: str | None = "halve", **changes: Any) -> lp.Run:
    arguments: dict[str, Any] = {
        "tasks": TASK,
        "protocols": EVERY_WAY,
        "variants": lp.VariantSelection(over, ablation),
        "limit": LIMIT,
        "shots": 1,
        "device": "cpu",
        "progress": False,
    }
    return lp.sweep(str(folder), **{**arguments, **changes})


def numbers(run: lp.Run) -> pd.DataFrame:
    columns = ["variant", "task", "protocol", "item_id"]
    return run.records().sort_values(columns).set_index(columns)[["component", "head", "text", "gold_logprob"]]


def assert_same_and_changed(one: lp.Run, other: lp.Run, at_least: float = 1e-3) -> None:
    """The same records within rounding, and some effect under every changed part."""
    a, b = numbers(one), numbers(other)
    assert_tensors_agree(a, b, torch.float32)
    likely = a.xs("continuation", level="protocol")["gold_logprob"].unstack("variant")
    moved = likely.sub(likely["clean"], axis=0).drop(columns="clean").abs().max()
    assert (moved > at_least).all(), moved


def refused(register: Callable[[], object], match: str) -> None:
    with pytest.raises(UserError, match=match):
        register()
