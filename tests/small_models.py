"""A small instance of every backbone, for the tests that all of them must pass."""

SMALL = {
    'CrossFormer': dict(
        arch=dict(embed_dims=32, depths=(1, 2, 4, 2), num_heads=(1, 2, 4, 8), cooling=True),
        group_size=(3, 3, 4, 3), interval=(4, 2, 2, 1), drop_path_rate=0.1),
    'CrossViT': dict(
        arch=dict(embed_dims=(32, 48), depths=(1, 2), num_heads=4, mlp_ratio=2, img_size=48)),
    'VTResNet': dict(
        arch='r18', base_channels=8, token_channels=32, num_tokens=4, num_heads=2,
        zero_init_residual=False, drop_path_rate=0.05,
        # Untrained BatchNorm does not normalise in eval mode; eps keeps the activations small.
        norm_cfg=dict(type='BN', eps=1.)),
    'XFormer': dict(
        arch=dict(stem_channels=(8, 8), embed_dims=(16, 16, 24, 32), mv3_depths=(2, 1, 1, 1),
                  xf_depths=(0, 1, 2, 1), token_dims=(0, 24, 32, 40), attn_dims=(0, 16, 16, 16)),
        drop_path_rate=0.1),
}

# The same with fewer blocks, for tests that trace a model operation by operation.
TINY = {
    'CrossFormer': dict(
        arch=dict(embed_dims=32, depths=(2, 1), num_heads=(1, 2)), out_indices=(0, 1),
        group_size=(3, 4), interval=(4, 2)),
    'CrossViT': dict(
        arch=dict(embed_dims=(32, 48), depths=(1, 1), num_heads=4, mlp_ratio=2, img_size=48,
                  num_encoders=1), drop_path_rate=0.),
    'VTResNet': SMALL['VTResNet'],
    'XFormer': dict(
        arch={**SMALL['XFormer']['arch'], 'mv3_depths': (1, 1, 1, 1), 'xf_depths': (0, 1, 1, 1)},
        out_indices=(0, 1)),
}
