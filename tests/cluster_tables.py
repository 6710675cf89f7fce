"""Plans of two large sweeps and their times by workers.

``python -m tests.cluster_tables [--write docs/how-to/clusters.md]``.

No weights are read: the models are their configurations (`SHAPES`) with the bundled model's tokenizer, so that texts
have about as many tokens as with their own.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lensprune.models.model_config import load_model_config
from lensprune.output.quantities import duration, quantity
from lensprune.planning import Plan, plan
from lensprune.planning.makespan import GroupTime, makespan, planned_times, recorded_times
from lensprune.sweeps.selection import VariantSelection
from tests.helpers.markdown import write_between

FLOPS, BANDWIDTH = 400e12, 3e12
"""Of one 80 GB GPU: matrix products in bfloat16 as large models reach them, and reading its memory."""
LOAD_SECONDS = {"Llama-3.1-70B": 300.0, "Qwen3-8B": 60.0}
TASKS = ("kv_retrieval[pairs=20]", "facts", "arithmetic")
FREE = "51GB"
"""Four fifths of what 16 GB of weights leave of 80 GB."""
PROTOCOLS = ("default", "continuation", "generate")
LIMIT = 200

SHAPES: dict[str, dict[str, Any]] = {
    # config.json of meta-llama/Llama-3.1-70B; layers, widths and heads also in arXiv 2407.21783, table 3.
    "Llama-3.1-70B": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
    },
    # config.json of deepseek-ai/DeepSeek-R1-Distill-Llama-8B, which has Llama-3.1-8B's shape.
    "DeepSeek-R1-Distill-Llama-8B": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
    },
    # config.json of Qwen/Qwen3-8B; layers and heads also in arXiv 2505.09388, table 1.
    "Qwen3-8B": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
    },
}


def model_folder(place: Path, name: str) -> Path:
    """A folder with a configuration and a tokenizer, and no weights."""
    folder = place / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SHAPES[name]))
    load_model_config("smollm2-135m").tokenizer.save_pretrained(folder)
    return folder


def plan_of(place: Path, name: str, over: str, ablation: str) -> Plan:
    """One worker's plan: matrix products of all cells by one GPU."""
    return plan(
        model_folder(place, name),
        TASKS,
        PROTOCOLS,
        VariantSelection(over, ablation),
        limit=LIMIT,
        shots=2,
        dtype="bfloat16",
        device="cuda",
        flops=FLOPS,
        bandwidth=BANDWIDTH,
    )


def plan_lines(found: Plan) -> list[str]:
    memory, shared = found.memory, found.shared
    return [
        f"- {found.n_variants} variants × {len(found.conditions)} (task, protocol) = {found.n_cells} cells, "
        f"{sum(cell.items for cell in found.conditions) * found.n_variants} records",
        f"- {quantity(found.unshared.tokens)} tokens without sharing, {quantity(shared.tokens)} with it; "
        f"{quantity(shared.flops, 'FLOPs')}",
        f"- memory of one worker: {quantity(memory.total, 'B')}, of which weights {quantity(memory.weights, 'B')}",
        f"- matrix products on one GPU: {duration(found.seconds)}",
    ]


def makespan_table(groups: list[GroupTime], workers: tuple[int, ...], load: float) -> list[str]:
    lines = ["| workers | time | units | efficiency |", "| ---: | ---: | ---: | ---: |"]
    for count in workers:
        found = makespan(groups, count, load)
        lines.append(f"| {count} | {duration(found.seconds)} | {found.units} | {found.efficiency:.0%} |")
    return lines


def tables(recorded: Path | None = None) -> str:
    """Everything between the markers."""
    parts: list[str] = []
    with TemporaryDirectory() as place:
        for name, over, ablation, workers, note in (
            ("Llama-3.1-70B", "layers", "skip", (1, 2, 4), "a worker is two or more 80 GB GPUs (`--n-devices`)"),
            ("Qwen3-8B", "heads", "zero", (1, 8, 16, 32, 64, 256, 1024), "a worker is one GPU"),
        ):
            found = plan_of(Path(place), name, over, ablation)
            parts += [f"### {name}, {over}, {ablation}; {note}", "", *plan_lines(found), ""]
            parts += [*makespan_table(planned_times(found), workers, LOAD_SECONDS[name]), ""]
    if recorded is not None:
        groups = recorded_times(recorded)
        cells = sum(group.cells for group in groups)
        parts += [f"### Recorded: a run of {cells + 1} cells on one CPU core, by simulated workers", ""]
        parts += [*makespan_table(groups, (1, 2, 4, 8, 16, 32, 64, 128, 256), 0.0), ""]
    return "\n".join(parts).rstrip()


def long_texts() -> str:
    """Plans of sweeps over layers that let reasoning models write, by the number of new tokens."""
    lines = ["| model | new tokens | tokens | keys and values of a text | texts at once | memory | time |"]
    lines.append("| --- |" + " ---: |" * 6)
    with TemporaryDirectory() as place:
        for name in ("DeepSeek-R1-Distill-Llama-8B", "Qwen3-8B"):
            found = plan(
                model_folder(Path(place), name),
                "arithmetic",
                "generate",
                "layers",
                limit=100,
                max_new_tokens=4096,
                dtype="bfloat16",
                device="cuda",
                memory=FREE,
                flops=FLOPS,
                bandwidth=BANDWIDTH,
            )
            for one in found.lengths:
                cells = [quantity(one.tokens), quantity(one.row_bytes, "B"), str(one.rows), quantity(one.memory, "B")]
                lines.append(f"| {name} | {one.new_tokens} | {' | '.join(cells)} | {duration(one.seconds)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recorded", type=Path, help="run folder to take cell times from")
    parser.add_argument("--long", action="store_true", help="the table of long texts instead")
    parser.add_argument("--write", type=Path, help="Markdown file to write into")
    options = parser.parse_args(arguments)
    text = long_texts() if options.long else tables(options.recorded)
    print(text)
    if options.write is not None:
        write_between(options.write, "long texts" if options.long else "plans", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
