"""Models to measure, and the inputs that they get."""
import ast
import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from mmcv.cnn.utils import fuse_conv_bn
from mmengine.registry import MODELS
from torch import Tensor, nn

from xvit_mm.engine.frozen import compile_frozen
from xvit_mm.engine.hooks import prepare_for_inference
from xvit_mm.utils.config import ConfigError

from . import official_crossformer  # noqa: F401  (registers it)

VARIANTS = {
    'eager': 'as built',
    'math': 'as built, with attention that stores its N x N matrix',
    'channels_last': 'as built, channels last',
    'folded': 'convolution and BatchNorm folded, channels last',
    'compiled': 'torch.compile with dynamic shapes',
    'frozen': 'as tools/test.py --compile: folded if it has BatchNorm, compiled with constant weights',
}
CHANNELS_LAST = ('channels_last', 'folded')
TOLERANCE, AMP_TOLERANCE = 1e-3, 5e-2


class Contender:
    """A model in one of the variants, and what was measured of it."""

    def __init__(
        self,
        name: str,
        model: nn.Module,
        variant: str,
        inputs: list[Tensor],
        *,
        is_neck: bool,
        amp: bool = False,
        backend: str = 'inductor',
    ) -> None:
        self.amp = amp
        self.name, self.variant, self.is_neck = f'{name} {variant}', variant, is_neck
        self.model = prepared(model, variant, backend)
        # Leaves of its own: what comes before a neck wants their gradients.
        self.inputs = [x.detach().contiguous(memory_format=memory_format(variant)) for x in inputs]
        self.times: list[float] = []
        self.memory = 0

    def prepare(self, train: bool) -> None:
        """Switch to inference or to training steps."""
        self.model.train(train)
        for x in self.inputs:
            x.requires_grad_(train and self.is_neck)

    def forward(self) -> list[Tensor]:
        context: AbstractContextManager = (
            unfused_attention() if self.variant == 'math' else nullcontext())
        device = self.inputs[0].device.type
        with context, torch.autocast(device, torch.bfloat16, enabled=self.amp):
            maps = self.model(self.inputs if self.is_neck else self.inputs[0])
        return [maps] if isinstance(maps, Tensor) else list(maps)

    def step(self, train: bool) -> None:
        if not train:
            with torch.inference_mode():
                self.forward()
            return
        maps = [x for x in self.forward() if x.requires_grad]
        torch.autograd.backward(maps, [torch.ones_like(x) for x in maps])
        self.model.zero_grad(set_to_none=True)
        for x in self.inputs:
            x.grad = None


def noise(
    size: tuple[int, int], maps: Sequence[tuple[int, int]], batch: int, device: torch.device
) -> list[Tensor]:
    """Images [B, 3, H, W], or the maps that a backbone would make of them."""
    return [torch.randn(batch, channels, *(-(-side // stride) for side in size), device=device)
            for channels, stride in maps or [(3, 1)]]


def names_of(texts: Sequence[str]) -> list[str]:
    """The types, with their settings where types do not tell the models apart."""
    types = [text.partition(':')[0] for text in texts]
    return types if len(set(types)) == len(types) else list(texts)


def build(text: str) -> nn.Module:
    """A model from `scope.Type:key=value,key=value` or `timm.name:key=value`."""
    kind, _, settings = text.partition(':')
    try:
        call = ast.parse(f'dict({settings})', mode='eval').body
        if call.args:
            raise ValueError('a value without a name')
        config = {word.arg: literal(word.value) for word in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f'{text!r}: {settings!r} is not KEY=VALUE,... ({error})') from error
    try:
        return TimmBackbone(kind, **config) if kind.startswith('timm.') else MODELS.build(
            dict(type=kind, **config))
    except (AttributeError, ImportError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f'{text!r} cannot be built: {error}') from error


class TimmBackbone(nn.Module):
    """A model of timm without its head."""

    def __init__(self, name: str, **settings: object) -> None:
        super().__init__()
        import timm
        self.model = timm.create_model(name.removeprefix('timm.'), num_classes=0, **settings)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        return self.model.forward_features(x)


def literal(value: ast.expr) -> object:
    """The value of a Python literal; a bare word is a string."""
    return value.id if isinstance(value, ast.Name) else ast.literal_eval(value)


def prepared(model: nn.Module, variant: str, backend: str) -> nn.Module:
    model = copy.deepcopy(model)
    # Some backbones do not return themselves here.
    model.eval()
    if variant == 'folded':
        model = fuse_conv_bn(model)
    model = model.to(memory_format=memory_format(variant))
    if variant == 'compiled':
        compile_in_place(model, dynamic=True, backend=backend)
    elif variant == 'frozen':
        model = prepare_for_inference(model)
        compile_frozen(model, dynamic=True)
    return model


def compile_in_place(model: nn.Module, **options: object) -> None:
    """`model.compile`, which torch 2.1 does not have."""
    if hasattr(model, 'compile'):
        model.compile(**options)
    else:
        model.forward = torch.compile(model.forward, **options)


def forget_compiled() -> None:
    """`torch.compiler.reset`, where torch 2.1 has it."""
    if hasattr(torch.compiler, 'reset'):
        torch.compiler.reset()
    else:
        torch._dynamo.reset()


def memory_format(variant: str) -> torch.memory_format:
    return torch.channels_last if variant in CHANNELS_LAST else torch.contiguous_format


def check_equality(contenders: list[Contender], num_variants: int) -> None:
    """Refuse to compare variants of a model that do not compute the same."""
    # As they will be timed: torch.compile makes other graphs for other modes of autograd.
    with torch.inference_mode():
        for i in range(0, len(contenders), num_variants):
            first, *others = contenders[i:i + num_variants]
            expected = first.forward()
            for other in others:
                for a, b in zip(expected, other.forward()):
                    deviation = float((a - b).norm() / a.norm())
                    # Not `>`, which is false of a NaN.
                    if not deviation <= (AMP_TOLERANCE if first.amp else TOLERANCE):
                        raise ConfigError(
                            f'{other.name} deviates by {deviation:.1e} from {first.name}')


def unfused_attention() -> AbstractContextManager:
    """Attention as separate products of matrices."""
    try:
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError:  # torch before 2.3
        return torch.backends.cuda.sdp_kernel(enable_flash=False, enable_mem_efficient=False)
    return sdpa_kernel(SDPBackend.MATH)
