"""Examples for the end of every command's help."""

from __future__ import annotations

__all__ = ["EXAMPLES", "examples_of"]

EXAMPLES = {
    "models": ["lensprune models"],
    "tasks": ["lensprune tasks", "lensprune tasks --json"],
    "sweep": [
        "lensprune sweep --model smollm2-135m --task kv_retrieval --protocol generate --limit 50 --out runs/first",
        "lensprune sweep --model smollm2-135m --task facts --over heads --layers 0-4 --ablation mean --out runs/heads",
        "lensprune sweep --model smollm2-135m --task my_task.yaml --protocol default --protocol continuation",
    ],
    "plan": ["lensprune plan --model meta-llama/Llama-3.1-8B --task mmlu --shots 5 --limit 100 --device cuda"],
    "heads": [
        "lensprune heads --model smollm2-135m --out runs/functions",
        "lensprune heads --model smollm2-135m --score induction --run runs/heads",
    ],
    "removal": [
        "lensprune removal --model smollm2-135m --task kv_retrieval --protocol generate --ranking runs/functions "
        "--ranking effect=runs/heads --limit 24 --seed 1 --out runs/removal",
    ],
    "delta": [
        "lensprune delta --base toy-base --distilled toy-distilled --task arithmetic --component mlp --out runs/d"
    ],
    "attribute": [
        "lensprune attribute --model smollm2-135m --method patch --limit 20 --out runs/patching",
        "lensprune attribute --model smollm2-135m --method dla --clean 'Paris is in' --corrupt 'Rome is in' "
        "--answer ' France' --wrong ' Italy'",
        "lensprune attribute --model smollm2-135m --method qk --receiver L18.H6 --limit 6 --out runs/qk",
    ],
    "fidelity": ["lensprune fidelity --model smollm2-135m --task kv_retrieval --limit 24"],
    "power": ["lensprune power --parts 30 --n 50 --n 200"],
    "noise": ["lensprune noise --model smollm2-135m --dtype bfloat16 --task facts --limit 50 --out runs/noise"],
    "primitives": ["lensprune primitives --model toy-distilled --limit 24 --out runs/primitives"],
    "paper": ["lensprune paper --model smollm2-135m --preset smoke"],
    "analyse": [
        "lensprune analyse runs/first",
        "lensprune analyse runs/first depth_bands",
        "lensprune analyse runs/first critical_layers --task kv_retrieval --json",
    ],
    "report": ["lensprune report runs/first", "lensprune report runs/first runs/second"],
    "runs": ["lensprune runs", "lensprune runs /data/runs --json"],
    "resume": ["lensprune resume runs/first"],
    "demo": ["lensprune demo"],
    "completion": ["lensprune completion bash > ~/.local/share/bash-completion/completions/lensprune"],
}
"""Examples by command; each line works if its model, task and run exist."""


def examples_of(command: str) -> str:
    """The last paragraph of a command's help; empty for a command without examples."""
    lines = EXAMPLES.get(command, [])
    return "\n".join(["examples:", *(f"  {line}" for line in lines)]) if lines else ""
