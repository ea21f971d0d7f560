"""Any timm model that gives an embedding, a pyramid and layer groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import timm
import torch
from pydantic import Field
from timm.models import ResNet, group_parameters
from torch import Tensor, nn

from medtransfer.backbones.base import Backbone, Normalisation
from medtransfer.errors import ConfigError

# Transformers with a fixed grid learn to take other image sizes; their state dict stays the same.
SIZE_OPTIONS: tuple[dict[str, Any], ...] = (
    {"dynamic_img_size": True},
    {"strict_img_size": False},
    {},
)


Shapes = tuple[int, tuple[int, ...], tuple[int, ...]]
"""Columns of the embedding, channels of each level and strides of each level."""

_measured: dict[tuple[str, int, int, int | None], Shapes] = {}


class TimmBackbone(Backbone):
    """A timm model without its classifier.

    Args:
        name: Name of the model as timm knows it, without a tag; the tag belongs to the weights.
        channels: Channels of the images.
        image_size: Height and width of the images in pixels, at which shapes are measured.
        pad_to: Height and width in pixels to which images are filled up with zeros on all sides,
            after they were normalised: the margin has the mean colour of the images that the
            network was trained on. Maps of images with such a margin do not lie on the images, so
            there is no pyramid then.

    Raises:
        ConfigError: If timm does not know the model, or it lacks what a backbone must give; or if
            images are larger than `pad_to`.
    """

    def __init__(
        self,
        name: str,
        channels: int,
        image_size: int,
        pad_to: Annotated[int, Field(ge=1)] | None = None,
    ) -> None:
        if "." in name:
            architecture, _, tag = name.partition(".")
            raise ConfigError(
                f"backbone.name='{name}' names weights too",
                remedy=f"backbone.name={architecture} weights=imagenet weights.tag={tag}",
            )
        model: Any = self.network(name, channels)
        config = model.pretrained_cfg
        super().__init__(channels, Normalisation(tuple(config["mean"]), tuple(config["std"])))
        self.name = name
        self.model: Any = model
        # a module, since `repr` of the network is what tells cached features apart
        self.margin = _margin(image_size, pad_to)
        self._measure(image_size, pad_to)

    def network(self, name: str, channels: int) -> nn.Module:
        """Return the model without its classifier, its values as they are initialised."""
        return create(name, channels)

    @property
    def chosen_by(self) -> str:
        """See `Backbone.chosen_by`; any model of timm's."""
        return f"backbone=timm backbone.name={self.name}"

    def normalised(self, images: Tensor) -> Tensor:
        """See `Backbone.normalised`; with their margin, where they get one."""
        normalised = super().normalised(images)
        return normalised if self.margin is None else self.margin(normalised)

    def embed(self, images: Tensor) -> Tensor:
        """See `Backbone.embed`: the model's own pooling, and its layers up to the classifier."""
        final = self.model.forward_features(self.normalised(images))
        return self.model.forward_head(final, pre_logits=True)  # type: ignore[no-any-return]

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.pyramid`."""
        if self.margin is not None:
            return []
        return self.model.forward_intermediates(  # type: ignore[no-any-return]
            self.normalised(images), intermediates_only=True
        )

    def features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """See `Backbone.features`."""
        final, levels = self.model.forward_intermediates(self.normalised(images))
        embedding = self.model.forward_head(final, pre_logits=True)
        return embedding, levels if self.margin is None else []

    def layer_groups(self) -> Sequence[tuple[str, ...]]:
        """See `Backbone.layer_groups`: timm's own, a closing norm with the group before it."""
        found = group_parameters(self.model, self.model.group_matcher(coarse=True))
        groups = [found[key] for key in sorted(found)]
        if len(groups) > 1 and all(self.model.get_parameter(n).ndim < 2 for n in groups[-1]):
            groups[-2:] = [[*groups[-2], *groups[-1]]]  # to tune it alone would be norm tuning
        return [tuple(f"model.{name}" for name in names) for names in groups]

    def stages(self) -> Sequence[nn.Module]:
        """See `Backbone.stages`; residual networks are such chains."""
        if not isinstance(self.model, ResNet):
            return ()
        model: Any = self.model
        stem = nn.Sequential(model.conv1, model.bn1, model.act1)
        first = nn.Sequential(model.maxpool, model.layer1)
        return (stem, first, model.layer2, model.layer3, model.layer4)

    def place(self) -> tuple[str, int] | None:
        """See `Backbone.place`: what timm says the last level comes from.

        Of a transformer it is the norm before the last attention: of what comes after, only the
        class token may reach the embedding.
        """
        levels = getattr(self.model, "feature_info", None)
        if self.margin is not None or not levels:
            return None
        last = levels[-1] if isinstance(levels, list) else levels.info[-1]
        name = f"model.{last['module']}"
        try:
            layer = self.get_submodule(name)
        except AttributeError:
            return None
        if isinstance(getattr(layer, "norm1", None), nn.Module) and hasattr(layer, "attn"):
            name += ".norm1"
        return name, int(last["num_chs"])

    def _measure(self, image_size: int, pad_to: int | None) -> None:
        """Take channels and strides from a pass: what timm declares is rounded for some models.

        A sweep builds the same network for every trial; one pass is enough for all of them.
        """
        key = (self.name, self.channels_in, image_size, pad_to)
        if key not in _measured:
            _measured[key] = self._pass_through(image_size)
        self.embedding_size, self.channels, self.strides = _measured[key]

    def _pass_through(self, image_size: int) -> Shapes:
        probe = torch.zeros(2, self.channels_in, image_size, image_size)
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                embedding, levels = self.features(probe)
        except Exception as error:  # models assert their sizes in their own ways
            raise ConfigError(
                f"backbone '{self.name}' cannot take images of {image_size} px:"
                f" {str(error) or type(error).__name__}",
                remedy="choose another dataset.image_size or another backbone",
            ) from None
        finally:
            self.train(training)
        lacks = []
        if embedding.ndim != 2:
            lacks.append("an embedding")
        if self.margin is None and (not levels or any(level.ndim != 4 for level in levels)):
            lacks.append("a pyramid")
        if not self._has_layer_groups():
            lacks.append("layer groups")
        if lacks:
            raise ConfigError(
                f"backbone '{self.name}' lacks {' and '.join(lacks)}",
                remedy="medtransfer list backbone shows models that have all",
            )
        channels = tuple(level.shape[1] for level in levels)
        strides = tuple(round(image_size / level.shape[-1]) for level in levels)
        return embedding.shape[1], channels, strides

    def _has_layer_groups(self) -> bool:
        try:
            grouped = [name for group in self.layer_groups() for name in group]
        except (AttributeError, AssertionError, NotImplementedError):
            return False
        return sorted(grouped) == sorted(name for name, _ in self.named_parameters())


def _margin(image_size: int, pad_to: int | None) -> nn.ZeroPad2d | None:
    """Return what fills images up; of an odd margin, the larger part is below and on the right."""
    if pad_to is None or pad_to == image_size:
        return None
    if pad_to < image_size:
        raise ConfigError(
            f"backbone.pad_to={pad_to} is less than dataset.image_size={image_size}",
            remedy="backbone.pad_to=null, or a smaller dataset.image_size",
        )
    before, after = (pad_to - image_size) // 2, (pad_to - image_size + 1) // 2
    return nn.ZeroPad2d((before, after, before, after))


def create(name: str, channels: int, **options: Any) -> nn.Module:
    """Return a timm model without classifier, at any image size it can take.

    Raises:
        ConfigError: If timm does not know the name.
    """
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise ConfigError(
            f"timm has no model '{name}'",
            value=architecture,
            choices=_nearest_first(architecture),
            remedy="python -c 'import timm; print(timm.list_models())' shows all",
        )
    for size_option in SIZE_OPTIONS:
        try:
            return timm.create_model(
                name, num_classes=0, in_chans=channels, **size_option, **options
            )
        except TypeError as error:
            if not size_option or "unexpected keyword" not in str(error):
                raise
    raise AssertionError


def _nearest_first(name: str) -> list[str]:
    import difflib

    return difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.4)
