"""A user's own loss, named by a dotted path in `algorithm.loss`."""

from typing import cast

from gym_bridge.config import load_object
from gym_bridge.errors import ConfigError
from gym_bridge.schemas.seams import LossFn
from gym_bridge.schemas.settings import DPOAlgorithm, GRPOAlgorithm, SFTAlgorithm


def own_loss(settings: SFTAlgorithm | DPOAlgorithm | GRPOAlgorithm) -> LossFn:
    """The loss that the function at `settings.loss`, such as `my_package.losses:focal`, makes of the settings.

    Raises ConfigError when there is none, or what it makes cannot be called.
    """
    make = load_object(settings.loss)
    if not callable(make):
        raise ConfigError(f"algorithm.loss={settings.loss!r} is {type(make).__name__}, no function of the settings")
    loss_fn = make(settings)
    if not callable(loss_fn):
        raise ConfigError(f"algorithm.loss={settings.loss!r} gave {type(loss_fn).__name__}; expected a function (values, columns)")
    return cast(LossFn, loss_fn)
