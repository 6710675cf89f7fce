"""HookedTransformer: refused with TransformerLens 4, the same numbers as the bridge with 3.9."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lensprune.ablation.enumeration import each_head
from lensprune.errors import LensPruneError, UserError
from lensprune.models import HookedTransformerModel, as_hooked_model, load_model
from lensprune.models import hooked_transformer as module
from tests.helpers.families import byte_tokenizer
from tests.helpers.tolerances import assert_tensors_agree

MISSING = module.HookedTransformer is None
needs_class = pytest.mark.skipif(MISSING, reason="TransformerLens 4 has no HookedTransformer")
FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "phi3", "gpt2", "gpt_neox", "mixtral")
LENGTHS, WIDTH = (20, 13, 5), 20


def rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.full((len(LENGTHS), WIDTH), 3)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(LENGTHS):
        ids[row, WIDTH - length :] = torch.randint(4, 260, (length,), generator=generator)
        mask[row, WIDTH - length :] = 1
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


def pair(folder: Path) -> tuple[Any, Any]:
    hooked = as_hooked_model(load_model(folder, device="cpu", hooked_transformer=True))
    assert isinstance(hooked, HookedTransformerModel)
    return hooked, as_hooked_model(load_model(folder, device="cpu"))


@pytest.mark.skipif(not MISSING, reason="this TransformerLens has HookedTransformer")
def test_the_flag_is_refused_with_a_reason(tmp_path: Path) -> None:
    # Before anything is read: the path does not even exist.
    with pytest.raises(UserError, match=r"4\.0 removed HookedTransformer.*transformer-lens>=3\.9,<4"):
        load_model(tmp_path / "absent", hooked_transformer=True)


@needs_class
@pytest.mark.parametrize("family", FAMILIES)
def test_the_numbers_are_the_bridges(family: str, family_folder: Any) -> None:
    hooked, bridge = pair(family_folder(family))
    ids, mask, positions = rows()
    real = mask.bool()
    with torch.no_grad():
        expected = bridge.forward(ids, mask, positions)
        found = hooked.forward(ids, mask, positions)
        kept = hooked.forward(ids, mask, positions, logits_to_keep=2)
        cache = hooked.new_cache()
        parts = [hooked.forward(ids[:, :9], mask[:, :9], positions[:, :9], cache=cache)]
        for at in range(9, WIDTH):
            step = slice(at, at + 1)
            parts.append(hooked.forward(ids[:, step], mask[:, : at + 1], positions[:, step], cache=cache))
    assert_tensors_agree(found[real], expected[real], torch.float32)
    assert_tensors_agree(torch.cat(parts, 1)[real], expected[real], torch.float32)
    torch.testing.assert_close(kept, found[:, -2:])
    assert hooked.facts.weights_hash == bridge.facts.weights_hash
    shapes = ("n_layers", "n_heads", "n_key_value_heads", "d_head", "d_model", "d_vocab", "n_ctx", "parallel_attn_mlp")
    assert [getattr(hooked.facts, name) for name in shapes] == [getattr(bridge.facts, name) for name in shapes]


@needs_class
@pytest.mark.parametrize("family", FAMILIES)
def test_zeroed_heads_and_skipped_layers_agree(family: str, family_folder: Any) -> None:
    hooked, bridge = pair(family_folder(family))
    ids, mask, positions = rows()

    def zero_head(z: torch.Tensor, hook: Any) -> torch.Tensor:
        z = z.clone()
        z[:, :, 2] = 0
        return z

    for name, function in (("blocks.1.attn.hook_z", zero_head), ("blocks.1.hook_mlp_out", lambda x, hook: x * 0)):
        logits = []
        for model in (hooked, bridge):
            with torch.no_grad(), model.hooks([(name, function)]):
                logits.append(model.forward(ids, mask, positions)[mask.bool()])
        assert_tensors_agree(logits[0], logits[1], torch.float32)
    assert len(each_head(hooked)) == 12


@needs_class
def test_one_of_the_users_own_is_accepted(family_folder: Any) -> None:
    own = load_model(family_folder("llama"), device="cpu", hooked_transformer=True)
    carried = as_hooked_model(own)
    assert as_hooked_model(own) is carried
    del own.__dict__["_lensprune"]
    tokenizer = byte_tokenizer()
    model = as_hooked_model(own, tokenizer=tokenizer)
    assert (model.facts.source, model.tokenizer, model.module) == ("user", tokenizer, own)
    assert as_hooked_model(own, bos="always").facts.bos_policy == "always"


@needs_class
@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_what_it_cannot_convert_is_named(family: str, family_folder: Any) -> None:
    with pytest.raises(UserError, match=r"Gemma[23]ForCausalLM cannot become a HookedTransformer"):
        load_model(family_folder(family), device="cpu", hooked_transformer=True)


@needs_class
def test_positions_that_do_not_count_real_tokens_are_refused(family_folder: Any) -> None:
    model = as_hooked_model(load_model(family_folder("llama"), device="cpu", hooked_transformer=True))
    ids, mask, positions = rows()
    with pytest.raises(LensPruneError, match="can only count positions from each row's first real token"):
        model.forward(ids, mask, positions + 1)


@needs_class
def test_a_wrong_conversion_is_found(family_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = module._convert

    def wrong(*arguments: Any) -> Any:
        model = convert(*arguments)
        model.blocks[1].mlp.W_out.data.mul_(1.5)
        return model

    monkeypatch.setattr(module, "_convert", wrong)
    with pytest.raises(LensPruneError, match="converts LlamaForCausalLM wrongly"):
        load_model(family_folder("llama"), device="cpu", hooked_transformer=True)
