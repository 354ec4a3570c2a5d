"""What models share."""
from .attention import SelfAttention, attend
from .branch_embedding import BranchEmbedding
from .cache import EvalCache
from .cross_feature_attention import ATTN_MODES, CrossFeatureAttention
from .depthwise import DepthwiseConv2d
from .drop_path import DropPath
from .fusion import FUSIONS, NORM_EPS, CrossAttention
from .grouping import Grouping, group_tokens
from .linear import apply_linear
from .mlp import MLP
from .patches import fold, unfold
from .pointwise import PointwiseConv
from .position_bias import DynamicPositionBias, position_biases
from .recorded_settings import RecordsSettings
from .resample import resample_tokens
from .stage import Run, Stage, call
from .visual_tokens import (
    TOKENIZERS,
    ClusteringTokenizer,
    FilterTokenizer,
    GraphConvolution,
    PointwiseTokens,
    PoolingTokenizer,
    Projector,
    RecurrentTokenizer,
    Tokenizer,
    TokenTransformer,
)
from .vt_stage import VTModule, VTSettings, VTStage

__all__ = [
    'ATTN_MODES', 'BranchEmbedding', 'ClusteringTokenizer', 'CrossAttention',
    'CrossFeatureAttention', 'DepthwiseConv2d', 'DropPath', 'DynamicPositionBias', 'EvalCache',
    'FUSIONS', 'FilterTokenizer', 'GraphConvolution', 'Grouping', 'MLP', 'NORM_EPS',
    'PointwiseConv', 'PointwiseTokens', 'PoolingTokenizer', 'Projector', 'RecordsSettings',
    'RecurrentTokenizer', 'Run', 'SelfAttention', 'Stage', 'TOKENIZERS', 'TokenTransformer',
    'Tokenizer', 'VTModule', 'VTSettings', 'VTStage', 'apply_linear', 'attend', 'call', 'fold',
    'group_tokens', 'position_biases', 'resample_tokens', 'unfold'
]
