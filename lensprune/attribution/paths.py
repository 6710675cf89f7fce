"""Path patching: the exact effect of one component on another, and of a chain of components, on the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
import torch
from einops import repeat
from jaxtyping import Bool, Float

from lensprune.attribution.graph import EdgeGraph
from lensprune.attribution.mean_se import MeanSE
from lensprune.attribution.pairs import PairBatch, PromptPair, pair_batches
from lensprune.attribution.patching import activation_patching
from lensprune.attribution.readout import check_read_out, read_out
from lensprune.attribution.runs import edge_inputs, edit_hook, require_split_inputs, run_hooked
from lensprune.attribution.writers import check_additive, replace_edges, writer_hooks, writes_of
from lensprune.engine.base import ProgressCallback
from lensprune.errors import UserError
from lensprune.models.adapt import as_hooked_model
from lensprune.models.base import AnyModel, HookedModel, NamedHook

__all__ = ["direct_and_total_effects", "path_effect", "path_patching"]

_PAIRS = 2


def path_patching(
    model: AnyModel,
    pairs: Sequence[PromptPair],
    receiver: str = "logits",
    senders: Sequence[str] | None = None,
    *,
    rows: int = 16,
    progress: ProgressCallback | None = None,
) -> pd.DataFrame:
    """Patch the direct path from each sender to one receiver: the receiver sees the sender's corrupt output, and all
    else is as in the clean run (Goldowsky-Dill et al. 2023, arXiv 2304.05969; Wang et al. 2022, arXiv 2211.00593).

    Only the direct edge is patched: the sender's write reaches the receiver through the residual stream, not through
    components in between. Everything after the receiver is recomputed, so the effect is exact.

    Args:
        receiver: ``logits``, or a reader such as ``L5.H1.q``, ``L5.KV0.k`` or ``L5.mlp``.
        senders: writers such as ``embed``, ``L2.H0``, ``L2.mlp``; ``None`` takes all that the receiver reads.
        rows: prompts per forward pass; affects only speed and memory.
        progress: called with the number of finished (sender, pair) patches.

    Returns:
        sender, layer, head (NA for embedding and MLPs), receiver, effect: mean over pairs of metric(patched) −
        metric(clean), logits; standard_error of that mean (NaN for one pair); strongest first.

    Raises:
        UserError: an unknown sender or receiver, no edge between them, or an architecture without edges.
        LensPruneError: the residual stream is not the sum of the writes into it, or the logits depend on more than the
            residual stream.
    """
    hooked = as_hooked_model(model)
    graph = EdgeGraph.of(hooked.facts)
    reader = graph.reader(receiver)
    require_split_inputs(hooked, [] if receiver == "logits" else [graph.group_of(reader)])
    if senders is None:
        senders = [graph.writers[w] for w in graph.edges[:, reader].nonzero()[:, 0].tolist()]
    masks = torch.stack([graph.mask([(sender, receiver)]) for sender in senders])
    means = MeanSE(len(senders))
    for batch in pair_batches(pairs, hooked.facts.device, min(_PAIRS, max(1, rows))):
        logits, clean, clean_final = writes_of(hooked, graph, batch.clean)
        _, corrupt, corrupt_final = writes_of(hooked, graph, batch.corrupt)
        check_additive(corrupt - clean, corrupt_final - clean_final)
        base = batch.metric(logits).cpu().double()
        parts: Iterator[tuple[int, torch.Tensor]]
        if receiver == "logits":
            check_read_out(hooked, read_out(hooked, clean_final[:, -1]), logits)
            chosen = [graph.writer(sender) for sender in senders]
            patched = read_out(hooked, clean_final[:, -1] + (corrupt - clean)[chosen, :, -1])
            parts = iter([(0, torch.stack([batch.metric(each) for each in patched]))])
        else:
            parts = _patched_metrics(hooked, graph, batch, masks, corrupt, rows)
        for start, metrics in parts:
            means.add(metrics.cpu().double() - base, start)
            if progress is not None:
                progress(metrics.numel())
    return _effect_table(senders, receiver, means)


def _patched_metrics(
    model: HookedModel,
    graph: EdgeGraph,
    batch: PairBatch,
    masks: Bool[torch.Tensor, "sender writer reader"],
    corrupt: Float[torch.Tensor, "writer pair pos d_model"],
    rows: int,
) -> Iterator[tuple[int, Float[torch.Tensor, "sender pair"]]]:
    """The metrics with one edge patched, a few senders at a time: the first one's index, and [sender, pair]."""
    n = len(batch.clean)
    each = max(1, rows // n)
    for start in range(0, len(masks), each):
        chunk = masks[start : start + each]
        out = replace_edges(
            model,
            graph,
            repeat(batch.clean, "pair pos -> (sender pair) pos", sender=len(chunk)),
            repeat(chunk, "sender writer reader -> (sender pair) writer reader", pair=n),
            repeat(corrupt, "writer pair pos d_model -> writer (sender pair) pos d_model", sender=len(chunk)),
        )
        yield start, torch.stack([batch.metric(part) for part in out.split(n)])


def _effect_table(senders: Sequence[str], receiver: str, means: MeanSE) -> pd.DataFrame:
    effects = {"effect": means.mean, "standard_error": means.standard_error}
    frame = pd.DataFrame({"sender": list(senders), "receiver": receiver, **effects})
    frame.insert(1, "layer", [_place(sender)[0] for sender in senders])
    frame.insert(2, "head", pd.Series([_place(sender)[1] for sender in senders], dtype="Int64"))
    order = frame["effect"].abs().sort_values(ascending=False, kind="stable").index
    return frame.loc[order].reset_index(drop=True)


def _place(name: str) -> tuple[int, int | None]:
    parts = name.split(".")
    if len(parts) == 1:
        return -1, None
    return int(parts[0][1:]), int(parts[1][1:]) if parts[1].startswith("H") else None


def path_effect(model: AnyModel, pairs: Sequence[PromptPair], path: Sequence[str]) -> float:
    """Effect of corrupting one whole path, such as ``["L0.H1", "L1.H2.k", "logits"]``; mean over pairs, logits.

    The first component's corrupt output goes only into the given input of the second; only the resulting change of the
    second's output is passed on, and so on to the end. Every other component keeps its clean output. With grouped-query
    attention, a key or value input belongs to a single query head here: ``L1.H2.k`` is the key input as seen by head 2
    alone.

    Args:
        path: a writer, then inputs ``L1.H2.q`` (``.k``, ``.v``) or ``L1.mlp``, then ``logits``.

    Raises:
        UserError: an invalid path, or a step to a component that does not come later.
        LensPruneError: as `path_patching`.
    """
    hooked = as_hooked_model(model)
    graph = EdgeGraph.of(hooked.facts)
    if len(path) < 2 or path[-1] != "logits":
        raise UserError(f"path {' → '.join(path)} does not lead from a component to 'logits'")
    steps = [_step(graph, target) for target in path[1:-1]]
    require_split_inputs(hooked, [graph.group_of(reader) for reader, _ in steps])
    sender = graph.writer(path[0])
    writer = sender
    for name, (reader, following) in zip(path[1:-1], steps, strict=True):
        if not graph.edges[writer, reader]:
            raise UserError(f"{graph.writers[writer]} → {name} is not an edge: the target does not come later")
        writer = following
    total = 0.0
    for batch in pair_batches(pairs, hooked.facts.device, _PAIRS):
        logits, clean, final = writes_of(hooked, graph, batch.clean)
        _, corrupt, corrupt_final = writes_of(hooked, graph, batch.corrupt)
        check_additive(corrupt - clean, corrupt_final - final)
        change = corrupt[sender] - clean[sender]
        for reader, following in steps:
            change = _through(hooked, graph, batch, reader, following, change) - clean[following]
        check_read_out(hooked, read_out(hooked, final[:, -1]), logits)
        patched = read_out(hooked, final[:, -1] + change[:, -1])
        total += float((batch.metric(patched).cpu().double() - batch.metric(logits).cpu().double()).sum())
    return total / len(pairs)


def _step(graph: EdgeGraph, target: str) -> tuple[int, int]:
    """Reader that a path enters and the writer that it leaves by."""
    name, _, slot = target.rpartition(".")
    if slot == "mlp":
        return graph.reader(target), graph.writer(target)
    writer = graph.writer(name)
    inputs = graph.inputs_of[writer]
    if slot not in ("q", "k", "v") or len(inputs) != 3:
        raise UserError(f"{target!r} is not an input of a head or MLP: write L1.H2.q (or .k, .v) or L1.mlp")
    return inputs["qkv".index(slot)], writer


def _through(
    model: HookedModel, graph: EdgeGraph, batch: PairBatch, reader: int, writer: int, change: torch.Tensor
) -> torch.Tensor:
    """Output of a writer in the clean run when `change` is added to one of its inputs."""
    group = graph.group_of(reader)
    kept: dict[int, torch.Tensor] = {}

    def add(activation: torch.Tensor) -> torch.Tensor:
        changed = activation.clone()
        if group.per_head:
            changed[:, :, reader - group.start] += change
        else:
            changed += change
        return changed

    def put(first: int, value: torch.Tensor) -> None:
        if first <= writer < first + len(value):
            kept[0] = value[writer - first].detach().clone()

    hooks: list[NamedHook] = [(group.hook, edit_hook(add)), *writer_hooks(model, graph, put)]
    with torch.no_grad(), edge_inputs(model):
        run_hooked(model, batch.clean, hooks)
    return kept[0]


def direct_and_total_effects(
    model: AnyModel, pairs: Sequence[PromptPair], *, rows: int = 32, progress: ProgressCallback | None = None
) -> pd.DataFrame:
    """Measure the direct and total effect of corrupting each head.

    Args:
        rows: prompts per forward pass; affects only speed and memory.
        progress: passed to `activation_patching` and `path_patching`.

    Returns:
        layer, head, direct (its edge to the logits, exact), total (activation patching), and self_repair = total −
        direct: the compensation by later components (McGrath et al. 2023, arXiv 2307.15771; positive if the direct
        effect is negative and is compensated). Logits, mean over pairs.
    """
    keys = ["layer", "head"]
    total = activation_patching(model, pairs, ["head"], rows=rows, progress=progress)[[*keys, "effect"]]
    direct = path_patching(model, pairs, "logits", rows=rows, progress=progress)
    direct = direct[direct["head"] >= 0][[*keys, "effect"]].rename(columns={"effect": "direct"})
    frame = direct.merge(total.rename(columns={"effect": "total"}), on=keys, validate="one_to_one")
    frame["self_repair"] = frame["total"] - frame["direct"]
    return frame.sort_values(keys).reset_index(drop=True)
