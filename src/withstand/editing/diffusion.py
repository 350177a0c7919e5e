"""Backgrounds by a diffusion model in pixel space, led towards more or less complexity: the edit of ImageNet-E."""

import copy
import hashlib
from dataclasses import dataclass
from itertools import accumulate, repeat
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from withstand.errors import bad, missing_extra
from withstand.models import as_target, frozen


@dataclass(frozen=True)
class Schedule:
    """A diffusion of few steps out of one of many: float64 [S] each, step 0 is the cleanest.

    times: the step of the full diffusion that the model is told. kept: alpha-bar, the share of the picture's variance that
    is left. Between two kept steps beta_t = 1 - kept_t / kept_{t-1}, with kept_{-1} = 1.

    Reference: Nichol, Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, arXiv 2102.09672.
    """

    times: Tensor
    kept: Tensor

    @classmethod
    def respaced(cls, kept: Tensor, steps: int) -> "Schedule":
        """`steps` of the full diffusion's steps, its first and its last and evenly between. kept: [T]."""
        if not 1 <= steps <= len(kept):
            raise bad("steps", steps, f"1 to {len(kept)}, the steps that the model was trained with")
        stride = (len(kept) - 1) / max(steps - 1, 1)
        # added up, not multiplied: ties are then rounded as in the released code
        times = torch.tensor([round(t) for t in accumulate(repeat(stride, steps - 1), initial=0.0)])
        return cls(times, kept.double()[times])

    def __len__(self) -> int:
        return len(self.times)

    @property
    def before(self) -> Tensor:
        """alpha-bar one step earlier."""
        return torch.cat([self.kept.new_ones(1), self.kept[:-1]])

    @property
    def betas(self) -> Tensor:
        """The variance of the noise that each step adds."""
        return 1 - self.kept / self.before

    @property
    def variances(self) -> Tensor:
        """Of q(z_{t-1} | z_t, x): beta_t (1 - kept_{t-1}) / (1 - kept_t); 0 at the first step."""
        return self.betas * (1 - self.before) / (1 - self.kept)

    @property
    def log_variances(self) -> Tensor:
        """The logarithm, where the first step takes the second one's (its own beta, if there is none)."""
        first = self.variances[1:2] if len(self) > 1 else self.betas[:1]
        return torch.cat([first, self.variances[1:]]).log()

    def noised(self, x: Tensor, t: int, noise: Tensor) -> Tensor:
        """q(z_t | x) with this noise: sqrt(kept_t) x + sqrt(1 - kept_t) noise."""
        kept = float(self.kept[t])
        return kept**0.5 * x + (1 - kept) ** 0.5 * noise

    def mean(self, x: Tensor, z: Tensor, t: int) -> Tensor:
        """Of q(z_{t-1} | z_t, x)."""
        kept, before, beta = float(self.kept[t]), float(self.before[t]), float(self.betas[t])
        return (before**0.5 * beta * x + (1 - beta) ** 0.5 * (1 - before) * z) / (1 - kept)


class DiffusersPainter:
    """Noises a scene to the step `start` and takes the noise away again, around the object; a `Painter`.

    With x in [-1, 1], mask M = 1 on the object, z = q_sample(scene, start - 1) and for t = start - 1 .. 0, in respaced
    steps: the model gives mu, Sigma and its prediction x0 (not clipped); mu += Sigma G, where G is the gradient in z_t,
    through the model, of lambda Lc((x0 + 1) / 2) - range_weight mean((x0 - clip(x0, -1, 1))^2); z ~ N(mu, Sigma), at t = 0
    without noise; z = (1 - M) z + M q_sample(image, t), with fresh noise. What is painted is the last x0. Lc is
    `withstand.editing.spectrum.complexity`. With a label the guide leads away from it: G -= classifier_scale times the
    gradient of log p(label | x0) in x0, not through the model.

    pipeline: the local folder of an unconditional pipeline (a DDPMPipeline's, with `unet` and `scheduler` in it; weights as
    safetensors), or the model itself, images [N, 3, H, W] in [-1, 1] and steps [N] -> prediction, with a scheduler. A model
    of 6 output channels predicts its variance between the posterior's and beta (improved DDPM); others take the posterior's.
    scheduler: has `alphas_cumprod` and `config.prediction_type`. steps: of the respaced diffusion. start: how many of them
    are run; more change the background more, 0 returns the object on the scene. The paper's data were made with a number
    that no source confirms; its code offers 10 and 75. guide: a classifier, module or target, of images in [0, 1]; what it
    is shown may lie outside. It is asked in eval mode, on its own device and in its own type.
    resize: paint at the model's resolution and scale the background back; without it another resolution is refused.
    device: None leaves a model where it is.

    Raises: BadInput for a folder without such a model, settings out of range, images of another resolution, and a label
    without a guide; MissingExtra where a folder is given and diffusers is not installed.

    Reference: Li, Chen, Zhu, Wang, Zhang, Xue, "ImageNet-E: Benchmarking Neural Network Robustness via Attribute Editing",
    2023, arXiv 2303.17096; the blending is from Avrahami, Lischinski, Fried, "Blended Diffusion for Text-driven Editing of
    Natural Images", 2022, arXiv 2111.14818.
    """

    def __init__(
        self,
        pipeline: Any,
        scheduler: Any = None,
        steps: int = 100,
        start: int = 75,
        range_weight: float = 50.0,
        guide: Any = None,
        classifier_scale: float = 10.0,
        resize: bool = False,
        device: str | None = None,
    ) -> None:
        if isinstance(pipeline, (str, Path)):
            pipeline, scheduler = _loaded(Path(pipeline))
        self.schedule = Schedule.respaced(_kept(scheduler), steps)
        if not 0 <= start <= steps:
            raise bad("start", start, f"0 to {steps}, the number of steps")
        for name, value in (("range_weight", range_weight), ("classifier_scale", classifier_scale)):
            if value < 0:
                raise bad(name, value, "a number >= 0")
        self.model = pipeline.to(device).eval() if device else pipeline.eval()
        self.predicts = _setting(scheduler, "prediction_type", "epsilon")
        if self.predicts not in ("epsilon", "sample", "v_prediction"):
            raise bad("scheduler", f"prediction_type {self.predicts!r}", "epsilon, sample or v_prediction")
        if _setting(scheduler, "variance_type", "") == "learned":
            raise bad("scheduler", "variance_type 'learned'", "'learned_range' or a fixed one", "Convert the model.")
        if _setting(self.model, "in_channels", 3) != 3 or _setting(self.model, "out_channels", 3) not in (3, 6):
            raise bad("pipeline", "a model of other channels", "3 channels in, and 3 or 6 out")
        self.start, self.range_weight, self.resize = start, range_weight, resize
        self.guide, self.classifier_scale = guide, classifier_scale

    def led_by(self, guide: Any) -> "DiffusersPainter":
        """The same painter with this guide."""
        made = copy.copy(self)
        made.guide = guide
        return made

    def __repr__(self) -> str:
        """Equal for painters that paint alike: folders of edited images are continued by it."""
        digest = hashlib.sha256(f"{self.schedule.kept.tolist()} {self.predicts}".encode())
        for name, value in self.model.state_dict().items():
            digest.update(name.encode() + value.detach().cpu().float().numpy().tobytes())
        said = f"steps={len(self.schedule)}, start={self.start}, range_weight={self.range_weight}, resize={self.resize}"
        if self.guide is not None:
            said += f", guide={as_target(self.guide).fingerprint()[:12]}, classifier_scale={self.classifier_scale}"
        return f"DiffusersPainter({digest.hexdigest()[:12]}, {said})"

    def paint(
        self,
        scene: Tensor,
        image: Tensor,
        mask: Tensor,
        complexity: float,
        generator: Generator,
        label: int | None = None,
    ) -> Tensor:
        """See `withstand.editing.contract.Painter`; the object's pixels are those of `image`."""
        if label is not None and self.guide is None:
            raise bad("label", label, "none without a guide", "Give the painter a classifier: guide=model.")
        side = tuple(scene.shape[1:])
        wanted = self._resolution(side)
        small, shown, where = scene, image, mask
        if side != wanted:
            small, shown = (_scaled(x, wanted) for x in (scene, image))
            where = F.interpolate(mask[None, None].float(), size=wanted, mode="nearest")[0, 0] > 0.5
        painted = self._paint(small, shown, where, complexity, generator, label) if self.start else small
        if side != wanted:
            painted = _scaled(painted, side)
        return torch.where(mask, image, painted)

    def _paint(
        self, scene: Tensor, image: Tensor, mask: Tensor, weight: float, generator: Generator, label: int | None
    ) -> Tensor:
        weights = next(self.model.parameters(), scene)
        scene, image = (x.to(weights.device)[None].float() * 2 - 1 for x in (scene, image))
        object_, schedule = mask.to(weights.device), self.schedule

        def noise() -> Tensor:  # drawn where the generator is, so that every device paints alike
            return torch.randn(scene.shape, generator=generator, device=generator.device).to(scene)

        z, x0 = schedule.noised(scene, self.start - 1, noise()), scene
        for t in reversed(range(self.start)):
            mean, log_variance, x0 = self._step(z, t, weight, label)
            z = mean + (0.5 * log_variance).exp() * noise() if t else mean
            z = torch.where(object_, schedule.noised(image, t, noise()), z)
        return (x0[0] / 2 + 0.5).clamp(0, 1).to(mask.device)

    def _step(self, z: Tensor, t: int, weight: float, label: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """The led mean of z_{t-1}, its log-variance, and the prediction."""
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            x0, log_variance = self._predict(z, t)
            outside = (x0 - x0.clamp(-1, 1)).square().mean()
            aim = weight * complexity_of((x0[0] + 1) / 2) - self.range_weight * outside
            lead = torch.autograd.grad(aim, z)[0]
        x0, log_variance = x0.detach(), log_variance.detach()
        if label is not None and self.guide is not None:
            lead = lead - self.classifier_scale * self._away(x0, label)
        return self.schedule.mean(x0, z.detach(), t) + log_variance.exp() * lead, log_variance, x0

    def _predict(self, z: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """The picture that the model sees behind the noise, and the log-variance of the step."""
        schedule, kept = self.schedule, float(self.schedule.kept[t])
        dtype = next(self.model.parameters(), z).dtype
        said = self.model(z.to(dtype), schedule.times[t].repeat(len(z)).to(z.device))
        said = (said if isinstance(said, Tensor) else said.sample).float()
        log_variance = z.new_tensor(float(schedule.log_variances[t]))
        if said.shape[1] == 2 * z.shape[1]:
            said, between = said.chunk(2, 1)
            share = (between + 1) / 2
            log_variance = share * float(schedule.betas[t].log()) + (1 - share) * log_variance
        if self.predicts == "sample":
            return said, log_variance
        if self.predicts == "v_prediction":
            return kept**0.5 * z - (1 - kept) ** 0.5 * said, log_variance
        return (z - (1 - kept) ** 0.5 * said) / kept**0.5, log_variance

    def _away(self, x0: Tensor, label: int) -> Tensor:
        """The gradient of log p(label | x0), which the step goes against."""
        guide = as_target(self.guide)
        if guide.module is None:
            raise bad("guide", guide.name, "a classifier with gradients, such as a torch module")
        shown = x0.clone().to(next(guide.module.parameters(), x0)).requires_grad_()
        with torch.enable_grad(), frozen(guide.module):
            logits = guide(shown / 2 + 0.5)
            if not 0 <= label < logits.shape[1]:
                raise bad("label", label, f"0 to {logits.shape[1] - 1}, a class of the guide")
            return torch.autograd.grad(logits.log_softmax(1)[0, label], shown)[0].to(x0)

    def _resolution(self, side: tuple[int, ...]) -> tuple[int, ...]:
        """What is painted at: the model's resolution, where it has one."""
        size = _setting(self.model, "sample_size", None)
        wanted = side if size is None else (size, size) if isinstance(size, int) else tuple(size)
        if wanted != side and not self.resize:
            mend = "Resize the images, or let the painter do it: resize=True."
            raise bad("image", f"{side[0]} x {side[1]} pixels", f"{wanted[0]} x {wanted[1]}, the model's own", mend)
        return wanted


def _loaded(folder: Path) -> tuple[Any, Any]:
    """The model and the scheduler of a pipeline's folder. Nothing is fetched, and no pickle is read."""
    try:
        from diffusers import DDPMScheduler, UNet2DModel
    except ImportError as error:
        raise missing_extra("diffusers", "generative", "painting with a diffusion model") from error
    wanted = [folder / "unet" / "config.json", folder / "scheduler" / "scheduler_config.json"]
    if lacking := [str(path) for path in wanted if not path.is_file()]:
        allowed = (
            "the local folder of an unconditional pipeline, as DDPMPipeline(unet, scheduler).save_pretrained makes"
        )
        raise bad("pipeline", f"{folder}, without {' and '.join(lacking)}", allowed)
    try:
        model = UNet2DModel.from_pretrained(folder / "unet", use_safetensors=True, local_files_only=True)
        return model, DDPMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise bad(
            "pipeline", f"{folder} ({error})", "a UNet2DModel with weights as safetensors, and its scheduler"
        ) from error


def _kept(scheduler: Any) -> Tensor:
    """alpha-bar of the full diffusion, [T]."""
    kept = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(kept, Tensor) or kept.dim() != 1:
        raise bad("scheduler", repr(scheduler), "one with alphas_cumprod, such as diffusers' DDPMScheduler")
    if not bool(((kept > 0) & (kept < 1)).all()) or not bool((kept[1:] < kept[:-1]).all()):
        raise bad("scheduler", "an alphas_cumprod that does not fall within (0, 1)", "falling values between 1 and 0")
    return kept.cpu()


def _setting(thing: Any, name: str, default: Any) -> Any:
    return getattr(getattr(thing, "config", None), name, default)


def complexity_of(x: Tensor) -> Tensor:
    """`withstand.editing.spectrum.complexity` of x [C, H, W], as a tensor that gradients go through."""
    return torch.fft.fft2(x).abs().mean()


def _scaled(x: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.interpolate(x[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0].clamp(0, 1)
