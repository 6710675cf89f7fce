"""What patching each part does to the next token of each probe."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int

from lensprune.ablation.variants import CLEAN
from lensprune.attribution.runs import Edit, capture, edit_hook, last_logits, run_from
from lensprune.attribution.sites import PatchTarget, hook_of
from lensprune.engine.edits import LayerEdits, RowReader, RowValues
from lensprune.engine.fork import fork_edits, fork_variants, run_edited
from lensprune.engine.layers import LayerStack, UnsupportedByFastPath
from lensprune.engine.marks import joined
from lensprune.engine.probe import checked_stack
from lensprune.engine.registry import executor_info
from lensprune.engine.rope import LongRopeBuckets
from lensprune.engine.tree import PrefixTree, build_tree, common_prefix
from lensprune.models.base import HookedModel
from lensprune.primitives.probes import Probe

__all__ = ["MIN_PROBES", "PatchEffects", "measure_patches"]

MIN_PROBES = 6
"""Fewest chains of a test that are resolvable."""
_ROWS = 64
_PAIRS = 16
_TREE_TOKENS = 2048
"""Tokens of probes, beyond what they share, that run together."""

Progress = Callable[[int], object]


@dataclass(frozen=True)
class PatchEffects:
    """`counts`: whether the model shows the tested behaviour; `whole`: the change that would make `new` as likely as
    the right answer; `effect`, `placebo`: change of the metric, and of the placebo's; NaN where a probe doesn't count,
    or its test counts in fewer than `MIN_PROBES` chains. Logits."""

    counts: Bool[np.ndarray, " probe"]
    whole: Float[np.ndarray, " probe"]
    effect: Float[np.ndarray, "probe place"]
    placebo: Float[np.ndarray, "probe place"]


def measure_patches(
    model: HookedModel,
    probes: Sequence[Probe],
    places: Sequence[PatchTarget],
    seed: int = 0,
    *,
    executor: str = "forked",
    progress: Progress | None = None,
) -> PatchEffects:
    """Patch each part in every probe that counts; see `lensprune.primitives.causal.causal_tests` for the metrics.

    Args:
        executor: ``forked`` computes tokens that probes share once, and of a patched run only what follows the first
            changed token and layer; ``hooked``, which models take that ``forked`` can't run, computes whole rows.
        progress: called with the number of places done.
    """
    stack = None
    if executor_info(executor).shares_work:
        try:
            stack = checked_stack(model)
        except UnsupportedByFastPath as reason:
            warnings.warn(f"patches of this model take the hooked path: {reason}", stacklevel=2)
    scores = _Scores(probes, seed)
    runs = _Hooked(model) if stack is None else _Forked(model, stack)
    counts, whole = np.zeros(len(probes), bool), np.full(len(probes), np.nan)
    effect, placebo = (np.full((len(probes), len(places)), np.nan) for _ in range(2))
    before = np.full((len(probes), 2), np.nan)
    for chosen, clean, donor in runs.logits(probes):
        counts[chosen] = scores.counts(chosen, clean, donor)
        whole[chosen] = scores.wholes(chosen, clean, donor)
        before[chosen] = np.stack([scores.metric(chosen, clean), scores.placebo(chosen, clean)], axis=1)
    used = np.flatnonzero(counts & _often_enough(probes, counts)).tolist() if places else []
    for place, chosen, logits in runs.patched(probes, used, places):
        effect[chosen, place] = scores.metric(chosen, logits) - before[chosen, 0]
        placebo[chosen, place] = scores.placebo(chosen, logits) - before[chosen, 1]
        if progress is not None:
            progress(len(chosen))
    return PatchEffects(counts, whole, effect, placebo)


def _often_enough(probes: Sequence[Probe], counts: Bool[np.ndarray, " probe"]) -> Bool[np.ndarray, " probe"]:
    """Whether each probe's test counts in `MIN_PROBES` chains."""
    units = defaultdict(set)
    for probe, counted in zip(probes, counts, strict=True):
        if counted:
            units[probe.test].add(probe.unit)
    return np.array([len(units[probe.test]) >= MIN_PROBES for probe in probes], bool)


class _Scores:
    """Metrics of the last logits, for the probes of given indices."""

    def __init__(self, probes: Sequence[Probe], seed: int) -> None:
        self._probes = probes
        self._pairs = [_two(probe.others, np.random.default_rng([seed, i])) for i, probe in enumerate(probes)]

    def metric(self, chosen: Sequence[int], logits: Float[torch.Tensor, "probe d_vocab"]) -> np.ndarray:
        """Logit of `new` minus that of `old`, or minus the mean of `others` if the prompts don't correspond."""
        return np.array(
            [
                float(row[p.new].double() - (row[[p.old]] if p.everywhere else row[list(p.others)]).double().mean())
                for p, row in zip((self._probes[i] for i in chosen), logits.cpu(), strict=True)
            ]
        )

    def placebo(self, chosen: Sequence[int], logits: Float[torch.Tensor, "probe d_vocab"]) -> np.ndarray:
        """Logit difference of two random tokens of `others`; NaN with fewer than two."""
        rows = zip(logits.cpu(), (self._pairs[i] for i in chosen), strict=True)
        return np.array([float(row[two[0]].double() - row[two[1]].double()) if two else np.nan for row, two in rows])

    def wholes(self, chosen: Sequence[int], clean: torch.Tensor, donor: torch.Tensor) -> np.ndarray:
        """The change that would make `new` as likely as the right answer."""
        apart = self.metric(chosen, donor) - self.metric(chosen, clean)
        probes = [self._probes[i] for i in chosen]
        last = [float(row[p.old].double() - row[p.new].double()) for p, row in zip(probes, clean.cpu(), strict=True)]
        return np.where([p.everywhere for p in probes], apart, last)

    def counts(self, chosen: Sequence[int], clean: torch.Tensor, donor: torch.Tensor) -> np.ndarray:
        """Whether the model shows the tested behaviour: `old` in the clean run and, if prompts correspond, `new` in the
        donor run."""
        best = zip((self._probes[i] for i in chosen), clean.argmax(-1).tolist(), donor.argmax(-1).tolist(), strict=True)
        return np.array([c == p.old and (d == p.new or not p.everywhere) for p, c, d in best])


def _two(others: Sequence[int], generator: np.random.Generator) -> tuple[int, int] | None:
    if len(others) < 2:
        return None
    first, second = generator.permutation(len(others))[:2]
    return others[int(first)], others[int(second)]


Logits = Float[torch.Tensor, "probe d_vocab"]


class _Forked:
    """Runs on prefix trees: what probes share is computed once, and the clean run up to a patched layer, too."""

    def __init__(self, model: HookedModel, stack: LayerStack) -> None:
        self._facts, self._stack = model.facts, stack
        self._bucket = LongRopeBuckets(model).of_length

    def logits(self, probes: Sequence[Probe]) -> Iterator[tuple[list[int], Logits, Logits]]:
        """Indices of probes that run together, and the last logits of their clean and donor runs."""
        for chosen in self._chunks(probes, range(len(probes))):
            texts = [probes[i].clean for i in chosen] + [probes[i].donor for i in chosen]
            tree = build_tree(texts)
            wanted, order = _last(tree, texts, self._facts.device)
            with torch.inference_mode():
                [(_, hidden)] = fork_variants(self._stack, self._facts, tree, wanted, [CLEAN], None)
                clean, donor = self._stack.logits(hidden)[order].split(len(chosen))
            yield chosen, clean, donor

    def patched(
        self, probes: Sequence[Probe], used: Sequence[int], places: Sequence[PatchTarget]
    ) -> Iterator[tuple[int, list[int], Logits]]:
        """Index of a place, indices of probes, and their last logits with the place patched."""
        facts, stack, device = self._facts, self._stack, self._facts.device
        for chosen in self._chunks(probes, used):
            sizes = [_changed(probes[i]) for i in chosen]
            donors = [probes[i].donor for i in chosen]
            donor_tree = build_tree(donors)
            donor_rows = _rows(donor_tree, donors, sizes, device)
            # A patched token is no part of another probe's text: a number of its own keeps them apart.
            cleans = [
                joined(probes[i].clean, [0] * (len(probes[i].clean) - size) + [i + 1] * size)
                for i, size in zip(chosen, sizes, strict=True)
            ]
            tree = build_tree(cleans)
            rows = _rows(tree, cleans, sizes, device)
            wanted, order = _last(tree, cleans, device)
            with torch.inference_mode():
                kept = self._kept(donor_tree, donor_rows, {(place.layer, place.site) for place in places})
                edits = []
                for place in places:
                    values = kept[place.layer, place.site]
                    edit = RowValues(rows, values if place.head is None else values[:, place.head], place.head)
                    heads = place.site == "head"
                    edits.append((place.layer, LayerEdits(heads=[edit]) if heads else LayerEdits(mlp=[edit])))
                for i, hidden in fork_edits(stack, facts, tree, wanted, edits):
                    yield i, chosen, stack.logits(hidden)[order]

    def _kept(
        self, tree: PrefixTree, rows: Int[torch.Tensor, " row"], sites: set[tuple[int, str]]
    ) -> dict[Hashable, torch.Tensor]:
        """The activations of `rows` at the sites, by layer and site."""
        kept: dict[Hashable, torch.Tensor] = {}
        layers: dict[int, LayerEdits] = defaultdict(LayerEdits)
        for layer, site in sorted(sites):
            (layers[layer].heads if site == "head" else layers[layer].mlp).append(RowReader(rows, (layer, site), kept))
        run_edited(self._stack, self._facts, tree, rows.unique(), dict(layers))
        return kept

    def _chunks(self, probes: Sequence[Probe], used: Sequence[int]) -> Iterator[list[int]]:
        """Probes that run together: neighbours in the order of their texts, of one rope bucket."""
        buckets = {i: self._bucket(max(len(probes[i].clean), len(probes[i].donor))) for i in used}
        chunk: list[int] = []
        size = 0
        for i in sorted(used, key=lambda i: (buckets[i], probes[i].clean)):
            extra = _changed(probes[i])
            if chunk and (size + extra > _TREE_TOKENS or buckets[i] != buckets[chunk[0]]):
                yield chunk
                chunk, size = [], 0
            chunk.append(i)
            size += extra
        if chunk:
            yield chunk


def _changed(probe: Probe) -> int:
    """How many of a probe's last tokens are patched: from the first that differs on, or the last alone."""
    return len(probe.clean) - common_prefix(probe.clean, probe.donor) if probe.everywhere else 1


def _rows(
    tree: PrefixTree, texts: Sequence[tuple[int, ...]], sizes: Sequence[int], device: str
) -> Int[torch.Tensor, " row"]:
    """Flat indices of the last tokens of each text, as many as `sizes` says."""
    flat = [row for text, size in zip(texts, sizes, strict=True) for row in tree.flat_positions(text, size)]
    return torch.tensor(flat, device=device)


def _last(
    tree: PrefixTree, texts: Sequence[tuple[int, ...]], device: str
) -> tuple[Int[torch.Tensor, " wanted"], Int[torch.Tensor, " text"]]:
    """Flat indices of the texts' last tokens, ascending and distinct, and each text's index into them."""
    wanted, order = _rows(tree, texts, [1] * len(texts), device).unique(return_inverse=True)
    return wanted, order


class _Hooked:
    """Runs of whole rows with hooks: the reference."""

    def __init__(self, model: HookedModel) -> None:
        self._model = model

    def logits(self, probes: Sequence[Probe]) -> Iterator[tuple[list[int], Logits, Logits]]:
        """As `_Forked.logits`."""
        for chosen, clean, donor in self._groups(probes, range(len(probes))):
            yield chosen, last_logits(self._model, clean), last_logits(self._model, donor)

    def patched(
        self, probes: Sequence[Probe], used: Sequence[int], places: Sequence[PatchTarget]
    ) -> Iterator[tuple[int, list[int], Logits]]:
        """As `_Forked.patched`; several parts of a layer share a call."""
        model = self._model
        for chosen, clean, donor in self._groups(probes, used):
            _, donors = capture(model, donor, {hook_of(place.site, place.layer) for place in places})
            _, residuals = capture(model, clean, {hook_of("resid", place.layer) for place in places})
            everywhere = probes[chosen[0]].everywhere
            for place, logits in _patched(model, clean, residuals, donors, places, everywhere=everywhere):
                yield place, chosen, logits

    def _groups(
        self, probes: Sequence[Probe], used: Sequence[int]
    ) -> Iterator[tuple[list[int], Int[torch.Tensor, "probe pos"], Int[torch.Tensor, "probe pos"]]]:
        """Probes of equal shape, and the tokens of their clean and donor runs."""
        groups: dict[tuple[int, int, bool], list[int]] = defaultdict(list)
        for i in used:
            groups[len(probes[i].clean), len(probes[i].donor), probes[i].everywhere].append(i)
        for indices in groups.values():
            for start in range(0, len(indices), _PAIRS):
                chosen = indices[start : start + _PAIRS]
                texts = ([probes[i].clean for i in chosen], [probes[i].donor for i in chosen])
                clean, donor = (torch.tensor(text, device=self._model.facts.device) for text in texts)
                yield chosen, clean, donor


def _patched(
    model: HookedModel,
    clean: Int[torch.Tensor, "probe pos"],
    residuals: Mapping[str, torch.Tensor],
    donors: Mapping[str, torch.Tensor],
    places: Sequence[PatchTarget],
    *,
    everywhere: bool,
) -> Iterator[tuple[int, Float[torch.Tensor, "probe d_vocab"]]]:
    """Last logits with each part patched, with its index in `places`; several parts of a layer share a call."""
    n = len(clean)
    for layer in sorted({place.layer for place in places}):
        of_layer = [i for i, place in enumerate(places) if place.layer == layer]
        each = max(1, _ROWS // n)
        for chunk in (of_layer[start : start + each] for start in range(0, len(of_layer), each)):
            edits = [
                (hook_of(places[j].site, layer), edit_hook(_patch(places[j], block, n, donors, everywhere)))
                for block, j in enumerate(chunk)
            ]
            residual = repeat(
                residuals[hook_of("resid", layer)], "probe pos d -> (place probe) pos d", place=len(chunk)
            )
            tokens = repeat(clean, "probe pos -> (place probe) pos", place=len(chunk))
            with torch.no_grad():
                logits = run_from(model, layer, residual, tokens, edits)
            yield from zip(chunk, rearrange(logits, "(place probe) token -> place probe token", probe=n), strict=True)


def _patch(place: PatchTarget, block: int, n: int, donors: Mapping[str, torch.Tensor], everywhere: bool) -> Edit:
    """Put the donor's activation into the rows `block` × n to (`block` + 1) × n."""
    value = donors[hook_of(place.site, place.layer)]

    def edit(activation: torch.Tensor) -> torch.Tensor:
        changed = activation.clone()
        rows = slice(block * n, (block + 1) * n)
        positions: Any = slice(None) if everywhere else -1
        source: Any = (slice(None), positions)
        where: Any = (rows, positions)
        if place.head is not None:
            where, source = (*where, place.head), (*source, place.head)
        changed[where] = value[source]
        return changed

    return edit
