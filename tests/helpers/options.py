"""The options that a sweep declares, and the public functions that take them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import lensprune as lp
from lensprune.adapters.lm_eval_sweep import sweep_lm_eval
from lensprune.attribution.report import attribution_report
from lensprune.divergence.report import fidelity_report
from lensprune.divergence.study import validate_fidelity
from lensprune.heads.removal import removal_curves
from lensprune.heads.report import heads_report
from lensprune.models.load import open_model
from lensprune.models.model_config import load_model_config
from lensprune.primitives.battery import primitives, task_texts
from lensprune.primitives.report import primitives_report
from lensprune.studies.paper import paper
from lensprune.sweeps.options import SweepOptions

__all__ = ["DECLARED", "FUNCTIONS"]

DECLARED = {option.name: option for option in fields(SweepOptions) if "help" in option.metadata}
FUNCTIONS: list[Callable[..., Any]] = [
    lp.sweep,
    lp.resume,
    lp.plan,
    lp.measure_replacement,
    lp.noise,
    lp.fidelity,
    lp.head_scores,
    lp.load_model,
    lp.load_task,
    lp.counterfactual_pairs,
    attribution_report,
    fidelity_report,
    heads_report,
    open_model,
    load_model_config,
    paper,
    primitives,
    primitives_report,
    removal_curves,
    sweep_lm_eval,
    task_texts,
    validate_fidelity,
]
"""Functions in the ``__all__`` of a module that take more than two options."""
