"""`primitives`: score worked solutions without each part, patch the parts that matter, and assign roles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from lensprune.ablation.collect import collect_reference
from lensprune.ablation.enumeration import each_head, each_layer, each_mlp
from lensprune.ablation.kinds import MeanMode
from lensprune.ablation.reference import ReferenceActivations
from lensprune.ablation.variants import Variant
from lensprune.attribution.sites import PatchTarget
from lensprune.errors import UserError
from lensprune.models.adapt import as_hooked_model
from lensprune.models.base import AnyModel, HookedModel
from lensprune.models.tokenizers import encode
from lensprune.primitives.causal import causal_table
from lensprune.primitives.chains import Chain, ChainOptions, Wording, draw_chains
from lensprune.primitives.classes import CLASSES, MarkedSolution, tokenize_solution
from lensprune.primitives.effects import MIN_SOLUTIONS, TokenLosses, class_effects, token_losses
from lensprune.primitives.patches import MIN_PROBES, PatchEffects, measure_patches
from lensprune.primitives.probes import TESTS, Probe, make_probes
from lensprune.primitives.result import Primitives
from lensprune.primitives.stages import Stages
from lensprune.primitives.survival import place_index, same_answer, stable_chains, stable_pairs, survival_table
from lensprune.primitives.verdicts import MIN_KNOWN, ROLES, Thresholds, role_evidence, verdict_table
from lensprune.tasks import load_task
from lensprune.tasks.base import GenerationFormat
from lensprune.tasks.prompts import build_context, format_of
from lensprune.terminal import progress_bar

__all__ = ["default_texts", "marked_chains", "primitives", "reference_for", "task_texts", "text_rows"]

_REFERENCE = 16
_TOGETHER = 32
"""Variants, or places, whose results are kept together."""
_LONGEST_TEXT = 128
OTHER_WORDING = Wording(ask=" = ?", end=";", conclusion=" In total,", between="\n")
"""Chains in which roles that were found in the default wording are tested again."""


def primitives(
    model: AnyModel,
    *,
    operands: int = 3,
    largest: int = 9,
    subtract: bool = True,
    limit: int = 24,
    shots: int = 4,
    layers: Sequence[int] | None = None,
    ablation: str = "zero",
    texts: Sequence[str | tuple[str, str]] | None = None,
    wording: Wording | None = None,
    thresholds: Thresholds | None = None,
    seed: int = 0,
    keep: Path | None = None,
    progress: bool = False,
) -> Primitives:
    """Find the roles of heads and MLPs in chains of sums: carry an operand or operator, route to a position, compute or
    move a result, format the answer, or keep text coherent.

    Each part is removed while worked solutions and general text are scored, teacher-forced (`class_effects`). Parts
    whose removal costs `thresholds.effect` nats on some token class are patched with runs that differ in one respect
    (`causal_tests`). A role requires both, by `Thresholds`; a part may have several.

    Parts that are redundant with others, and roles in other kinds of text, are not detected.

    Args:
        operands, largest, subtract: define the chains, as for the task ``arithmetic``; `largest` of at most 9, so that
            every number is one digit.
        limit: number of chains for the effects, and again for the causal tests.
        shots: worked chains before each chain.
        layers: only heads and MLPs of these layers.
        ablation: ``zero``, or ``mean`` over other chains with their solutions.
        texts: general text, one per unit: a string (its first 128 tokens are scored) or (prompt, text), of which only
            the text is scored, as returned by `task_texts`; ``None``: the bundled facts and the questions of the
            bundled word problems.
        wording: how chains are written.
        seed: of chains, pairs, shuffles and bootstraps.
        keep: a folder for what was measured, so that a stopped call continues when it is repeated.
        progress: show a bar.

    Raises:
        UserError: an option out of range, or prompts longer than the model's context.
    """
    hooked = as_hooked_model(model)
    bounds, words = thresholds or Thresholds(), wording or Wording()
    if limit < MIN_SOLUTIONS:
        raise UserError(f"limit {limit} is too few for an interval: expected {MIN_SOLUTIONS} or more")
    if ablation not in ("zero", "mean"):
        raise UserError(f"primitives does not support ablation {ablation!r}: choose zero or mean")
    chain_options = ChainOptions(operands, largest, subtract, limit, shots, words, seed)
    rows = text_rows(hooked, default_texts(max(limit, 12)) if texts is None else texts)
    variants = [
        *each_head(hooked.facts, ablation, layers),
        *each_mlp(hooked.facts, ablation, layers),
        *each_layer(hooked.facts, "skip", layers),
    ]
    kept = Stages(keep, hooked.facts)
    reference = reference_for(hooked, chain_options, variants)
    solutions = marked_chains(hooked, chain_options.chains(), words, chain_options.examples())
    losses = _losses(hooked, solutions, variants, reference, (kept, "solutions", chain_options), progress)
    text = _losses(hooked, rows, variants, reference, (kept, "text", chain_options), progress)
    effects = class_effects(losses, text, variants, seed=seed)
    probes, missed = _probes(hooked, chain_options)
    places = _places(effects, bounds)
    patched = _patches(hooked, probes, places, seed, kept, progress)
    causal = causal_table(probes, places, patched, seed)
    evidence = role_evidence(effects, causal, bounds)
    shuffled = class_effects(_shuffled(losses, seed), text, variants, seed=seed)
    controls = {
        "shuffled": role_evidence(shuffled, causal, bounds),
        "placebo": role_evidence(effects, causal, bounds, placebo=True),
    }
    named = evidence[evidence["named"]]
    own = sorted({_variant_index(variants, row) for row in named.to_dict("records")})
    transferred: dict[str, pd.DataFrame] = {}
    for name, others in _other_chains(chain_options).items() if own else ():
        try:
            tried = marked_chains(hooked, others.chains(), others.wording, others.examples())
            of_others, _ = _probes(hooked, others, fewer=True)
        except UserError:
            # The prompts are too long, or there are no two chains: not testable.
            continue
        some = [variants[i] for i in own]
        again = class_effects(
            _losses(hooked, tried, some, reference, (kept, "solutions", others), progress),
            text.among(own), some, seed=seed,
        )  # fmt: skip
        where = sorted({places[place_index(places, row)] for row in named.to_dict("records")})
        moved = _patches(hooked, of_others, where, seed, kept, progress)
        transferred[name] = role_evidence(again, causal_table(of_others, where, moved, seed), bounds)
    return Primitives(
        model=hooked.facts.name,
        effects=effects,
        causal=causal,
        evidence=evidence,
        verdicts=verdict_table(effects, evidence, bounds),
        controls=_controls(evidence, controls["shuffled"], controls["placebo"]),
        survival=survival_table(
            named,
            controls,
            transferred,
            _of_named(
                named, _Removed(variants, solutions, losses, text), _Patched(probes, places, patched), bounds, seed
            ),
            bounds,
        ),
        thresholds=bounds,
        chain_options=chain_options,
        ablation=ablation,
        notes=tuple(_notes(effects, causal, missed)),
    )


def _probes(model: HookedModel, options: ChainOptions, *, fewer: bool = False) -> tuple[list[Probe], dict[str, int]]:
    chains = draw_chains(
        options.limit,
        options.operands,
        options.largest,
        options.subtract,
        options.seed,
        distinct=True,
        fewer=fewer,
    )
    return make_probes(model, chains, options.wording, options.examples(), options.seed)


def _other_chains(options: ChainOptions) -> dict[str, ChainOptions]:
    """Chains of another wording, unless the wording is the caller's own, and of another range."""
    others = {"other_range": replace(options, largest=7 if options.largest > 7 else 9)}
    if options.wording == Wording():
        others["other_wording"] = replace(options, wording=OTHER_WORDING)
    return others


def _variant_index(variants: Sequence[Variant], row: Mapping[Any, Any]) -> int:
    """The variant that removes a row's part."""
    part = (row["component"], int(row["layer"]), None if pd.isna(row["head"]) else int(row["head"]))
    return next(i for i, v in enumerate(variants) if (v.component, v.layer, v.head) == part)


@dataclass(frozen=True)
class _Removed:
    """What solutions and general text lose without the part of each variant."""

    variants: Sequence[Variant]
    solutions: Sequence[MarkedSolution]
    losses: TokenLosses
    text: TokenLosses


@dataclass(frozen=True)
class _Patched:
    """What patching each place moves in each probe."""

    probes: Sequence[Probe]
    places: Sequence[PatchTarget]
    effects: PatchEffects


def _of_named(
    named: pd.DataFrame, removed: _Removed, patched: _Patched, bounds: Thresholds, seed: int
) -> dict[str, list[float]]:
    """`same_answer` and the stability of each named role, for `survival_table`."""
    tokens = np.array([token for solution in removed.solutions for token in solution.solution_ids])
    columns: dict[str, list[float]] = {
        name: [] for name in ("same_answer", "same_answer_p", "stable_chains", "stable_pairs")
    }
    for row in named.to_dict("records"):
        variant, place = _variant_index(removed.variants, row), place_index(patched.places, row)
        losses, text = removed.losses.among([variant]), removed.text.among([variant])
        contrast, p = same_answer(losses, tokens, row["class"], tests=len(named), seed=seed)
        columns["same_answer"].append(float(contrast[0]))
        columns["same_answer_p"].append(float(p[0]))
        columns["stable_chains"].append(float(stable_chains(losses, text, row["class"], bounds.effect, seed)[0]))
        by_place = stable_pairs(patched.probes, patched.effects, row["test"], bounds.share, seed)
        columns["stable_pairs"].append(float(by_place[place]))
    return columns


def _losses(
    model: HookedModel,
    rows: Sequence[MarkedSolution],
    variants: Sequence[Variant],
    reference: ReferenceActivations | None,
    stage: tuple[Stages, str, ChainOptions],
    progress: bool,
) -> TokenLosses:
    """`token_losses`, kept some variants at a time. The chains determine the reference."""
    kept, name, chain_options = stage
    done: list[TokenLosses] = []
    with progress_bar(
        shown=progress, total=len(variants) * len(rows), unit="text", description=f"parts removed from {name}"
    ) as bar:
        for start in range(0, len(variants), _TOGETHER):
            some = variants[start : start + _TOGETHER]

            def measured(some: Sequence[Variant] = some) -> Mapping[str, np.ndarray]:
                return vars(token_losses(model, rows, some, reference, progress=bar.update))

            before = bar.n
            arrays = kept.get(name, (rows, [variant.name for variant in some], chain_options), measured)
            done.append(TokenLosses(**arrays))
            bar.update(len(some) * len(rows) - (bar.n - before))
    return replace(done[0], loss=np.concatenate([one.loss for one in done], axis=1))


def _patches(
    model: HookedModel,
    probes: Sequence[Probe],
    places: Sequence[PatchTarget],
    seed: int,
    kept: Stages,
    progress: bool,
) -> PatchEffects:
    """`measure_patches`, kept some places at a time."""
    done: list[PatchEffects] = []
    with progress_bar(shown=progress, total=len(places), unit="part", description="parts patched") as bar:
        for start in range(0, max(1, len(places)), _TOGETHER):
            some = places[start : start + _TOGETHER]

            def measured(some: Sequence[PatchTarget] = some) -> Mapping[str, np.ndarray]:
                return vars(measure_patches(model, probes, some, seed))

            done.append(PatchEffects(**kept.get("patches", (probes, some, seed), measured)))
            bar.update(len(some))
    both = ("effect", "placebo")
    return replace(done[0], **{name: np.concatenate([getattr(one, name) for one in done], axis=1) for name in both})


def marked_chains(
    model: HookedModel, chains: Sequence[Chain], wording: Wording, front: str = ""
) -> list[MarkedSolution]:
    """The chains with their worked solutions, with a class per token, after the examples `front`."""
    return [
        tokenize_solution(model, front + chain.question(wording), chain.question(wording), chain.solution(wording))
        for chain in chains
    ]


def default_texts(limit: int) -> list[str]:
    """Sentences of the bundled facts, and questions of the bundled word problems: short texts, no worked steps."""
    facts = load_task("facts", limit=limit, shots=0).items
    problems = load_task("word_problems", limit=limit, shots=0).items
    return [str(item.doc["fact1"]) for item in facts] + [str(item.doc["question"]) for item in problems]


def task_texts(task: str, *, limit: int = 24, shots: int | None = None, seed: int = 0) -> list[tuple[str, str]]:
    """Another task's ``generate`` prompts with their right answers; only the answers are scored.

    Raises:
        UserError: an unknown task, or one without ``generate``.
    """
    loaded = load_task(task, limit=limit, shots=shots, seed=seed)
    form = format_of(loaded.task, "generate")
    if not isinstance(form, GenerationFormat):
        raise UserError(f"task {task!r} is not answered by generation, so it has no answers to score")
    return [(build_context(form, item), form.target_delimiter + form.target(item.doc)) for item in loaded.items]


def text_rows(model: HookedModel, texts: Sequence[str | tuple[str, str]]) -> list[MarkedSolution]:
    """Texts to score from their second token on; for (prompt, text), only the text.

    Raises:
        UserError: too few texts with a token to score, or a text longer than the model's context.
    """
    usable = []
    for text in texts:
        if isinstance(text, str):
            ids = encode(model, text)[: min(_LONGEST_TEXT, model.facts.n_ctx)]
            front = 1
        else:
            ids = encode(model, "".join(text))
            front = len(encode(model, text[0]))
            if len(ids) > model.facts.n_ctx:
                raise UserError(f"a text has {len(ids)} tokens, but the context is {model.facts.n_ctx}")
        if 0 < front < len(ids):
            usable.append(MarkedSolution(tuple(ids[:front]), tuple(ids[front:]), ("text",) * (len(ids) - front)))
    if len(usable) < MIN_SOLUTIONS:
        raise UserError(
            f"{len(usable)} general texts have at least two tokens, expected {MIN_SOLUTIONS} or more such texts"
        )
    return usable


def reference_for(
    model: HookedModel, chain_options: ChainOptions, variants: Sequence[Variant], mode: MeanMode = "pooled"
) -> ReferenceActivations | None:
    """Reference activations on separate chains that are never measured; ``None`` if no variant needs them."""
    needy = [variant for variant in variants if variant.needs_reference]
    if not needy:
        return None
    others = marked_chains(model, chain_options.shown(_REFERENCE), chain_options.wording, chain_options.examples())
    return collect_reference(
        model, [solution.context_ids + solution.solution_ids for solution in others], needy, mode=mode
    )


def _shuffled(losses: TokenLosses, seed: int) -> TokenLosses:
    """The classes of each solution's predicted tokens in random order: a negative control."""
    generator = np.random.default_rng(seed + 1)
    kinds = losses.kind.copy()
    for unit in np.unique(losses.unit):
        places = np.flatnonzero((losses.unit == unit) & losses.predicted)
        kinds[places] = generator.permutation(kinds[places])
    return replace(losses, kind=kinds)


def _places(effects: pd.DataFrame, thresholds: Thresholds) -> list[PatchTarget]:
    """Heads and MLPs whose removal costs enough on some class."""
    rows = effects[effects["component"].isin(("head", "mlp")) & (effects["class"] != "text")]
    strong = rows[rows["effect"] >= thresholds.effect].drop_duplicates("variant")
    targets = []
    for row in strong.to_dict("records"):
        head = None if pd.isna(row["head"]) else int(row["head"])
        targets.append(PatchTarget(cast(Any, row["component"]), int(row["layer"]), head, -1))
    return sorted(targets, key=lambda place: (place.layer, place.site, place.head))


def _controls(evidence: pd.DataFrame, shuffled: pd.DataFrame, placebo: pd.DataFrame) -> pd.DataFrame:
    def count(table: pd.DataFrame, role: str) -> int:
        named = table[table["named"] & (table["role"] == role)]
        return len(named.drop_duplicates(["component", "layer", "head"]))

    rows = [(role, count(evidence, role), count(shuffled, role), count(placebo, role)) for role in ROLES]
    return pd.DataFrame(rows, columns=["role", "named", "named_with_shuffled_classes", "named_by_placebo"])


def _notes(effects: pd.DataFrame, causal: pd.DataFrame, missed: dict[str, int]) -> list[str]:
    notes = []
    for kind in CLASSES:
        seen = effects[effects["class"] == kind].iloc[0]
        if seen["n_solutions"] < MIN_SOLUTIONS:
            notes.append(f"class {kind}: predicted in {seen['n_solutions']} solutions, not resolvable")
    known = float(effects.loc[effects["class"] == "text", "predicted"].iloc[0])
    if known < MIN_KNOWN:
        notes.append(
            f"general text: the model predicts only {known:.1%} of its tokens, so coherence is not assessed, and "
            "specificity is measured against unfamiliar text"
        )
    if causal.empty:
        notes.append("no head or MLP reaches the effect threshold on any class, so none was patched")
    for test in TESTS:
        tried = causal[causal["test"] == test]
        if len(tried) and tried["n"].iloc[0] < MIN_PROBES:
            counts = f"{tried['n'].iloc[0]} of {tried['n_asked'].iloc[0]} probes answered correctly"
            without = f", {missed[test]} more could not be made" if missed[test] else ""
            notes.append(f"test {test}: {counts}{without}, not resolvable")
    return notes
