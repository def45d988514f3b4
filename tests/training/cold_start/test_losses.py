"""Cross-entropy and log Z are torch's, and so are their gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from realsr_r1.training.cold_start.losses import cross_entropy

TOKENS, VOCABULARY = 7, 33


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("z_loss", [0.0, 0.5])
def test_values_and_gradients_are_those_of_torchs_functions(dtype, z_loss):
    torch.manual_seed(0)
    logits = (3 * torch.randn(TOKENS, VOCABULARY)).to(dtype).requires_grad_()
    labels, weights = torch.randint(VOCABULARY, (TOKENS,)), torch.rand(TOKENS)
    nll, log_z = cross_entropy(logits, labels)
    expected = F.cross_entropy(logits.float(), labels, reduction="none"), logits.float().logsumexp(-1)
    torch.testing.assert_close((nll, log_z), expected)
    (mine,), (own,) = (torch.autograd.grad((weights * (loss + z_loss * z.square())).sum(), [logits])
                       for loss, z in ((nll, log_z), expected))
    assert mine.dtype == dtype
    torch.testing.assert_close(mine, own)


def test_nothing_of_the_gradient_is_lost_where_one_token_is_almost_certain():
    logits = torch.tensor([[80.0, 0.0, -20.0], [0.0, 80.0, 0.0]], requires_grad=True)
    labels = torch.tensor([0, 0])
    (mine,), (own,) = (torch.autograd.grad(loss.sum(), [logits]) for loss in (
        cross_entropy(logits, labels)[0], F.cross_entropy(logits, labels, reduction="none")))
    torch.testing.assert_close(mine, own, rtol=1e-5, atol=0)
