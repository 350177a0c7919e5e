"""Stage 3 of ImageNet-E against naive references, and an analytic denoiser whose every step is known in closed form."""

import builtins
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from withstand.editing import ObjectEditor, complexity
from withstand.editing.diffusion import DiffusersPainter, Schedule, complexity_of
from withstand.editing.imagenet_e import against, edit_as
from withstand.errors import BadInput, MissingExtra
from withstand.protocols import Space

BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
KEPT = (1 - BETAS).cumprod(0)
SIDE = 12


class Gaussian(nn.Module):
    """The exact denoiser of pixels N(m, s^2) in [-1, 1] units: E[x | z] = m + s^2 a / (a^2 s^2 + 1 - a^2) (z - a m)."""

    def __init__(self, m=0.2, s=0.3, predicts="epsilon", between=None):
        super().__init__()
        self.m, self.s, self.predicts, self.between = m, s, predicts, between

    def line(self, t):
        """slope, offset of E[x | z] in z."""
        kept = float(KEPT[int(t)])
        slope = self.s**2 * kept**0.5 / (kept * self.s**2 + 1 - kept)
        return slope, self.m * (1 - slope * kept**0.5)

    def forward(self, z, t):
        kept = float(KEPT[int(t)])
        slope, offset = self.line(t)
        x = slope * z + offset
        noise = (z - kept**0.5 * x) / (1 - kept) ** 0.5
        said = {"epsilon": noise, "sample": x, "v_prediction": kept**0.5 * noise - (1 - kept) ** 0.5 * x}[self.predicts]
        return said if self.between is None else torch.cat([said, torch.full_like(said, self.between)], 1)


def scheduler(predicts="epsilon", **config):
    return SimpleNamespace(alphas_cumprod=KEPT, config=SimpleNamespace(prediction_type=predicts, **config))


def painter(model=None, **settings):
    settings = {"steps": 10, "start": 8, **settings}
    return DiffusersPainter(model or Gaussian(), scheduler(getattr(model, "predicts", "epsilon")), **settings)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def scene():
    """A scene, the picture with its object, and where the object is."""
    draw = seeded(5)
    behind, shown = torch.rand(3, SIDE, SIDE, generator=draw), torch.rand(3, SIDE, SIDE, generator=draw)
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[4:8, 3:7] = True
    return behind, torch.where(mask, shown, behind), mask


# The schedule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 7, 21, 91, 100, 1000])  # at 21 and 91 sums are rounded as products are not
def test_respacing_is_that_of_improved_ddpm(steps):
    stride, at, times = (len(KEPT) - 1) / max(steps - 1, 1), 0.0, []
    for _ in range(steps):
        times.append(round(at))
        at += stride
    betas, last = [], 1.0
    for t in times:
        betas.append(1 - float(KEPT[t]) / last)
        last = float(KEPT[t])
    made = Schedule.respaced(KEPT, steps)
    assert made.times.tolist() == times
    assert made.betas.tolist() == pytest.approx(betas, rel=1e-12)
    kept = np.cumprod(1 - np.array(betas))
    assert made.kept.tolist() == pytest.approx(kept.tolist(), rel=1e-9)
    before = np.append(1.0, kept[:-1])
    assert made.variances.tolist() == pytest.approx((betas * (1 - before) / (1 - kept)).tolist(), rel=1e-9, abs=1e-15)
    assert made.log_variances[1:].exp().tolist() == pytest.approx(made.variances[1:].tolist(), rel=1e-12)
    assert made.log_variances[0] == (made.log_variances[1] if steps > 1 else math.log(betas[0]))


def test_the_posterior_is_bayes_rule_for_two_gaussians():
    made, z, x = Schedule.respaced(KEPT, 20), 0.7, -0.4
    for t in (1, 10, 19):
        before, beta = float(made.before[t]), float(made.betas[t])
        precision = 1 / (1 - before) + (1 - beta) / beta  # z_{t-1} ~ N(sqrt(before) x, 1 - before), z_t given it
        mean = (before**0.5 * x / (1 - before) + (1 - beta) ** 0.5 * z / beta) / precision
        assert float(made.mean(torch.tensor(x), torch.tensor(z), t)) == pytest.approx(mean, rel=1e-5)
        assert float(made.variances[t]) == pytest.approx(1 / precision, rel=1e-9)


def test_all_steps_of_a_schedule_are_those_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(clip_sample=False)
    made = Schedule.respaced(theirs.alphas_cumprod, 25)
    theirs.set_timesteps(timesteps=made.times.flip(0).tolist())
    z, noise = torch.randn(2, 1, 3, 4, 4, generator=seeded())
    for t in range(1, 25):
        kept = float(made.kept[t])
        x = (z - (1 - kept) ** 0.5 * noise) / kept**0.5
        step = theirs.step(noise, int(made.times[t]), z, generator=seeded(t)).prev_sample
        ours = made.mean(x, z, t) + float(made.variances[t]) ** 0.5 * torch.randn(z.shape, generator=seeded(t))
        assert torch.allclose(step, ours, atol=2e-5)


# Painting ------------------------------------------------------------------------------------------------------------


def naive(model, behind, shown, mask, weight, generator, steps=10, start=8, range_weight=50.0, pull=None, share=None):
    """Stage 3 written out in numpy for the analytic denoiser, its gradients by hand."""
    made = Schedule.respaced(KEPT, steps)
    draw = lambda: torch.randn(1, 3, SIDE, SIDE, generator=generator).numpy().astype(float)[0]  # noqa: E731
    behind, shown = (x.numpy().astype(float) * 2 - 1 for x in (behind, shown))
    kept = made.kept.numpy()
    z = math.sqrt(kept[start - 1]) * behind + math.sqrt(1 - kept[start - 1]) * draw()
    for t in range(start - 1, -1, -1):
        before = kept[t - 1] if t else 1.0
        beta = 1 - kept[t] / before
        variance = math.exp(float(made.log_variances[t]))
        if share is not None:
            variance = math.exp(share * math.log(beta) + (1 - share) * math.log(variance))
        slope, offset = model.line(made.times[t])
        x = slope * z + offset
        waves = np.fft.fft2((x + 1) / 2)
        rise = np.fft.ifft2(waves / np.abs(waves)).real / len(x) / 2
        outside = 2 * (x - np.clip(x, -1, 1)) / x.size
        lead = slope * (weight * rise - range_weight * outside)
        if pull is not None:
            lead = lead + pull
        mean = math.sqrt(before) * beta / (1 - kept[t]) * x + math.sqrt(1 - beta) * (1 - before) / (1 - kept[t]) * z
        z = mean + variance * lead
        if t:
            z = z + math.sqrt(variance) * draw()
        z = np.where(mask.numpy(), math.sqrt(kept[t]) * shown + math.sqrt(1 - kept[t]) * draw(), z)
    return np.clip((x + 1) / 2, 0, 1)


@pytest.mark.parametrize("predicts", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("weight", [0.0, 30.0, -30.0])
def test_painting_is_the_written_out_loop(scene, predicts, weight):
    behind, shown, mask = scene
    model = Gaussian(m=0.8, s=0.6, predicts=predicts)  # a good part of its pixels is out of range
    made = painter(model).paint(behind, shown, mask, weight, seeded(3))
    expected = naive(model, behind, shown, mask, weight, seeded(3))
    assert np.abs(np.where(mask, shown, expected) - made.numpy()).max() < 2e-4


def test_a_learned_variance_lies_between_the_posteriors_and_beta(scene):
    behind, shown, mask = scene
    for between, share in ((-1.0, 0.0), (1.0, 1.0), (0.2, 0.6)):
        made = painter(Gaussian(between=between)).paint(behind, shown, mask, 20.0, seeded(3))
        expected = naive(Gaussian(), behind, shown, mask, 20.0, seeded(3), share=share)
        assert np.abs(np.where(mask, shown, expected) - made.numpy()).max() < 2e-4


def test_the_guide_pulls_against_the_gradient_of_its_log_probability(scene):
    behind, shown, mask = scene
    direction = torch.randn(3, SIDE, SIDE, generator=seeded(9))

    class Guide(nn.Module):
        """Two classes whose log-probabilities fall to (0, -score): the gradient of class 1 is nearly -direction."""

        def forward(self, x):
            score = (x * direction).sum((1, 2, 3)) + 1e4
            return torch.stack([torch.zeros_like(score), -score], 1)

    led = painter(guide=Guide(), classifier_scale=10.0)
    made = led.paint(behind, shown, mask, 20.0, seeded(3), label=1)
    expected = naive(Gaussian(), behind, shown, mask, 20.0, seeded(3), pull=10.0 * direction.numpy() / 2)
    assert np.abs(np.where(mask, shown, expected) - made.numpy()).max() < 2e-4
    plain = led.paint(behind, shown, mask, 20.0, seeded(3))
    assert torch.equal(plain, painter().paint(behind, shown, mask, 20.0, seeded(3)))  # without a label none is led away


def test_unled_samples_have_the_moments_of_the_chain():
    """Everything is linear and Gaussian: mean and variance of the last prediction follow a recursion."""
    model, side, steps, start = Gaussian(m=-0.1, s=0.2), 64, 50, 30
    made = painter(model, steps=steps, start=start, range_weight=0.0)
    nowhere, white = torch.zeros(side, side, dtype=torch.bool), torch.ones(3, side, side)
    seen = made.paint(white, white, nowhere, 0.0, seeded(1)).numpy() * 2 - 1
    kept = Schedule.respaced(KEPT, steps)
    mean, variance = float(kept.kept[start - 1]) ** 0.5, 1 - float(kept.kept[start - 1])
    for t in reversed(range(start)):
        slope, offset = model.line(kept.times[t])
        before, beta, left = float(kept.before[t]), float(kept.betas[t]), 1 - float(kept.kept[t])
        to_x, to_z = before**0.5 * beta / left, (1 - beta) ** 0.5 * (1 - before) / left
        if t:
            gain = to_x * slope + to_z
            mean, variance = gain * mean + to_x * offset, gain**2 * variance + float(kept.variances[t])
    mean, variance = slope * mean + offset, slope**2 * variance
    assert seen.mean() == pytest.approx(mean, abs=5 * (variance / seen.size) ** 0.5)
    assert seen.var() == pytest.approx(variance, rel=5 * (2 / seen.size) ** 0.5)


@pytest.mark.parametrize("weight", [-20.0, 0.0, 20.0])
def test_the_object_is_untouched_bit_for_bit(scene, weight):
    behind, shown, mask = scene
    made = painter().paint(behind, shown, mask, weight, seeded())
    assert torch.equal(made[:, mask], shown[:, mask])
    assert not torch.equal(made[:, ~mask], shown[:, ~mask])
    assert made.dtype == torch.float32
    assert 0 <= float(made.min()) <= float(made.max()) <= 1


def test_no_step_returns_the_object_on_the_scene(scene):
    behind, shown, mask = scene
    assert torch.equal(painter(start=0).paint(behind, shown, mask, 20.0, seeded()), torch.where(mask, shown, behind))


def test_more_steps_leave_less_of_the_scene(scene):
    behind, shown, mask = scene
    away = [
        float(
            (painter(start=start, steps=50).paint(behind, shown, mask, 0.0, seeded()) - behind)[:, ~mask].abs().mean()
        )
        for start in (1, 10, 40)
    ]
    assert away[0] < 0.05 < away[1] < away[2]


def test_the_same_seed_paints_alike_and_another_differently(scene):
    once, again, other = (painter().paint(*scene, 20.0, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_complexity_rises_with_its_weight(scene):
    found = [
        [
            float(complexity_of(painter(steps=25, start=20).paint(*scene, w, seeded(s))))
            for w in (-40.0, -20.0, 0.0, 20.0, 40.0)
        ]
        for s in range(4)
    ]
    assert all(np.diff(np.mean(found, 0)) > 0)


def test_what_gradients_go_through_is_the_measure_of_complexity(scene):
    for x in (*scene[:2], torch.full((3, 9, 14), 0.4), torch.rand(3, 9, 14, generator=seeded())):
        assert float(complexity_of(x)) == pytest.approx(complexity(x), rel=1e-5)


def test_without_complexity_a_background_edit_is_the_control(scene):
    """lambda = 0 is the pass through the pipeline, for the same seed and image."""
    _, shown, mask = scene
    control, plain = (
        edit_as("inver", ObjectEditor(painter=painter()), shown, mask, key=4),
        ObjectEditor(painter=painter()).edit(shown, mask, "background", key=4, complexity=0.0),
    )
    assert torch.equal(control.image, plain.image)
    assert not torch.equal(control.image, edit_as("20", ObjectEditor(painter=painter()), shown, mask, key=4).image)


def test_the_adversarial_edit_leads_the_painter_itself(scene):
    _, shown, mask = scene
    torch.manual_seed(0)
    guide = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 4))
    plain = ObjectEditor(painter=painter())
    led = edit_as("20-adv", against(plain, guide), shown, mask, key=4, label=2)
    expected = ObjectEditor(painter=painter(guide=guide)).edit(shown, mask, "background", key=4, label=2)
    assert torch.equal(led.image, expected.image)
    log_p = [
        float(guide(r.image[None]).log_softmax(1)[0, 2].detach())
        for r in (edit_as("20", plain, shown, mask, key=4), led)
    ]
    assert log_p[1] < log_p[0]
    assert plain.painter.guide is None


def test_the_guide_is_asked_in_eval_mode_and_left_as_it_was(scene):
    torch.manual_seed(0)
    guide = (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(400, 4))
        .double()
        .train()
    )
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    made = [painter(guide=guide).paint(*scene, 20.0, seeded(), label=1) for _ in range(2)]
    assert torch.equal(*made)
    assert guide.training
    assert all(torch.equal(value, before[name]) for name, value in guide.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in guide.parameters())


def test_a_guide_without_gradients_is_refused(scene):
    class Remote:
        name, task, access, space, module = "remote", "classification", frozenset({"scores"}), Space(), None

        def fingerprint(self):
            return "remote"

        def __call__(self, x):
            return torch.zeros(len(x), 4)

    with pytest.raises(BadInput, match=r"remote.*gradients"):
        painter(guide=Remote()).paint(*scene, 20.0, seeded(), label=1)


def test_the_model_is_told_one_step_for_each_image(scene):
    class Strict(Gaussian):
        def forward(self, z, t):
            assert t.shape == (len(z),)
            return super().forward(z, t)

    painter(Strict()).paint(*scene, 20.0, seeded())


def test_painters_that_paint_differently_say_so():
    torch.manual_seed(0)
    one, two = (nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 4)) for _ in range(2))
    other = scheduler()
    other.alphas_cumprod = KEPT**1.5
    made = [
        painter(), painter(Gaussian(predicts="sample")), DiffusersPainter(Gaussian(), other, steps=10, start=8),
        painter(guide=one), painter(guide=two), painter(guide=one, classifier_scale=5.0),
    ]  # fmt: skip
    assert len({repr(p) for p in made}) == len(made)
    assert repr(painter(guide=one)) == repr(painter(guide=one))


def test_the_model_is_left_as_it_was(scene):
    class Trained(Gaussian):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, z, t):
            return super().forward(z, t) * self.scale

    model = Trained()
    painter(model).paint(*scene, 20.0, seeded())
    assert model.scale.grad is None
    assert model.scale.requires_grad


# A U-Net of diffusers ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    place = tmp_path_factory.mktemp("ddpm")
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(place)
    return place


def test_a_folder_of_a_pipeline_paints(folder):
    made = DiffusersPainter(folder, steps=10, start=4)
    x, mask = torch.rand(3, 8, 8, generator=seeded()), torch.eye(8, dtype=torch.bool)
    painted = made.paint(x, x, mask, 20.0, seeded(1))
    assert torch.equal(painted[:, mask], x[:, mask])
    assert torch.equal(painted, DiffusersPainter(str(folder), steps=10, start=4).paint(x, x, mask, 20.0, seeded(1)))
    assert not torch.equal(painted, made.paint(x, x, mask, -20.0, seeded(1)))
    assert all(p.grad is None for p in made.model.parameters())
    assert (
        repr(made)
        == repr(DiffusersPainter(folder, steps=10, start=4))
        != repr(DiffusersPainter(folder, steps=10, start=5))
    )
    with torch.no_grad():
        next(made.model.parameters()).add_(1)
    assert repr(made) != repr(DiffusersPainter(folder, steps=10, start=4))


def test_another_resolution_is_refused_unless_resizing_is_asked_for(folder):
    x, mask = torch.rand(3, 12, 16, generator=seeded()), torch.zeros(12, 16, dtype=torch.bool)
    mask[3:9, 5:10] = True
    with pytest.raises(BadInput, match=r"12 x 16 pixels.*8 x 8.*resize=True"):
        DiffusersPainter(folder, start=1).paint(x, x, mask, 0.0, seeded())
    painted = DiffusersPainter(folder, steps=10, start=1, resize=True).paint(x, x, mask, 0.0, seeded())
    assert painted.shape == x.shape
    assert torch.equal(painted[:, mask], x[:, mask])


def test_a_folder_that_holds_no_pipeline_is_refused(tmp_path, folder):
    with pytest.raises(BadInput, match=r"pipeline.*without .*unet"):
        DiffusersPainter(tmp_path)
    with pytest.raises(BadInput, match="google/ddpm"):  # a name on a hub is no folder
        DiffusersPainter("google/ddpm-cifar10-32")


def test_missing_diffusers_is_said(tmp_path, monkeypatch):
    real = builtins.__import__

    def gone(name, *args, **kwargs):
        if name.split(".")[0] == "diffusers":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", gone)
    with pytest.raises(MissingExtra, match=r"withstand\[generative\]"):
        DiffusersPainter(tmp_path)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 1001}, "1000"),
        ({"start": 11}, "start"),
        ({"start": -1}, "start"),
        ({"range_weight": -1.0}, "range_weight"),
        ({"classifier_scale": -1.0}, "classifier_scale"),
    ],
)
def test_settings_out_of_range_are_refused(settings, said):
    with pytest.raises(BadInput, match=said):
        painter(**settings)


def test_schedulers_that_cannot_serve_are_refused():
    for given, said in (
        (None, "alphas_cumprod"),
        (scheduler("flow"), "prediction_type 'flow'"),
        (scheduler(variance_type="learned"), "learned_range"),
        (SimpleNamespace(alphas_cumprod=torch.tensor([0.9, 0.0])), "fall"),
        (SimpleNamespace(alphas_cumprod=torch.tensor([0.5, 0.9])), "fall"),
    ):
        with pytest.raises(BadInput, match=said):
            DiffusersPainter(Gaussian(), given, steps=2, start=1)


def test_a_model_of_other_channels_is_refused():
    grey = Gaussian()
    grey.config = SimpleNamespace(in_channels=1, out_channels=1)
    with pytest.raises(BadInput, match="channels"):
        painter(grey)


def test_a_label_needs_a_guide_that_knows_it(scene):
    with pytest.raises(BadInput, match="guide"):
        painter().paint(*scene, 20.0, seeded(), label=1)
    guide = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 4))
    with pytest.raises(BadInput, match="0 to 3"):
        painter(guide=guide).paint(*scene, 20.0, seeded(), label=4)
