"""Count parameters and multiply-adds of the models of configs on the meta device."""
import copy
from collections.abc import Iterable

import torch
from mmengine.config import Config
from torch import Tensor, nn

from xvit_mm.utils.complexity import Cost, count_macs

from xvit_mm.apis.build import build_model

# What papers count of the second stage of a detector, as mmdet 2 did.
NUM_PROPOSALS = 1000
NUM_MASKS = 100


def measure(cfg: Config, size: tuple[int, int]) -> Cost:
    """Return the cost of the model of a config for one image of `size`, (height, width) in pixels.

    As `xvit_mm.utils.complexity.measure_cost`, on torch's meta device. The second stage of a
    detector counts for 1000 proposals, its masks for 100.
    """
    model = meta_model(cfg)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if hasattr(model, 'roi_head'):
        model = TwoStages(model)
    return Cost(parameters=parameters, macs=count_macs(model, size))


def meta_model(cfg: Config) -> nn.Module:
    """Build the model of a config on the meta device."""
    cfg = copy.deepcopy(cfg)
    try:
        with torch.device('meta'):
            return build_model(cfg)
    except (NotImplementedError, RuntimeError):
        # Some models compute with values while they are built.
        return build_model(cfg).to('meta')


class TwoStages(nn.Module):
    """A two-stage detector of mmdet, which runs its second stage on a fixed number of regions.

    Proposals depend on the values of the maps, which the meta device does not have.
    """

    def __init__(self, detector: nn.Module, num_proposals: int = NUM_PROPOSALS) -> None:
        super().__init__()
        self.detector = detector
        self.num_proposals = num_proposals

    def forward(self, images: Tensor) -> list:
        """Return the raw outputs of all heads for images [1, 3, H, W]."""
        maps = self.detector.extract_feat(images)
        roi_head = self.detector.roi_head
        outputs = [self.detector.rpn_head(maps)]
        outputs += _run(roi_head.bbox_head, roi_head.bbox_roi_extractor, self.num_proposals, images)
        if roi_head.with_mask:
            num_masks = min(NUM_MASKS, self.num_proposals)
            extractor = roi_head.mask_roi_extractor
            outputs += _run(roi_head.mask_head, extractor, num_masks, images)
        return outputs


def _run(heads: nn.Module, extractors: nn.Module, num_regions: int, images: Tensor) -> list:
    pairs = zip(_as_list(heads), _as_list(extractors))
    return [
        head(images.new_empty(
            num_regions, extractor.out_channels, *extractor.roi_layers[0].output_size))
        for head, extractor in pairs]


def _as_list(modules: nn.Module) -> Iterable[nn.Module]:
    return modules if isinstance(modules, nn.ModuleList) else [modules]
