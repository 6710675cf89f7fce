"""Options, each declared once: what it means, its default, how it is read, and what is refused.

A group is a frozen dataclass whose fields are made by `option`. Commands make their arguments and help from groups
(`add_options`); functions check what they are given by building one; a test compares every signature and every
command with the declarations.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from lensprune.ablation.choices import head_words, over_words, parts_over, reference_kinds
from lensprune.ablation.components import Part, Slot
from lensprune.ablation.kinds import MeanMode, ablation_kind, ablation_kinds
from lensprune.ablation.variants import Variant, VariantsLike, as_variants
from lensprune.engine.gradient_rules import GRADIENT_RULES, check_rule
from lensprune.engine.registry import BACKENDS, executor_names
from lensprune.errors import UserError, unknown_name
from lensprune.models.base import BosPolicy
from lensprune.paths import usable_path
from lensprune.protocols.dates import DEFAULT_DATE, check_date
from lensprune.protocols.registry import protocol_named
from lensprune.protocols.requests import GenerationConfigUse
from lensprune.registry import in_words
from lensprune.sweeps.selection import VariantSelection
from lensprune.tasks.item_choice import DRAWN, ItemChoice

if TYPE_CHECKING:
    from lensprune.analysis.stopping import Stopping

# Statistics take a second to import, so that what checks their options imports them when it is called.

__all__ = [
    "FEWSHOT",
    "Execution",
    "Generation",
    "Group",
    "ItemSampling",
    "Items",
    "Loading",
    "Prefix",
    "Prompts",
    "Reference",
    "Rows",
    "Screening",
    "Seed",
    "Splitting",
    "StopEarly",
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

FEWSHOT = "fewshot"
"""The default for `reference`: each task's own few-shot examples."""

THINKING = ("on", "off", "auto")

MAX_ITEMS = 1_000_000
MAX_SHOTS = 1000
MAX_TOKENS = 1_000_000
MAX_SAMPLES = 1000
MAX_TEMPERATURE = 100
MAX_WORKERS = 10_000
_LOOKS = 4
_LEVEL = 0.05

Check = Callable[[Any], None]


def whole_number(text: str) -> int:
    digits = text.strip()
    if not digits.removeprefix("-").isdecimal() or len(digits) > 18:
        raise argparse.ArgumentTypeError(f"expected a whole number, not {text!r}")
    return int(digits)


def decimal(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number like 0.1, not {text!r}") from None


def option(
    default: Any,
    help: str | Callable[[], str],
    *,
    metavar: str | tuple[str, ...] | None = None,
    parse: Callable[[str], Any] = str,
    check: Check | None = None,
    flag: str | None = None,
    action: type[argparse.Action] | None = None,
    repeated: bool = False,
) -> Any:
    """A field of a group.

    Args:
        help: one phrase for the command line, or a function that gives it, for names that can be registered later;
            `add_options` appends the default where it is a value.
        metavar: what the value is called in the help, or each of several values; ``None`` for a flag.
        parse: from the command line's text.
        check: raises `UserError` for a value that is refused; ``None`` values are not checked.
        flag: on the command line, where it is not the field's name.
        action: how argparse keeps the values of an option that can be given again.
        repeated: the argument may be given several times, and the value is a tuple.
    """
    declared = {
        "help": help,
        "metavar": metavar,
        "parse": parse,
        "check": check,
        "flag": flag,
        "action": action,
        "repeated": repeated,
    }
    return field(default=default, metadata=declared)


def _between(low: int, high: int, what: str, unit: str) -> Check:
    def check(value: int) -> None:
        if not low <= value <= high:
            raise UserError(f"{what} {value} is not a usable number of {unit}: expected {low} to {high}")

    return check


def _one_of(names: tuple[str, ...], what: str) -> Check:
    def check(value: str) -> None:
        if value not in names:
            raise unknown_name(what, value, names)

    return check


def _check_batch(tokens: int) -> None:
    if tokens < 1:
        raise UserError(f"batch tokens {tokens} can't hold a token: expected 1 or more")


def _check_memory(size: str) -> None:
    from lensprune.engine.memory import parse_memory

    parse_memory(size)


def _check_choice(text: str) -> None:
    ItemChoice.parse(text)


def _check_data_dir(folder: str | Path) -> None:
    if not usable_path(folder, "data folder").is_dir():
        raise UserError(f"data folder {folder} does not exist")


@dataclass(frozen=True, kw_only=True)
class Group:
    """Base of all groups: building one checks its values.

    Raises:
        UserError: a value that its option refuses.
    """

    def __post_init__(self) -> None:
        for declared in fields(self):
            check, value = declared.metadata.get("check"), getattr(self, declared.name)
            if check is not None and value is not None:
                check(value)


@dataclass(frozen=True, kw_only=True)
class Seed(Group):
    """What is drawn."""

    seed: int = option(0, "of few-shot examples and whatever is drawn or generated", metavar="N", parse=whole_number)


@dataclass(frozen=True, kw_only=True)
class Items(Seed):
    """Which items are asked, with which examples."""

    limit: int | None = option(
        None,
        "N items of each task (default: all)",
        metavar="N",
        parse=whole_number,
        check=_between(1, MAX_ITEMS, "limit", "items"),
    )
    shots: int | None = option(
        None,
        "few-shot examples (default: the task's own number)",
        metavar="N",
        parse=whole_number,
        check=_between(0, MAX_SHOTS, "shots", "examples"),
    )


@dataclass(frozen=True, kw_only=True)
class ItemSampling(Group):
    """Which items a limit takes of rows that stand in a file."""

    items: str = option(
        DRAWN,
        "which items: drawn (--limit takes a sample by --seed) or first (in the order of the file, as lm-eval), either "
        "with an offset, like drawn+40; 17,40-60 (these rows, from 0) or @FILE (these ids, one per line)",
        metavar="WHICH",
        check=_check_choice,
    )


@dataclass(frozen=True, kw_only=True)
class Rows(Group):
    """Where rows come from."""

    data_dir: str | Path | None = option(
        None,
        "folder with TASK/SPLIT.jsonl (default: the hub, for tasks that are not bundled)",
        metavar="FOLDER",
        check=_check_data_dir,
    )


class _Arguments(argparse.Action):
    """Collects ``KEY=VALUE`` of an option that is given again and again."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        name, value = values
        given = getattr(namespace, self.dest) or {}
        if name in given:
            parser.error(f"argument {option_string}: {name} is given twice")
        setattr(namespace, self.dest, {**given, name: value})


def key_value(text: str) -> tuple[str, Any]:
    """``KEY=VALUE``, where the value is a number, ``true``, ``false``, ``null`` (as in JSON) or text, quoted or not."""
    name, sign, value = text.partition("=")
    if not sign or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, like reasoning_effort=low, not {text!r}")
    try:
        return name, json.loads(value, parse_constant=str)
    except ValueError:
        return name, value


def _check_arguments(given: Any) -> None:
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise UserError(f"template arguments {given!r} are no mapping of names: expected one like {{'effort': 'low'}}")
    for name, value in given.items():
        if name == "enable_thinking":
            raise UserError("template argument enable_thinking is what thinking sets: choose thinking on, off or auto")
        if value is not None and not isinstance(value, (str, int, float)):
            raise UserError(f"template argument {name} is {value!r}: expected text, a number, true, false or null")


def _check_text(given: Any) -> None:
    if not isinstance(given, str):
        raise UserError(f"system prompt {given!r} is not text")


def _check_tokens(given: Any) -> None:
    if not isinstance(given, (tuple, list)) or len(given) != 2 or not all(isinstance(t, str) and t for t in given):
        raise UserError(f"think tokens {given!r} are not usable: expected a start and an end, like <think> </think>")


@dataclass(frozen=True, kw_only=True)
class Wording(Group):
    """How prompts are written, and what in a text is thinking."""

    chat_template: bool = option(False, "put prompts into the model's chat format")
    template_date: str | None = option(
        None,
        f"date that a chat template with a clock writes (default: {DEFAULT_DATE}, whatever the day)",
        metavar="DATE",
        check=check_date,
    )
    template_args: Mapping[str, Any] | None = option(
        None,
        "a variable of the chat template, like reasoning_effort=low; repeat for several",
        metavar="KEY=VALUE",
        parse=key_value,
        check=_check_arguments,
        flag="--template-arg",
        action=_Arguments,
    )
    fewshot_as_multiturn: bool = option(False, "in the chat format, each few-shot example is a turn of its own")
    system: str | None = option(
        None, "system prompt, in front of the task's description", metavar="TEXT", check=_check_text
    )
    keep_eos: bool = option(
        False, "keep the end token that some tokenizers put behind a prompt, as lm-eval does (default: leave it out)"
    )
    thinking: str = option(
        "auto",
        "ask the chat template for thinking: on, off or auto (as it does by itself)",
        metavar="MODE",
        check=_one_of(THINKING, "thinking"),
    )
    think_tokens: tuple[str, str] | None = option(
        None,
        "where thinking starts and ends (default: known ones, such as <think> and </think>, in the chat format)",
        metavar=("START", "END"),
        check=_check_tokens,
    )
    thinking_budget: int | None = option(
        None,
        "tokens after which the end of thinking is forced (default: never)",
        metavar="N",
        parse=whole_number,
        check=_between(1, MAX_TOKENS, "thinking budget", "tokens"),
    )


@dataclass(frozen=True, kw_only=True)
class Prompts(Wording):
    """What a prompt holds, and how it is written."""

    leave_out_repeated: bool = option(
        False, "leave out items that are among their own few-shot examples (default: keep them, with a warning)"
    )
    primary_metric: str | None = option(
        None,
        "metric that decides whether a generated answer is right, like equal,boxed (default: the task's own)",
        metavar="NAME",
    )


@dataclass(frozen=True, kw_only=True)
class Prefix(Group):
    """What stands between prompts and options."""

    thinking_prefix: str | None = option(
        None,
        "clean: scored options are read after the clean model's own thinking, up to the thinking budget",
        metavar="MODEL",
        check=_one_of(("clean",), "thinking prefix"),
    )


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str) or not all(isinstance(text, str) and text for text in texts):
        raise UserError(f"until {texts!r} is not a list of stop strings: expected texts of at least one character")


def _within(low: float, high: float, what: str, *, above: bool = False) -> Check:
    def check(value: float) -> None:
        if not (low < value <= high if above else low <= value <= high):
            start = f"above {low:g}" if above else f"{low:g}"
            raise UserError(f"{what} {value:g} is not possible: expected a number from {start} to {high:g}")

    return check


@dataclass(frozen=True, kw_only=True)
class Generation(Group):
    """How texts are generated."""

    max_new_tokens: int | None = option(
        None,
        "new tokens of a text at most (default: the task's own number)",
        metavar="N",
        parse=whole_number,
        check=_between(1, MAX_TOKENS, "max new tokens", "tokens"),
    )
    until: Sequence[str] = option(
        (), "also stop a text at this string; repeat for several", metavar="TEXT", check=_check_texts, repeated=True
    )
    until_only: bool = option(False, "leave out the task's own stop strings, and stop at those of --until alone")
    generation_config: str = option(
        "model",
        "model (its generation config's penalties, suppressed tokens and end tokens count) or none (they don't)",
        metavar="USE",
        check=_one_of(get_args(GenerationConfigUse), "use of the generation config"),
    )


@dataclass(frozen=True, kw_only=True)
class TokenSampling(Group):
    """How tokens are drawn."""

    temperature: float | None = option(
        None,
        "sample at this temperature; 0 decodes greedily (default: the task's own, most often 0)",
        metavar="T",
        parse=decimal,
        check=_within(0, MAX_TEMPERATURE, "temperature"),
    )
    top_p: float | None = option(
        None,
        "sample among the likeliest tokens that hold this share (default: the task's or the model's, else 1)",
        metavar="P",
        parse=decimal,
        check=_within(0, 1, "top-p", above=True),
    )
    top_k: int | None = option(
        None,
        "sample among the K likeliest tokens, 0 for all (default: the task's or the model's, else 0)",
        metavar="K",
        parse=whole_number,
        check=_between(0, MAX_TOKENS, "top-k", "tokens"),
    )
    samples: int | None = option(
        None,
        "texts to sample of each item (default: the task's own number, most often 1)",
        metavar="K",
        parse=whole_number,
        check=_between(1, MAX_SAMPLES, "samples", "samples"),
    )


@dataclass(frozen=True, kw_only=True)
class Reference(Group):
    """What ablated activations are replaced by."""

    reference: str | Path = option(
        FEWSHOT,
        lambda: f"text file for {in_words(reference_kinds(), 'and')} (default: the task's few-shot examples)",
        metavar="FILE",
    )
    mean_mode: str = option(
        "pooled",
        f"how mean is taken: {in_words(get_args(MeanMode))}",
        metavar="MODE",
        check=_one_of(get_args(MeanMode), "mean mode"),
    )


@dataclass(frozen=True, kw_only=True)
class Loading(Group):
    """How a model is loaded."""

    dtype: str | None = option(None, "float32, bfloat16, float16 or float64 (default: float32)", metavar="TYPE")
    device: str | None = option(None, "cpu, cuda, cuda:1, ... (default: a GPU if there is one)", metavar="DEVICE")
    bos: str | None = option(
        None,
        "first token: tokenizer (as it does), always or never (default: tokenizer)",
        metavar="POLICY",
        check=_one_of(get_args(BosPolicy), "BOS policy"),
    )


@dataclass(frozen=True, kw_only=True)
class Splitting(Group):
    """A model on several GPUs."""

    n_devices: int | None = option(None, "split the model over N GPUs", metavar="N", parse=whole_number)


@dataclass(frozen=True, kw_only=True)
class Execution(Group):
    """How rows are run; no number depends on it."""

    executor: str = option(
        "forked",
        lambda: f"{in_words(executor_names())}, with the same numbers: forked is fast, hooked the reference",
        metavar="NAME",
    )
    batch_tokens: int | None = option(None, "tokens per batch", metavar="N", parse=whole_number, check=_check_batch)
    memory: str | None = option(
        None, "what may be taken besides the model's weights, like 4GB", metavar="SIZE", check=_check_memory
    )


def _check_share(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise UserError(f"screen {fraction:g} is not a share of the heads: expected a number between 0 and 1, like 0.1")


def _check_loss(loss: float) -> None:
    from lensprune.analysis.sequential import Looks

    Looks((1,), margin=loss)


def _check_q(q: float) -> None:
    if q == _LEVEL:
        return
    from lensprune.analysis.sequential import Looks

    Looks((1,), level=q)


def _check_looks(text: str) -> None:
    _items_at_looks(text)


def _check_width(width: float) -> None:
    from lensprune.analysis.stopping import UntilWidth

    UntilWidth((1,), width)


def _items_at_looks(text: str) -> tuple[int, ...]:
    from lensprune.analysis.sequential import Looks

    try:
        items = tuple(whole_number(part) for part in text.split(","))
    except argparse.ArgumentTypeError:
        raise UserError(f"looks {text!r}: expected numbers of items that rise, like 100,200,400") from None
    return Looks(items).items


@dataclass(frozen=True, kw_only=True)
class Screening(Group):
    """Measuring only what an estimate of all heads ranks first."""

    screen: float | None = option(
        None,
        "of heads, estimate all and measure only this share, like 0.1, and a random control set",
        metavar="SHARE",
        parse=decimal,
        check=_check_share,
    )
    screen_rule: str | None = option(
        None,
        lambda: f"gradient of the estimates: {in_words(GRADIENT_RULES)} (default: plain)",
        metavar="NAME",
        check=check_rule,
    )


@dataclass(frozen=True, kw_only=True)
class StopEarly(Group):
    """When a variant need not be asked further."""

    lost_more_than: float | None = option(
        None,
        "ask which variants lose more accuracy than this, like 0.05, and stop each one when that is known",
        metavar="LOSS",
        parse=decimal,
        check=_check_loss,
    )
    looks: str | None = option(
        None,
        "with --lost-more-than: numbers of items to look at (default: four, up to --limit)",
        metavar="N,N,...",
        check=_check_looks,
    )
    q: float = option(_LEVEL, "with --lost-more-than: false discovery rate", metavar="Q", parse=decimal, check=_check_q)
    until_width: float | None = option(
        None,
        "stop each variant when the interval of its Δμ is no wider than this, like 0.1, at --limit at the latest",
        metavar="WIDTH",
        parse=decimal,
        check=_check_width,
    )


@dataclass(frozen=True, kw_only=True)
class Workers(Group):
    """How cells are distributed with ``--executor ray``."""

    workers: int | None = option(
        None,
        "workers of --executor ray (default: one per GPU, else one per CPU)",
        metavar="N",
        parse=whole_number,
        check=_between(1, MAX_WORKERS, "workers", "workers"),
    )
    ray_address: str | None = option(
        None,
        "running cluster of --executor ray, like ray://head:10001 or auto (default: a local one is started)",
        metavar="ADDRESS",
    )


@dataclass(frozen=True, kw_only=True)
class SweepOptions(
    Items,
    ItemSampling,
    Rows,
    Prompts,
    Prefix,
    Generation,
    TokenSampling,
    Reference,
    Loading,
    Splitting,
    Execution,
    Screening,
    StopEarly,
    Workers,
):
    """What a sweep was asked to do, apart from the model; see `lensprune.sweep` for the meaning of each."""

    tasks: tuple[str, ...]
    protocols: tuple[str, ...]
    variants: VariantSelection | tuple[Variant, ...]
    backend: str | None = None
    command: str = ""

    @classmethod
    def given(
        cls,
        tasks: Sequence[str] | str,
        protocols: Sequence[str] | str,
        variants: VariantsLike | VariantSelection,
        **values: Any,
    ) -> SweepOptions:
        """From the arguments of a public function: a single name stands for itself, a word for what to sweep over, and
        variants are what `as_variants` reads."""
        executor, workers, address = (values.pop(name, None) for name in ("executor", "workers", "ray_address"))
        if isinstance(variants, str) and (variants in over_words() or "." not in variants):
            variants = VariantSelection(over=variants)
        until = values.pop("until", None)
        return cls(
            until=() if until is None else (until,) if isinstance(until, str) else tuple(until),
            tasks=(tasks,) if isinstance(tasks, str) else tuple(tasks),
            protocols=(protocols,) if isinstance(protocols, str) else tuple(protocols),
            variants=variants if isinstance(variants, VariantSelection) else as_variants(variants),
            **values,
            **executor_options(executor or "forked", workers, address),
        )

    def __post_init__(self) -> None:
        for what, given in (("task", self.tasks), ("protocol", self.protocols)):
            if not given:
                raise UserError(f"no {what} is given: name at least one")
            twice = next((name for name in given if given.count(name) > 1), None)
            if twice is not None:
                raise UserError(f"{what} {twice!r} is given twice")
        for protocol in self.protocols:
            protocol_named(protocol)
        super().__post_init__()
        if self.backend is not None and self.backend not in BACKENDS:
            raise unknown_name("backend", self.backend, BACKENDS)
        if self.backend is None and (self.workers is not None or self.ray_address is not None):
            what = "a Ray address" if self.workers is None else "a number of workers"
            raise UserError(f"{what} is given but the sweep runs in one process: choose executor ray")
        self._check_wording()
        if self.screen is not None:
            self._check_screen()
        elif self.screen_rule is not None:
            raise UserError(
                f"screen rule {self.screen_rule} is given, and nothing is screened: give screen too, or leave the rule "
                "out"
            )
        self._check_stopping()

    @property
    def stopping(self) -> Stopping | None:
        """When a variant is asked no further; ``None``: all are asked all items."""
        if self.lost_more_than is None and self.until_width is None:
            return None
        from lensprune.analysis.sequential import Looks
        from lensprune.analysis.stopping import UntilWidth

        if self.lost_more_than is not None:
            limit = self.limit or 0
            even = tuple(sorted({-(-limit * part // _LOOKS) for part in range(1, _LOOKS + 1)}))
            return Looks(even if self.looks is None else _items_at_looks(self.looks), self.lost_more_than, self.q)
        assert self.until_width is not None
        return UntilWidth.up_to(self.limit or 0, self.until_width)

    def _check_stopping(self) -> None:
        if self.lost_more_than is None:
            if self.looks is not None:
                raise UserError(
                    f"looks {self.looks} are given without a loss to look for: give lost_more_than, like 0.05"
                )
            if self.q != _LEVEL:
                raise UserError(f"q {self.q:g} is given without a loss to look for: give lost_more_than, like 0.05")
        if self.lost_more_than is None and self.until_width is None:
            return
        if self.lost_more_than is not None and self.until_width is not None:
            raise UserError("lost_more_than and until_width are two ways to stop: choose one")
        if self.backend is not None:
            raise UserError("a sweep that stops early runs in one process: leave executor ray out")
        if self.samples is not None and self.samples > 1:
            raise UserError(
                f"a sweep that stops early counts items as right or wrong, and {self.samples} samples of one can be in "
                "between: leave samples out"
            )
        if ItemChoice.parse(self.items).order != DRAWN:
            raise UserError(
                f"items {self.items} are given, and a sweep that stops early asks items in the order of a draw: leave "
                "items out, or choose drawn, which may have an offset"
            )
        if self.limit is None and self.looks is None:
            raise UserError("a sweep that stops early needs a cap: give limit, the most items that a variant is asked")
        stopping = self.stopping
        assert stopping is not None
        if self.limit is not None and self.limit != stopping.items[-1]:
            raise UserError(
                f"limit {self.limit} is not the last of the looks {self.looks}: leave the limit out, or make it "
                f"{stopping.items[-1]}"
            )

    def _check_wording(self) -> None:
        asked = {
            f"template date {self.template_date}": self.template_date is not None,
            "a template argument": bool(self.template_args),
            f"thinking {self.thinking}": self.thinking != "auto",
            "fewshot_as_multiturn": self.fewshot_as_multiturn,
        }
        for what, given in asked.items():
            if given and not self.chat_template:
                raise UserError(
                    f"{what} is given, and no prompt is in the chat format: choose the chat template too, or leave it "
                    "out"
                )
        if self.thinking_budget is not None and self.thinking == "off":
            raise UserError("a thinking budget is given, and thinking is off: leave one of them out")
        if self.thinking_prefix is None:
            return
        if self.thinking_budget is None:
            raise UserError("a thinking prefix is given without a thinking budget: say how many tokens it may have")
        if self.backend is not None:
            raise UserError("a thinking prefix is generated in one process: leave executor ray out, or the prefix")
        sampled = {"temperature": self.temperature or 0, "samples": 0 if self.samples in (None, 1) else self.samples}
        for what, value in sampled.items():
            if value:
                raise UserError(
                    f"{what} {value:g} is given with a thinking prefix, which is one greedy text of each item: leave "
                    "one of them out"
                )

    def _check_screen(self) -> None:
        if self.backend is not None:
            raise UserError("a screened sweep runs in one process: leave executor ray out, or screen")
        chosen = self.variants
        if isinstance(chosen, VariantSelection):
            for part in parts_over(chosen.over):
                check_ranked(part)
        searched = next((kind for kind in kinds_of(chosen) if not ablation_kind(kind).can_be_estimated), None)
        if searched is not None:
            others = [n for n, kind in ablation_kinds().items() if kind.can_be_estimated and not kind.branches_only]
            raise UserError(
                f"screen saves nothing with ablation {searched}, whose constants are searched for head by head: use "
                f"{in_words(others)}"
            )


def check_ranked(part: Part) -> None:
    """Raise `UserError` unless estimates were seen to rank such parts (docs/explanation/estimates.md)."""
    if part.slot is not Slot.HEADS:
        raise UserError(
            f"screen can't rank {part.over}: no gradient rule finds nine in ten of those that matter by measuring a "
            f"third; use over {in_words(head_words())}, or leave screen out"
        )


def kinds_of(chosen: VariantSelection | Sequence[Variant]) -> list[str]:
    """The kinds of ablation among variants."""
    if isinstance(chosen, VariantSelection):
        return [chosen.kind]
    return sorted({ablation.kind for variant in chosen for ablation in variant.ablations})


def help_of(declared: Field[Any]) -> str:
    """What an option means, as the command line says it."""
    text = declared.metadata["help"]
    return str(text() if callable(text) else text)


def flag_of(declared: Field[Any]) -> str:
    """An option on the command line."""
    return str(declared.metadata["flag"] or f"--{declared.name.replace('_', '-')}")


def add_options(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, *groups: type[Group], **defaults: Any
) -> None:
    """Add an argument for every field of `groups`; `defaults` replaces the default of some for this command.

    A field that two groups declare is added once, as the last one has it.
    """
    declared = {declaration.name: declaration for group in groups for declaration in fields(group)}
    for name, declaration in declared.items():
        default = defaults.get(name, declaration.default)
        # argparse fills in what follows a percent sign.
        text = help_of(declaration).replace("%", "%%")
        if isinstance(default, (int, float, str)) and not isinstance(default, bool) and "(default" not in text:
            text = f"{text} (default: {default})"
        elif name in defaults:
            text = f"{text.partition(' (default')[0]} (default: {default})"
        flag, metavar, action = flag_of(declaration), declaration.metadata["metavar"], declaration.metadata["action"]
        more: dict[str, Any] = {"default": default}
        if declaration.metadata["repeated"]:
            more = {"action": "append", "default": None}
        elif action is not None:
            more["action"] = action
        elif isinstance(metavar, tuple):
            more["nargs"] = len(metavar)
        if metavar is None:
            parser.add_argument(flag, action="store_true", default=default, help=text)
        else:
            parser.add_argument(flag, dest=name, type=declaration.metadata["parse"], metavar=metavar, help=text, **more)


def option_values(given: Any, *groups: type[Group]) -> dict[str, Any]:
    """Values of the options of `groups` among `given`: parsed arguments, a function's ``locals()`` or other options."""
    values = given if isinstance(given, Mapping) else vars(given)
    names = {declaration.name for group in groups for declaration in fields(group)}
    return {name: value for name, value in values.items() if name in names}


def given_options(options: Any, *groups: type[Group]) -> dict[str, Any]:
    """Those of `option_values` that are not the default."""
    defaults = {declaration.name: declaration.default for group in groups for declaration in fields(group)}
    values = option_values(options, *groups)
    return {name: value for name, value in values.items() if value not in (None, defaults[name])}


def executor_options(executor: str, workers: int | None = None, ray_address: str | None = None) -> dict[str, Any]:
    """Fields of `SweepOptions` for an executor as it is asked for: ``forked``, ``hooked``, ``ray`` or ``ray:hooked``.

    ``ray`` says how cells are spread, and what is behind the colon which executor each worker runs, because only that
    belongs to the numbers.
    """
    backend, _, of_worker = executor.partition(":")
    if backend in BACKENDS:
        return {"executor": of_worker or "forked", "backend": backend, "workers": workers, "ray_address": ray_address}
    return {"executor": executor, "backend": None, "workers": workers, "ray_address": ray_address}
