"""The reference model in the CPU's memory, here with the CPU as the device that it runs on."""

import pytest
import torch

from paw_fast.models import tiny
from paw_fast.models.policy import Policy
from paw_fast.models.trained import offload

pytest.importorskip("accelerate", reason="needs the extra offload")


@pytest.mark.parametrize("tied", [True, False])
def test_an_offloaded_model_computes_the_same_and_holds_no_weights_between_passes(tied):
    def build():
        model = tiny.build_model(90, hidden=32, layers=2, heads=4, kv_heads=2, ffn=48, seed=1).requires_grad_(False)
        if not tied:
            model.config.tie_word_embeddings = False
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.flip(0), requires_grad=False)
        return Policy(model, None)

    ids = torch.randint(0, 90, (33,), generator=torch.Generator().manual_seed(3))
    positions = torch.cat([torch.arange(n) for n in (13, 20)])
    plain, offloaded = build(), build()
    offload(offloaded, torch.device("cpu"))
    for _ in range(2):
        with torch.no_grad():
            logits = [one.lm_head(one.hidden(ids, positions, (13, 20))) for one in (plain, offloaded)]
        assert torch.equal(*logits)
        assert all(parameter.is_meta for parameter in offloaded.model.parameters())
