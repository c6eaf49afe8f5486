# SPDX-License-Identifier: Apache-2.0
"""linear_logprob: log softmax(h w^T / temperature)[target] and the entropy of that softmax, per token.

h_TD [T, D] float32 or bfloat16; w_VD [V, D] of h's type; target_T [T] int64 in 0..V-1; temperature a float above 0
-> logp_T [T] float32, entropy_T [T] float32 (nats). T = 0 is legal. Gradients of logp go to h and w; the entropy is a
gauge and carries none.
Numerics: logits = linear(h, w), rounded to h's type as when sampling; then float32. The reduction over the vocabulary
is the function that `sample` uses, so both give the same bits for the same logits and temperature. Row i of a batch
has the bits of row i alone. A row of NaN gives NaN. Raises ValueError for wrong shapes, types and targets.
"""

import torch
from torch import Tensor

from rzero.kernels.dispatch import Op, up
from rzero.kernels.linear import linear_ref


def linear_logprob_ref(
    h_TD: Tensor, w_VD: Tensor, target_T: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    logp_TV = (up(linear_ref(h_TD, w_VD)) / temperature).log_softmax(-1)
    held_TV = logp_TV.detach()
    # p log p is 0 where p is 0, also for a logit of -inf.
    entropy_T = -(held_TV.exp() * held_TV.clamp(min=torch.finfo(held_TV.dtype).min)).sum(-1)
    return logp_TV.gather(-1, target_T[:, None])[:, 0], entropy_T


LINEAR_LOGPROB = Op("linear_logprob", linear_logprob_ref)
