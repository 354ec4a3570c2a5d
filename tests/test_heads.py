"""What the classification heads promise, once for all four, and what each computes."""
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from small_models import SMALL
from torch import Tensor, nn

from xvit_mm.models import heads
from xvit_mm.models.heads import (ClsHead, CrossFormerClsHead, CrossViTClsHead, VTClsHead,
                                  XFormerClsHead)
from xvit_mm.registry import MODELS


class Case(NamedTuple):
    """A head with its backbone, and features that do not fit, with what the error says."""

    head: type[ClsHead]
    in_channels: Any
    backbone: dict
    feats: Sequence[Tensor]
    message: str


CASES = [
    Case(CrossFormerClsHead, 256, dict(type='xvit_mm.CrossFormer', **SMALL['CrossFormer']),
         (torch.zeros(1, 32, 2, 2),), 'has 32 channels but in_channels=256.*out_channels'),
    Case(XFormerClsHead, 32, dict(type='xvit_mm.XFormer', **SMALL['XFormer']),
         (torch.zeros(1, 16, 2, 2),), 'has 16 channels but in_channels=32.*out_channels'),
    Case(CrossViTClsHead, (32, 48),
         dict(type='xvit_mm.CrossViT', out_type='cls_token', **SMALL['CrossViT']),
         (torch.zeros(2, 48),), r"\(2, 48\).*in_channels=\(32, 48\).*out_type='cls_token'"),
    Case(VTClsHead, 32,
         dict(type='xvit_mm.VTResNet', out_type='tokens', out_indices=(3,), **SMALL['VTResNet']),
         (torch.zeros(2, 32, 4, 4),), r"\(2, 32, 4, 4\), not \[B, L, 32\].*out_type='tokens'"),
]
NUM_CLASSES = 5
each_head = pytest.mark.parametrize('case', CASES, ids=lambda case: case.head.__name__)


def classifier(case: Case, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    head = dict(type=f'xvit_mm.{case.head.__name__}', num_classes=NUM_CLASSES,
                in_channels=case.in_channels, **settings)
    return MODELS.build(dict(type='mmpretrain.ImageClassifier', backbone=case.backbone, head=head))


def samples_of(labels: Sequence[int]) -> list:
    from mmpretrain.structures import DataSample
    return [DataSample().set_gt_label(label) for label in labels]


def test_every_head_is_tested() -> None:
    names = set(heads.__all__) - {'ClsHead'}
    assert {case.head.__name__ for case in CASES} == names


@each_head
def test_the_loss_is_the_cross_entropy_and_reaches_every_parameter(case: Case) -> None:
    model, images = classifier(case).eval(), torch.randn(2, 3, 37, 50)
    loss = model(images, samples_of((1, 4)), mode='loss')['loss']
    torch.testing.assert_close(loss, F.cross_entropy(model(images), torch.tensor((1, 4))))
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@each_head
def test_a_mixed_batch_is_scored_with_its_class_scores(case: Case) -> None:
    model, images = classifier(case).eval(), torch.randn(2, 3, 37, 50)
    scores = torch.rand(2, NUM_CLASSES).softmax(1)
    samples = samples_of((1, 4))
    for sample, score in zip(samples, scores):
        sample.set_gt_score(score)
    loss = model(images, samples, mode='loss')['loss']
    expected = -(scores * model(images).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss, expected)


@each_head
def test_the_loss_can_be_chosen(case: Case) -> None:
    smoothing = dict(type='mmpretrain.LabelSmoothLoss', label_smooth_val=0.1, mode='original')
    model, images = classifier(case, loss=smoothing).eval(), torch.randn(2, 3, 37, 50)
    loss = model(images, samples_of((1, 4)), mode='loss')['loss']
    expected = F.cross_entropy(model(images), torch.tensor((1, 4)), label_smoothing=0.1)
    torch.testing.assert_close(loss, expected)


@each_head
def test_the_accuracy_of_training_images_is_logged_on_request(case: Case) -> None:
    images = torch.randn(4, 3, 37, 50)
    model = classifier(case, cal_acc=True).eval()
    right = model(images).argmax(1)
    labels = (right + torch.tensor([0, 1, 0, 0])) % NUM_CLASSES
    losses = model(images, samples_of(labels.tolist()), mode='loss')
    assert losses['accuracy_top-1'].item() == 75
    # It is logged, not minimised.
    assert model.parse_losses(losses)[0] == losses['loss']
    assert 'accuracy_top-1' not in classifier(case).eval()(
        images, samples_of(labels.tolist()), mode='loss')


@each_head
def test_predictions_are_the_softmax_and_its_largest_class(case: Case) -> None:
    model, images = classifier(case).eval(), torch.randn(2, 3, 37, 50)
    logits, predictions = model(images), model(images, mode='predict')
    assert logits.shape == (2, NUM_CLASSES)
    assert [p.pred_label.item() for p in predictions] == logits.argmax(1).tolist()
    torch.testing.assert_close(torch.stack([p.pred_score for p in predictions]), logits.softmax(1))


@each_head
def test_features_that_do_not_fit_are_refused_with_the_remedy(case: Case) -> None:
    with pytest.raises(ValueError, match=case.message):
        case.head(NUM_CLASSES, case.in_channels)(case.feats)


@pytest.mark.parametrize('case', [case for case in CASES if case.head is not CrossViTClsHead],
                         ids=lambda case: case.head.__name__)
def test_the_last_output_counts_with_or_without_a_tuple(case: Case) -> None:
    head = case.head(NUM_CLASSES, case.in_channels).eval()
    shape = (2, 6, 32) if case.head is VTClsHead else (2, case.in_channels, 3, 5)
    last = torch.randn(shape)
    assert torch.equal(head((torch.randn(2, 7, 9, 9), last)), head(last))


@each_head
def test_initial_weights_can_be_chosen(case: Case) -> None:
    constant = dict(type='Constant', layer='Linear', val=0.25, bias=2.)
    head = case.head(NUM_CLASSES, case.in_channels, init_cfg=constant)
    head.init_weights()
    linears = [module for module in head.modules() if isinstance(module, nn.Linear)]
    assert linears and all((fc.weight == 0.25).all() and (fc.bias == 2).all() for fc in linears)


# What each computes, as literal loops in float64.


def linear(row: Sequence[float], fc: nn.Linear) -> list[float]:
    return [sum(w * x for w, x in zip(weights, row)) + bias
            for weights, bias in zip(fc.weight.tolist(), fc.bias.tolist())]


def normalise(row: Sequence[float], norm: nn.LayerNorm) -> list[float]:
    mean = sum(row) / len(row)
    variance = sum((x - mean)**2 for x in row) / len(row)
    return [(x - mean) / (variance + norm.eps)**0.5 * w + b
            for x, w, b in zip(row, norm.weight.tolist(), norm.bias.tolist())]


def average(rows: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows)]


def randomised(head: ClsHead) -> ClsHead:
    torch.manual_seed(0)
    for tensor in (*head.parameters(), *head.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.1, 1.)
    return head.double().eval()


def positions(maps: Tensor) -> list[list[list[float]]]:
    """Channels of every position, for each image of maps [B, C, H, W]."""
    return maps.flatten(2).transpose(1, 2).tolist()


def test_crossformers_head_averages_normalised_positions() -> None:
    head, maps = randomised(CrossFormerClsHead(3, 8)), torch.randn(2, 8, 2, 3).double()
    expected = [linear(average([normalise(row, head.norm) for row in image]), head.fc)
                for image in positions(maps)]
    torch.testing.assert_close(head(maps), torch.tensor(expected).double())


def test_crossvits_head_averages_the_logits_of_both_branches() -> None:
    head = randomised(CrossViTClsHead(3, (4, 6)))
    tokens = [torch.randn(2, width).double() for width in (4, 6)]
    logits = [[linear(normalise(row, norm), fc) for row in token.tolist()]
              for token, norm, fc in zip(tokens, head.norms, head.fcs)]
    expected = [average(pair) for pair in zip(*logits)]
    torch.testing.assert_close(head(tokens), torch.tensor(expected).double())


def test_vts_head_averages_the_tokens() -> None:
    head, tokens = randomised(VTClsHead(3, 8)), torch.randn(2, 4, 8).double()
    expected = [linear(average(image), head.fc) for image in tokens.tolist()]
    torch.testing.assert_close(head(tokens), torch.tensor(expected).double())


def test_xformers_head_averages_640_activated_channels() -> None:
    head, maps = randomised(XFormerClsHead(3, 4)), torch.randn(2, 4, 2, 3).double()
    norm, weight = head.conv.norm, head.conv.conv.weight.flatten(1).tolist()
    weights, means, variances, biases = (
        values.tolist() for values in (norm.weight, norm.running_mean, norm.running_var, norm.bias))
    scale = [w / (v + norm.eps)**0.5 for w, v in zip(weights, variances)]
    shift = [b - m * s for b, m, s in zip(biases, means, scale)]
    expected = []
    for image in positions(maps):
        raw = [[sum(w * x for w, x in zip(filters, row)) for filters in weight] for row in image]
        normed = [[x * s + b for x, s, b in zip(row, scale, shift)] for row in raw]
        active = [[x / (1 + math.exp(-x)) for x in row] for row in normed]
        expected.append(linear(average(active), head.fc))
    torch.testing.assert_close(head(maps), torch.tensor(expected).double())
    assert sum(p.numel() for p in XFormerClsHead(1000, 160).parameters()) == 103_680 + 641_000


def test_crossvits_head_needs_a_width_for_each_branch() -> None:
    with pytest.raises(ValueError, match='in_channels=384: give two widths'):
        CrossViTClsHead(10, 384)
