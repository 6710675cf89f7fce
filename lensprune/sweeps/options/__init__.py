"""Options, each declared once: meaning, default, parsing and checks.

A group is a frozen dataclass whose fields are made by `option`. Commands make their arguments and help from groups
(`add_options`); functions check their arguments by building one; a test compares every signature and every command with
the declarations.
"""

from lensprune.sweeps.options.ablated import ANY_RULE, FEWSHOT, Reference, Screening, check_ranked, kinds_of
from lensprune.sweeps.options.arguments import AnswerArguments, JobArguments, StudyArguments, SweepArguments
from lensprune.sweeps.options.declare import (
    Group,
    add_options,
    decimal,
    flag_of,
    given_options,
    help_of,
    option,
    option_values,
    whole_number,
)
from lensprune.sweeps.options.execution import Execution, Loading, Splitting, Workers, executor_options
from lensprune.sweeps.options.generation import Generation, TokenSampling
from lensprune.sweeps.options.items import Items, ItemSampling, Rows, Seed
from lensprune.sweeps.options.prompts import Prefix, Prompts, Wording
from lensprune.sweeps.options.stopping import StopEarly
from lensprune.sweeps.options.sweep import SweepOptions

__all__ = [
    "ANY_RULE",
    "FEWSHOT",
    "AnswerArguments",
    "Execution",
    "Generation",
    "Group",
    "ItemSampling",
    "Items",
    "JobArguments",
    "Loading",
    "Prefix",
    "Prompts",
    "Reference",
    "Rows",
    "Screening",
    "Seed",
    "Splitting",
    "StopEarly",
    "StudyArguments",
    "SweepArguments",
    "SweepOptions",
    "TokenSampling",
    "Wording",
    "Workers",
    "add_options",
    "check_ranked",
    "decimal",
    "executor_options",
    "flag_of",
    "given_options",
    "help_of",
    "kinds_of",
    "option",
    "option_values",
    "whole_number",
]
