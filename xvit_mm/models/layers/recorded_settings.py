"""Settings that belong to the weights, kept in the state dict beside them."""
import json
import logging
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from xvit_mm.checkpoints import CheckpointError

EXTRA_STATE = '_extra_state'
_LENGTH = 512


class RecordsSettings(nn.Module):
    """Mixin that saves settings with the weights and refuses weights made with other settings.

    Some settings change what the weights compute but no tensor's name or shape, so that loading
    alone cannot tell. A subclass puts them into `recorded`, a dict of plain values. They are saved
    as extra state, a tensor of JSON text, which averaging, copying and renaming state dicts leave
    intact. Weights without a record load as before, with a warning.
    """

    recorded: dict[str, Any]

    def get_extra_state(self) -> Tensor:
        """The settings as JSON, bytes [512]; of one length, as loaders compare shapes."""
        text = json.dumps(self.recorded).ljust(_LENGTH).encode()
        return torch.tensor(list(text), dtype=torch.uint8, device='cpu')

    def set_extra_state(self, state: Tensor) -> None:
        """`check_settings`, which is all that there is to do."""
        self.check_settings(state)

    def check_settings(self, state: Tensor) -> None:
        """Compare the settings of a checkpoint, its extra state, with these.

        Raises:
            CheckpointError: they differ; names both values.
        """
        if state.is_meta:
            return
        try:
            found = json.loads(bytes(state.tolist()))
        except (ValueError, TypeError) as error:
            raise CheckpointError(
                f'the settings stored in the checkpoint are damaged ({error})') from None
        here = json.loads(json.dumps(self.recorded))
        if other := {name: value for name, value in found.items()
                     if name in here and here[name] != value}:
            raise CheckpointError(_refusal(other, here))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        key = prefix + EXTRA_STATE
        if key in state_dict:
            self.check_settings(state_dict[key])
        else:
            if any(name.startswith(prefix) for name in state_dict):
                print_log(
                    f'The weights of {prefix.rstrip(".") or "this module"} do not say with which '
                    f'settings they were made; they are used with {_listed(self.recorded)}',
                    logger='current', level=logging.WARNING)
            state_dict[key] = self.get_extra_state()
        super()._load_from_state_dict(state_dict, prefix, *args)


def _refusal(found: dict[str, Any], here: dict[str, Any]) -> str:
    ours = {name: here[name] for name in found}
    return (
        f'the checkpoint was made with {_listed(found)}, but this model has {_listed(ours)}: its '
        f'weights would load and compute something else. Build the model with {_listed(found)}, '
        f'or delete the entries that end in {EXTRA_STATE!r} from the state dict if you know better')


def _listed(settings: dict[str, Any]) -> str:
    return ', '.join(f'{name}={value!r}' for name, value in settings.items())
