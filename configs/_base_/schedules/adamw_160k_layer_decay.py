# As adamw_160k.py, with learning rates that fall by 0.75 per layer towards the image, as is customary
# when plain vision transformers are fine-tuned; tokens and positions have no weight decay either.
_base_ = './adamw_160k.py'

optim_wrapper = dict(
    paramwise_cfg=dict(_delete_=True, layer_decay_rate=0.75, decay_weights_only=True))
