"""How well a model labels held-out videos, in float32 as the exported model computes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from scorer.evaluation import metrics
from train.gather import Resident, Streamed
from train.losses import LOSSES, targets_of

_DEPTH = 20
EVALUATED = 2048
"""Videos at a time."""
Record = dict[str, float]
"""One epoch: epoch, loss, MAP@10, GAP@20, Hit@1, PERR, valid_loss, train_MAP@10, train_loss, videos_per_second, ..."""


@torch.inference_mode()
def evaluate(model: nn.Module, videos: Resident | Streamed, loss: str) -> Record:
    """valid_loss, MAP@10, GAP@20, Hit@1 and PERR of labelled videos."""
    model.eval()
    total = torch.zeros((), device=videos.device)
    tops = []
    for inputs, labels in videos.batches(torch.arange(len(videos)).split(EVALUATED)):
        logits = model(*inputs)
        total += LOSSES[loss](logits, targets_of(labels, loss)) * len(labels)
        tops.append(_top(logits))
    top_scores, top_labels = (torch.cat(parts).cpu().numpy() for parts in zip(*tops, strict=True))
    truth = videos.labels.cpu().numpy()
    known = truth >= 0
    splits = np.concatenate([[0], np.cumsum(known.sum(axis=1))])
    found = metrics.exact_metrics(top_labels, top_scores, truth[known].astype(np.int64), splits)
    return {"valid_loss": float(total) / len(videos), **found}


def _top(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and labels (n, 20) of the best; fewer labels are filled up with one that is never true."""
    scores, labels = logits.topk(min(_DEPTH, logits.shape[1]))
    missing = (0, _DEPTH - scores.shape[1])
    return functional.pad(scores.sigmoid(), missing), functional.pad(labels, missing, value=logits.shape[1])
