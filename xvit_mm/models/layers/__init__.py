"""What models share."""
from .attention import SelfAttention, attend
from .cache import EvalCache
from .cross_feature_attention import ATTN_MODES, CrossFeatureAttention
from .fusion import FUSIONS, NORM_EPS, CrossAttention
from .grouping import Grouping, group_tokens
from .mlp import MLP
from .patches import fold, unfold
from .pointwise import PointwiseConv
from .resample import resample_tokens
from .visual_tokens import (
    TOKENIZERS,
    ClusteringTokenizer,
    FilterTokenizer,
    PointwiseTokens,
    PoolingTokenizer,
    Projector,
    RecurrentTokenizer,
    Tokenizer,
    TokenTransformer,
)

__all__ = [
    'ATTN_MODES', 'ClusteringTokenizer', 'CrossAttention', 'CrossFeatureAttention',
    'EvalCache', 'FUSIONS', 'FilterTokenizer', 'Grouping', 'MLP', 'NORM_EPS',
    'PointwiseConv', 'PointwiseTokens', 'PoolingTokenizer', 'Projector', 'RecurrentTokenizer',
    'SelfAttention', 'TOKENIZERS', 'TokenTransformer', 'Tokenizer', 'attend', 'fold',
    'group_tokens', 'resample_tokens', 'unfold'
]
