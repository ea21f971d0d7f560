"""Each strategy that trains in steps, against its definition, on small networks."""

from __future__ import annotations

import copy
import io
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from medtransfer.backbones.encoder import DenseEncoder
from medtransfer.backbones.pixels import Pixels
from medtransfer.backbones.timm import TimmBackbone
from medtransfer.errors import ConfigError
from medtransfer.strategies import freezing
from medtransfer.strategies.auto_rgn import AutoRgn
from medtransfer.strategies.delta import Delta
from medtransfer.strategies.gradual_unfreezing import GradualUnfreezing
from medtransfer.strategies.l2_sp import L2Sp
from medtransfer.strategies.lora import Lora
from medtransfer.strategies.lp_ft import LpFt
from medtransfer.strategies.ssf import Ssf
from medtransfer.strategies.wise_ft import WiseFt

RATES = {"search_space": {}, "backbone_lr": 2.0, "head_lr": 3.0}
BASE = {**RATES, "batchnorm": "auto"}
PROBE = {**BASE, "probe": 0.3, "probe_lr": 10.0}
LORA = {**BASE, "rank": 2, "scaling": 1.5, "dropout": 0.0}
LR = 0.01


class Net(nn.Module):
    """A stem with its norm, a depthwise convolution, attention and what stands beside it."""

    channels = (4, 4)
    embedding_size = 4

    def __init__(self, channels=3):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4))
        self.mid = nn.ModuleDict({"stem": nn.Conv2d(4, 4, 3, padding=1, groups=4)})
        self.attn = nn.ModuleDict({"proj": nn.Linear(4, 4), "mlp": nn.Linear(4, 4, bias=False)})

    def features(self, images):
        first = self.stem(images).relu()
        second = self.mid["stem"](first)
        return self.attn["mlp"](self.attn["proj"](second.mean((2, 3))).relu()), [first, second]

    def embed(self, images):
        return self.features(images)[0]

    def pyramid(self, images):
        return self.features(images)[1]

    def layer_groups(self):
        names = [name for name, _ in self.named_parameters()]
        return [tuple(n for n in names if n.startswith(top)) for top in ("stem", "mid", "attn")]


class Model(nn.Module):
    """A backbone and a linear head; what is frozen rests."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.embedding_size, 2)

    def train(self, mode=True):
        super().train(mode)
        freezing.rest(self)
        return self


def begun(strategy, backbone=None) -> Model:
    """Return a model that a strategy has set up, always alike."""
    torch.manual_seed(0)
    model = Model(backbone or Net())
    strategy.trainable(model)
    strategy.setup(model, [], statistics=True)
    return model


def batches(shape=(8, 3, 8, 8)):
    generator = torch.Generator().manual_seed(1)
    while True:
        yield torch.rand(shape, generator=generator), torch.arange(shape[0]) % 2


def factor(pace: float) -> float:
    return 1 - pace / 2


def train(model, strategy, steps=10, *, watch=None, shape=(8, 3, 8, 8), bf16=False):
    """Train as a task does; return the learning rates with which each step was taken."""
    optimizer = torch.optim.AdamW(strategy.parameter_groups(model, {"lr": LR}))
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: factor(strategy.pace(step / steps))
    )
    taken = []
    model.train()
    for step, (images, targets) in zip(range(steps), batches(shape), strict=False):
        strategy.on_step_start(model, step / steps)
        if watch:
            watch(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            embedding, levels = model.backbone.features(images)
            loss = cross_entropy(model.head(embedding), targets)
            penalty = strategy.penalty(model, images, levels)
        optimizer.zero_grad()
        (loss if penalty is None else loss + penalty).backward()
        strategy.before_step(model, optimizer)
        taken.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    model.eval()
    return taken


def values(module) -> dict[str, torch.Tensor]:
    """Return a copy of all real numbers, statistics of normalisation too."""
    state = module.state_dict().items()
    return {name: value.clone() for name, value in state if value.is_floating_point()}


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def disturb(parameters) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.3 * torch.randn_like(parameter))


def test_l2_sp_pulls_the_backbone_to_its_start_and_the_head_to_zero():
    strategy = L2Sp(alpha=0.3, beta=0.7, **BASE)
    model = begun(strategy)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    head = sum(float(p.detach().square().sum()) for p in model.head.parameters())
    assert strategy.penalty(model, None, []).item() == pytest.approx(0.7 / 2 * head)

    disturb(model.parameters())
    strategy.penalty(model, None, []).backward()
    for name, p in model.named_parameters():
        pull = 0.7 * p if name.startswith("head.") else 0.3 * (p - start[name])
        torch.testing.assert_close(p.grad, pull.detach())


def test_l2_sp_takes_the_place_of_weight_decay():
    strategy = L2Sp(alpha=0.0, beta=0.0, **BASE)
    groups = strategy.parameter_groups(begun(strategy), {"lr": LR})
    optimizer = torch.optim.AdamW(groups, lr=LR, weight_decay=0.5)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0, 0]


def test_delta_is_the_relative_distance_of_feature_maps():
    strategy = Delta(alpha=0.8, **{**BASE, "batchnorm": "frozen"})
    model = begun(strategy).train()
    images, _ = next(batches())
    original = copy.deepcopy(model.backbone)
    assert strategy.penalty(model, images, model.backbone.pyramid(images)).item() == 0

    disturb(model.backbone.parameters())
    penalty = strategy.penalty(model, images, model.backbone.pyramid(images))
    with torch.no_grad():
        shares = [
            float(((now - then) ** 2).sum() / (then**2).sum())
            for image in images.split(1)
            for now, then in zip(
                model.backbone.pyramid(image), original.pyramid(image), strict=True
            )
        ]
    assert len(shares) == 16
    assert penalty.item() == pytest.approx(0.8 / 2 * sum(shares) / len(shares), rel=1e-5)

    penalty.backward()
    assert all(p.grad is None for p in [*strategy.source.parameters(), *model.head.parameters()])
    assert all(p.grad.any() for n, p in model.backbone.named_parameters() if "attn" not in n)


def test_delta_passes_over_maps_of_zeros_which_have_no_scale():
    strategy, backbone = Delta(alpha=1.0, **BASE), Net()
    nn.init.zeros_(backbone.mid["stem"].weight)
    nn.init.zeros_(backbone.mid["stem"].bias)
    model = begun(strategy, backbone).eval()
    nn.init.ones_(backbone.mid["stem"].bias)
    images, _ = next(batches())
    assert strategy.penalty(model, images, model.backbone.pyramid(images)).item() == 0


def test_delta_keeps_its_own_untouched_copy_of_the_start():
    strategy = Delta(alpha=0.5, **BASE)
    model = begun(strategy)
    names, start = set(model.state_dict()), values(model.backbone)
    model.strategy_ = strategy
    train(model, strategy)
    assert set(model.state_dict()) == names
    assert equal(values(strategy.source), start)
    assert not any(p.requires_grad for p in strategy.source.parameters())
    assert all(not torch.equal(v, start[n]) for n, v in values(model.backbone).items())


def test_delta_needs_feature_maps():
    encoder = DenseEncoder(channels=3, size=4, widths=(4,), units="relu", image_size=8)
    with pytest.raises(ConfigError, match=r"(?s)feature maps.*strategy=l2_sp"):
        Delta(alpha=1.0, **BASE).trainable(Model(encoder))


def test_the_probe_is_a_head_trained_alone_on_the_frozen_backbone():
    strategy = LpFt(**PROBE)
    model = begun(strategy)
    alone = copy.deepcopy(model).eval()
    optimizer = torch.optim.AdamW(alone.head.parameters(), lr=LR * 10)
    for step, (images, targets) in zip(range(3), batches(), strict=False):
        optimizer.param_groups[0]["lr"] = LR * 10 * factor(step / 3)
        optimizer.zero_grad()
        cross_entropy(alone.head(alone.backbone.embed(images)), targets).backward()
        optimizer.step()

    seen = {}
    taken = train(model, strategy, watch=lambda step: seen.update({step: values(model)}))
    assert seen[3].keys() == values(alone).keys()
    for name, value in values(alone).items():  # up to the order of sums in the optimizer
        torch.testing.assert_close(seen[3][name], value, rtol=1e-6, atol=1e-7)
    assert equal(*({n: v for n, v in seen[k].items() if "backbone" in n} for k in (0, 3)))
    assert not torch.equal(seen[4]["backbone.stem.0.weight"], seen[3]["backbone.stem.0.weight"])
    paces = [k / 3 for k in range(3)] + [k / 7 for k in range(7)]
    heads = [10.0] * 3 + [3.0] * 7
    expected = [LR * rate * factor(pace) for rate, pace in zip(heads, paces, strict=True)]
    assert [rates[-1] for rates in taken] == pytest.approx(expected)


@given(probe=st.floats(0.05, 0.95), share=st.floats(0, 1, exclude_max=True))
def test_each_phase_goes_through_the_schedule_once(probe, share):
    strategy = LpFt(**{**PROBE, "probe": probe})
    assert (strategy.pace(0.0), strategy.pace(probe), strategy.pace(1.0)) == (0, 0, 1)
    assert strategy.pace(share * probe * (1 - 1e-9)) == pytest.approx(share)
    assert strategy.pace(probe + share * (1 - probe)) == pytest.approx(share, abs=1e-9)


@pytest.fixture(scope="module")
def line():
    """Return the values of LP-FT where probing ends and where all ends."""
    strategy, seen = LpFt(**PROBE), {}
    model = begun(strategy)
    train(model, strategy, watch=lambda step: seen.update({step: values(model)}))
    return SimpleNamespace(probe=seen[3], end=values(model))


def tuned(*mixing):
    strategy = WiseFt(**PROBE, mixing=mixing)
    model = begun(strategy)
    train(model, strategy)
    return strategy, model


def share_of(model, line) -> float:
    name = "backbone.stem.0.weight"
    moved = line.end[name] - line.probe[name]
    return float(((model.get_parameter(name) - line.probe[name]) / moved).median())


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_wise_ft_mixes_the_probe_and_what_lp_ft_comes_to(share, line):
    strategy, model = tuned(share)
    assert strategy.finish(model, lambda: 0.0) == {"mixing": share}
    mixed = {n: (1 - share) * line.probe[n] + share * end for n, end in line.end.items()}
    assert any("running_var" in name for name in mixed)
    if share in (0, 1):
        assert equal(values(model), line.end if share else line.probe)
    for name, value in values(model).items():
        torch.testing.assert_close(value, mixed[name])


def test_wise_ft_takes_the_share_that_scores_best_the_larger_one_of_equals(line):
    strategy, model = tuned(0.0, 0.25, 0.5, 1.0)
    chosen = strategy.finish(model, lambda: -abs(share_of(model, line) - 0.3))
    assert chosen == {"mixing": 0.25}
    assert share_of(model, line) == pytest.approx(0.25, abs=1e-3)
    strategy, model = tuned(0.0, 0.75, 0.5)
    assert strategy.finish(model, lambda: 1.0) == {"mixing": 0.75}


def test_wise_ft_finds_the_probe_again_after_an_interruption(line):
    strategy, model = tuned(0.0)
    file = io.BytesIO()
    torch.save(strategy.state(), file)
    file.seek(0)
    resumed = WiseFt(**PROBE, mixing=(0.0,))
    again = begun(resumed)
    resumed.load_state(torch.load(file, weights_only=True))
    again.load_state_dict(model.state_dict())
    resumed.on_step_start(again, 0.9)
    resumed.finish(again, lambda: 0.0)
    assert equal(values(again), line.probe)


def test_wise_ft_follows_a_model_that_scoring_moves_to_its_device():
    strategy, model = tuned(0.0, 0.5, 1.0)
    strategy.finish(model, lambda: float(len(model.to("meta").state_dict())))
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_wise_ft_that_never_came_to_tuning_stays_a_probe():
    strategy = WiseFt(**PROBE, mixing=(0.5,))
    model = begun(strategy)
    before = values(model)
    assert strategy.finish(model, lambda: 0.0) == {}
    assert equal(values(model), before)


@pytest.mark.parametrize("steps", [5, 10])
def test_groups_open_from_the_last_to_the_first(steps):
    strategy = GradualUnfreezing(until=0.6, **BASE)
    model, seen = begun(strategy), {}
    train(model, strategy, steps, watch=lambda step: seen.update({step / steps: learning(model)}))
    tops = ["attn", "mid", "stem"]
    for progress, found in seen.items():
        opened = sum(progress >= bound - 1e-9 for bound in (0.2, 0.4, 0.6))
        assert found == {f"backbone.{top}" for top in tops[:opened]} | {"head.weight", "head.bias"}


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_a_group_opens_in_its_step_whatever_is_rounded(step):
    strategy = GradualUnfreezing(until=0.1, **BASE)
    strategy.groups = 5
    assert strategy.phase(step / 50) == step


def learning(model) -> set[str]:
    """Return what learns, each part of the backbone by the first two words of its name."""
    return {".".join(n.split(".")[:2]) for n, p in model.named_parameters() if p.requires_grad}


@given(
    until=st.floats(0.01, 0.99), one=st.floats(0, 1), other=st.floats(0, 1), count=st.integers(0, 9)
)
def test_what_has_begun_to_learn_goes_on(until, one, other, count):
    strategy = GradualUnfreezing(until=until, **BASE)
    backbone = nn.Module()
    backbone.layers = nn.ModuleList(nn.Linear(1, 1) for _ in range(count))
    backbone.layer_groups = lambda: [(f"layers.{k}.weight",) for k in range(count)]
    model = SimpleNamespace(backbone=backbone, named_parameters=lambda: [("head.bias", None)])
    strategy.begin(model)
    early, late = sorted((one, other))
    opened = [strategy.trainable_in(model, strategy.phase(moment)) for moment in (early, late)]
    assert {"head.bias"} <= opened[0] <= opened[1]
    assert len(strategy.trainable_in(model, strategy.phase(max(until, late)))) == count + 1


def test_auto_rgn_scales_rates_by_relative_gradients_for_one_step():
    strategy = AutoRgn(**BASE)
    model = begun(strategy)
    optimizer = torch.optim.SGD(strategy.parameter_groups(model, {"lr": LR}))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    for step in range(3):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        ratios = [
            float(torch.cat([p.grad.flatten() for p in group]).norm())
            / float(torch.cat([p.detach().flatten() for p in group]).norm())
            for group in (
                [model.backbone.get_parameter(name) for name in names]
                for names in model.backbone.layer_groups()
            )
        ]
        strategy.before_step(model, optimizer)
        rates = [group["lr"] for group in optimizer.param_groups]
        scheduled = LR * 0.5**step
        expected = [2 * scheduled * ratio / max(ratios) for ratio in ratios]
        assert rates == pytest.approx([*expected, 3 * scheduled])
        assert max(rates[:-1]) == 2 * scheduled
        optimizer.step()
        scheduler.step()


class Standardised(nn.Conv2d):
    """A convolution that makes its weight from another one."""

    def forward(self, images):
        weight = self.weight / self.weight.flatten(1).std(1).view(-1, 1, 1, 1)
        return self._conv_forward(images, weight, self.bias)


def test_lora_adds_the_scaled_product_of_two_matrices_to_a_weight():
    strategy, plain = Lora(layers="all", **LORA), Net().eval()
    model = begun(strategy, copy.deepcopy(plain)).eval()
    images, _ = next(batches())
    torch.testing.assert_close(model.backbone.embed(images), plain.embed(images), rtol=0, atol=0)

    train(model, strategy)
    tuned = model.backbone.embed(images)
    expected = {name: value.clone() for name, value in plain.state_dict().items()}
    layers = {n: m for n, m in model.backbone.named_modules() if hasattr(m, "lora_A")}
    assert set(layers) == {"stem.0", "attn.proj", "attn.mlp"}  # the depthwise layer is not among
    for name, layer in layers.items():
        down, up = (part["default"].weight.detach() for part in (layer.lora_A, layer.lora_B))
        assert (len(down), up.shape[1]) == (2, 2)
        assert up.any()
        product = (up.flatten(1) @ down.flatten(1)).view_as(expected[f"{name}.weight"])
        expected[f"{name}.weight"] += 1.5 * product

    strategy.finish(model, lambda: 0.0)
    merged = model.backbone.state_dict()
    assert merged.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(merged[name], value, msg=name)
    torch.testing.assert_close(model.backbone.embed(images), tuned, rtol=1e-5, atol=1e-5)
    assert not torch.equal(tuned, plain.embed(images))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        Standardised(4, 4, 3, padding=1),
    ],
    ids=["grouped", "dilated", "reflecting", "standardised"],
)
def test_lora_leaves_layers_alone_whose_update_would_not_be_theirs(layer):
    strategy, backbone = Lora(layers="all", **LORA), Net()
    backbone.mid["stem"] = copy.deepcopy(layer)
    model = begun(strategy, backbone).eval()
    images, _ = next(batches())
    disturb(model.get_parameter(name) for name in strategy.learning(model))
    before = model.backbone.embed(images)
    strategy.finish(model, lambda: 0.0)
    torch.testing.assert_close(model.backbone.embed(images), before, rtol=1e-5, atol=1e-5)
    assert torch.equal(backbone.mid["stem"].weight, layer.weight)


def test_lora_takes_names_whole():
    backbone = Net()
    backbone.proj, backbone.tail = (
        nn.Conv2d(4, 4, 1),
        nn.ModuleDict({"proj": Standardised(4, 4, 1)}),
    )
    model = begun(Lora(layers="all", **LORA), backbone)
    assert hasattr(model.backbone.proj, "lora_A")
    assert not hasattr(model.backbone.tail["proj"], "lora_A")


def test_lora_of_attention_touches_its_linear_layers_alone():
    strategy = Lora(layers="attention", **LORA)
    model = begun(strategy)
    names = {n.partition(".lora_")[0] for n in strategy.learning(model)}
    assert names == {"backbone.attn.proj"}
    with pytest.raises(ConfigError, match=r"(?s)layers=attention.*strategy\.layers=all"):
        Lora(layers="attention", **LORA).trainable(Model(TimmBackbone("test_resnet", 3, 32)))


@pytest.mark.parametrize("network", ["test_resnet", "test_convnext", "test_vit"])
def test_ssf_scales_and_shifts_what_each_layer_puts_out(network):
    torch.manual_seed(0)
    plain = TimmBackbone(network, 3, 32).eval()
    strategy = Ssf(**BASE)
    model = begun(strategy, copy.deepcopy(plain)).eval()
    images = torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(model.backbone.embed(images), plain.embed(images), rtol=0, atol=0)

    disturb(model.get_parameter(name) for name in strategy.learning(model))
    layers = {n: m for n, m in plain.named_modules() if getattr(m, "weight", None) is not None}
    for name, layer in layers.items():
        found = model.backbone.get_submodule(name).parametrizations
        shift = found["bias"][0].shift if "bias" in found else torch.zeros(1)
        axis = 1 if isinstance(layer, nn.Conv2d) or "2d" in type(layer).__name__ else -1
        layer.register_forward_hook(scaled_and_shifted(found["weight"][0].scale, shift, axis))
    expected, tuned = plain.embed(images), model.backbone.embed(images)
    torch.testing.assert_close(tuned, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))

    strategy.finish(model, lambda: 0.0)
    torch.testing.assert_close(model.backbone.embed(images), tuned)
    assert model.backbone.state_dict().keys() == plain.state_dict().keys()


def scaled_and_shifted(scale, shift, axis):
    def hook(_module, _inputs, output):
        return (output.movedim(axis, -1) * scale + shift).movedim(-1, axis)

    return hook


def test_ssf_leaves_layers_alone_that_do_not_scale_with_weight_and_bias():
    strategy, backbone = Ssf(**BASE), Net()
    backbone.mid["stem"] = Standardised(4, 4, 3)
    backbone.wide = nn.ConvTranspose2d(4, 2, 2)
    names = {
        n.partition(".parametrizations")[0] for n in strategy.learning(begun(strategy, backbone))
    }
    assert names == {f"backbone.{n}" for n in ("stem.0", "stem.1", "attn.proj", "attn.mlp")}


STEPPED = {
    "l2_sp": lambda: L2Sp(alpha=0.1, beta=0.1, **BASE),
    "delta": lambda: Delta(alpha=1.0, **BASE),
    "lp_ft": lambda: LpFt(**PROBE),
    "wise_ft": lambda: WiseFt(**PROBE, mixing=(0.0, 0.5, 1.0)),
    "gradual_unfreezing": lambda: GradualUnfreezing(until=0.5, **BASE),
    "auto_rgn": lambda: AutoRgn(**BASE),
    "lora": lambda: Lora(layers="all", **LORA),
    "ssf": lambda: Ssf(**BASE),
}


@pytest.mark.parametrize("name", STEPPED)
def test_single_grey_images_in_bf16_train_all_that_is_declared(name):
    strategy = STEPPED[name]()
    model = begun(strategy, Net(channels=1))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    train(model, strategy, 6, shape=(1, 1, 8, 8), bf16=True)
    after = dict(model.named_parameters())
    assert all(bool(p.isfinite().all()) and p.dtype == torch.float32 for p in after.values())
    assert {n for n in before if not torch.equal(before[n], after[n])} == strategy.trainable(model)
    strategy.finish(model, lambda: 0.0)
    assert set(model.backbone.state_dict()) == set(Net(1).state_dict())


@pytest.mark.parametrize("name", STEPPED)
def test_on_pixels_the_head_learns_or_the_strategy_refuses(name):
    strategy, backbone = STEPPED[name](), Pixels(channels=3, size=4, image_size=8)
    if name in ("lora", "ssf"):
        with pytest.raises(ConfigError, match="choose another backbone"):
            strategy.trainable(Model(backbone))
        return
    model = begun(strategy, backbone)
    before = values(model)
    train(model, strategy, 6)
    strategy.finish(model, lambda: 0.0)
    moved = {n for n, value in values(model).items() if not torch.equal(value, before[n])}
    assert moved == {"head.weight", "head.bias"}
