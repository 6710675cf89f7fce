"""lensprune: which layers and heads a language model needs, and whether the answer depends on how you measure.

::

    import lensprune as lp

    model = lp.load_model("smollm2-135m")
    run = lp.sweep(model, tasks=["kv_retrieval"], protocols=["generate"], variants=lp.each_layer(model), limit=100)
    run.summary(), run.plot(), run.critical_layers()

The examples in docstrings share `lp`, a `model`, a `run` that skips each of its layers, and a `replacement`::

    model = lp.load_model("toy-distilled")
    task = "kv_retrieval[pairs=4,ending=reopened,answer=text]"
    run = lp.sweep(model, task, "generate", lp.each_layer(model), limit=8)
    replacement = lp.measure_replacement(
        "toy-base", "toy-distilled", task, "generate", component="mlp", layers="0", limit=4
    )

Examples:
    >>> isinstance(lp.__version__, str)
    True
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lensprune.version import __version__

if TYPE_CHECKING:
    from lensprune.ablation import (
        CLEAN,
        MLP,
        AblatedSite,
        Ablation,
        Attention,
        Component,
        Head,
        KVGroup,
        Layer,
        Slot,
        Variant,
        cumulative,
        each_attention,
        each_head,
        each_head_and_group,
        each_kv_group,
        each_layer,
        each_mlp,
        layer_range,
        register_ablation,
        register_part,
    )
    from lensprune.attribution import PromptPair, counterfactual_pairs, pair_from_texts
    from lensprune.divergence.measure import fidelity
    from lensprune.engine import register_executor
    from lensprune.errors import HookNeverFired, LensPruneError, UserError
    from lensprune.heads import head_scores, register_head_score
    from lensprune.models import as_hooked_model, load_model
    from lensprune.planning import Plan, plan
    from lensprune.protocols import register_protocol
    from lensprune.replacement import ReplacementRun, measure_replacement
    from lensprune.results.analyses import register_analysis
    from lensprune.results.run import Run
    from lensprune.sweeps.noise import noise
    from lensprune.sweeps.run import resume, sweep
    from lensprune.sweeps.selection import VariantSelection
    from lensprune.tasks import get_task, load_task, register_task, task, task_names

# torch and transformers take seconds to import: names are looked up on first use.
_HOMES = {
    "lensprune.ablation": (
        "CLEAN",
        "MLP",
        "AblatedSite",
        "Ablation",
        "Attention",
        "Component",
        "Head",
        "KVGroup",
        "Layer",
        "Slot",
        "Variant",
        "cumulative",
        "each_attention",
        "each_head",
        "each_head_and_group",
        "each_kv_group",
        "each_layer",
        "each_mlp",
        "layer_range",
        "register_ablation",
        "register_part",
    ),
    "lensprune.replacement": ("ReplacementRun", "measure_replacement"),
    "lensprune.attribution": ("PromptPair", "counterfactual_pairs", "pair_from_texts"),
    "lensprune.engine": ("register_executor",),
    "lensprune.errors": ("HookNeverFired", "LensPruneError", "UserError"),
    "lensprune.heads": ("head_scores", "register_head_score"),
    "lensprune.models": ("as_hooked_model", "load_model"),
    "lensprune.planning": ("Plan", "plan"),
    "lensprune.divergence.measure": ("fidelity",),
    "lensprune.protocols": ("register_protocol",),
    "lensprune.results.analyses": ("register_analysis",),
    "lensprune.results.run": ("Run",),
    "lensprune.sweeps.noise": ("noise",),
    "lensprune.sweeps.run": ("resume", "sweep"),
    "lensprune.sweeps.selection": ("VariantSelection",),
    "lensprune.tasks": ("get_task", "load_task", "register_task", "task", "task_names"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "CLEAN",
    "MLP",
    "AblatedSite",
    "Ablation",
    "Attention",
    "Component",
    "Head",
    "HookNeverFired",
    "KVGroup",
    "Layer",
    "LensPruneError",
    "Plan",
    "PromptPair",
    "ReplacementRun",
    "Run",
    "Slot",
    "UserError",
    "Variant",
    "VariantSelection",
    "__version__",
    "as_hooked_model",
    "counterfactual_pairs",
    "cumulative",
    "each_attention",
    "each_head",
    "each_head_and_group",
    "each_kv_group",
    "each_layer",
    "each_mlp",
    "fidelity",
    "get_task",
    "head_scores",
    "layer_range",
    "load_model",
    "load_task",
    "measure_replacement",
    "noise",
    "pair_from_texts",
    "plan",
    "register_ablation",
    "register_analysis",
    "register_executor",
    "register_head_score",
    "register_part",
    "register_protocol",
    "register_task",
    "resume",
    "sweep",
    "task",
    "task_names",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'lensprune' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
