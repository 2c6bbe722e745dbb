"""Masks, from their files to the losses and figures."""

import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from nelf import metrics
from nelf.cameras import Camera
from nelf.data import Scene, SceneDataModule, Split, read_scene, read_views, with_pseudo_views, write_scene
from nelf.data.batches import Batches, sample_rays
from nelf.errors import UserError
from nelf.lightfields import GridR2L
from nelf.paths import hemisphere
from nelf.rendering import Rendering
from nelf.report.evaluation import evaluate
from nelf.scene import Geometry
from nelf.systems import Student

WIDTH, HEIGHT = 8, 6
RNG = np.random.default_rng(5)
MASK = RNG.random((HEIGHT, WIDTH)) < 0.6  # True where an image counts


def save(path, mask, value=255, mode="L"):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray((mask * value).astype(np.uint8)).convert(mode).save(path)


def write(root, masks, count=4, width=WIDTH, height=HEIGHT):
    """Views of random colors; ``masks`` maps a number to the ``mask_path`` of its frame."""
    (root / "im").mkdir(parents=True)
    frames = []
    for index, pose in enumerate(hemisphere(count, 4.0).tolist()):
        frames.append({"file_path": f"im/{index}.png", "transform_matrix": pose})
        frames[-1] |= {"mask_path": masks[index]} if index in masks else {}
        Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(root / "im" / f"{index}.png")
    (root / "transforms.json").write_text(json.dumps({"camera_angle_x": 0.7, "frames": frames}))
    return root


# ------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(("value", "mode"), [(255, "L"), (1, "L"), (255, "1"), (9, "RGB"), (255, "RGBA"), (255, "LA")])
def test_a_pixel_of_a_mask_counts_unless_it_is_zero(tmp_path, value, mode):
    root = write(tmp_path / "s", {1: "masks/a.png"})
    save(root / "masks" / "a.png", MASK, value, mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        views = read_views(root)
    assert [mask is None for mask in views.masks] == [True, False, True, True]
    np.testing.assert_array_equal(views.masks[1], MASK)
    np.testing.assert_array_equal(views[1].mask, MASK)
    assert views[0].mask is None


def test_instant_ngp_s_dynamic_masks_mark_what_does_not_count(tmp_path):
    root = write(tmp_path / "s", {2: "masks/a.png"})
    save(root / "im" / "dynamic_mask_1.png", ~MASK)
    save(root / "im" / "dynamic_mask_2.png", MASK)  # beside a frame that says otherwise
    save(root / "masks" / "a.png", MASK)
    views = read_views(root)
    np.testing.assert_array_equal(views.masks[1], MASK)
    np.testing.assert_array_equal(views.masks[2], MASK)


def test_a_mask_of_another_size_is_scaled_and_it_is_said_once(tmp_path):
    root = write(tmp_path / "s", {0: "a.png", 1: "a.png", 2: "b.png", 3: "c.png"})
    save(root / "a.png", MASK.repeat(3, 0).repeat(3, 1))  # three times as large
    save(root / "b.png", MASK[::2, ::2])  # half as large
    save(root / "c.png", MASK)
    with pytest.warns(UserWarning, match="nearest neighbor") as caught:
        read_scene(root)
    views = read_views(root)
    words = [str(each.message) for each in caught]
    assert len(words) == 1
    assert words[0].endswith("a.png: is 24x18, its image 8x6; scaled to it by nearest neighbor (2 masks).")
    np.testing.assert_array_equal(views.masks[0], MASK)
    np.testing.assert_array_equal(views.masks[1], MASK)
    np.testing.assert_array_equal(views.masks[2], MASK[::2, ::2].repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(views.masks[3], MASK)


def test_of_reduced_images_a_pixel_counts_if_all_that_it_is_made_of_does(tmp_path):
    root = write(tmp_path / "s", {index: "a.png" for index in range(4)})
    mask = np.ones((HEIGHT, WIDTH), bool)
    mask[1, 2] = mask[5, 7] = False
    save(root / "a.png", mask)
    expected = np.ones((3, 4), bool)
    expected[0, 1] = expected[2, 3] = False
    np.testing.assert_array_equal(read_views(root, width=4).masks[0], expected)


def test_views_that_count_as_a_whole_have_no_masks(tmp_path):
    root = write(tmp_path / "s", {index: "a.png" for index in range(4)})
    save(root / "a.png", np.ones((HEIGHT, WIDTH), bool))
    assert read_views(root).masks is None


def test_masks_that_are_refused(tmp_path):
    cases = [
        ("none.png", lambda path: None, r"frame 1: no mask none\.png in"),
        ("empty.png", lambda path: save(path, np.zeros((HEIGHT, WIDTH), bool)), "leaves no pixel of its view"),
        ("text.png", lambda path: path.write_text("mask"), "not a readable image"),
        ("deep.png", lambda path: Image.fromarray(np.ones((6, 8), np.uint16)).save(path), "allowed: 8 bits"),
        ("../out.png", lambda path: None, r"mask_path points outside .* \(\.\./out\.png\)"),
        ("/etc/hosts", lambda path: None, "mask_path points outside"),
        (["a.png"], lambda path: None, r"mask_path is \['a\.png'\]; allowed: the name of a file"),
    ]
    for number, (stated, make, message) in enumerate(cases):
        root = write(tmp_path / str(number), {1: stated})
        make(root / str(stated))
        with pytest.raises(UserError, match=message) as caught:
            read_scene(root)
        assert "\n" not in str(caught.value)


def test_splits_and_scenes_keep_their_masks(tmp_path):
    root = write(tmp_path / "s", {index: f"{index}.png" for index in range(0, 12, 2)}, count=12)
    for index in range(0, 12, 2):
        save(root / f"{index}.png", MASK & (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) != index))
    scene = read_scene(root, holdout=4)
    for split in (scene.train, scene.val, scene.test):
        for place, name in enumerate(split.names):
            index = int(name.split("/")[1])
            assert (split[place].mask is None) == (index % 2 == 1)
            if index % 2 == 0:
                assert not split[place].mask.ravel()[index]
                assert split[place].mask.sum() >= MASK.sum() - 1
    pseudo = write(tmp_path / "pseudo", {})
    both = with_pseudo_views(scene, pseudo).train
    assert [mask is None for mask in both.masks[:4]] == [True] * 4
    assert both.masks[4:] == scene.train.masks
    with pytest.raises(ValueError, match="views without masks"):
        write_scene(tmp_path / "again", scene)
    before = scene.digest
    save(root / "2.png", np.random.default_rng(1).random((60, 80)) < 0.5)
    with pytest.warns(UserWarning, match="nearest neighbor"):
        assert read_scene(root, holdout=4).digest != before


def test_masks_of_another_shape_are_no_split_s():
    camera, images = Camera.from_fov(hemisphere(2, 4.0), 0.7, 8, 6), np.zeros((2, 6, 8, 3), np.uint8)
    for masks in ([MASK], [MASK.T, None]):
        with pytest.raises(ValueError, match=r"`masks` of shape \(2, 6, 8\)"):
            Split(camera, images, ["a", "b"], masks=masks)
    with pytest.raises(ValueError, match="leave a pixel"):
        Split(camera, images, ["a", "b"], masks=[None, MASK & False])


# ------------------------------------------------------------------------------------------- training


def masked(count=3, width=WIDTH, height=HEIGHT, mask=MASK):
    """Views whose red is 255 where they do not count; the first counts as a whole, and has no red at all."""
    images = np.random.default_rng(1).integers(0, 200, (count, height, width, 4), dtype=np.uint8)
    images[..., 3] = 255
    masks = [None, *[np.roll(mask, index) for index in range(1, count)]]
    for image, own in zip(images, masks, strict=True):
        image[..., 0] = 0 if own is None else 255 * ~own
    return Split(Camera.from_fov(hemisphere(count, 4.0), 0.7, width, height), images, [*"abcdef"][:count], masks=masks)


@pytest.mark.parametrize("sampling", ["all_images", "same_image"])
def test_rays_are_drawn_of_what_counts_only_and_of_all_of_it(sampling):
    split = masked()
    drawn = [sample_rays(split, 500, np.random.default_rng(seed), sampling) for seed in range(8)]
    rgba = torch.cat([batch.rgba for batch in drawn])
    assert (rgba[:, 0] == 0).all()
    if sampling == "all_images":  # each pixel that counts is as likely as any other
        kinds, counts = rgba.unique(dim=0, return_counts=True)
        total = sum(HEIGHT * WIDTH if mask is None else mask.sum() for mask in split.masks)
        assert len(kinds) == total
        assert counts.float().mean() == pytest.approx(4000 / total)
        assert counts.max() < 4 * counts.float().mean()
    # Colors and rays are still those of the same pixel.
    batch = drawn[0]
    places = {tuple(color): (view, row, column) for view, row, column, color in _pixels(split)}
    for index in range(0, 500, 50):
        view, row, column = places[tuple((batch.rgba[index] * 255).round().int().tolist())]
        expected = split.camera[view].pixel_rays(torch.tensor([column]), torch.tensor([row])).directions[0]
        torch.testing.assert_close(batch.rays.directions[index], expected)


def _pixels(split):
    for view, image in enumerate(split.images):
        for row, line in enumerate(image.tolist()):
            for column, color in enumerate(line):
                yield view, row, column, color


def test_a_split_without_masks_draws_what_it_always_drew():
    split = replace(masked(), masks=None)
    rng = np.random.default_rng(3)
    pixels, views = rng.integers(HEIGHT * WIDTH, size=100), rng.integers(3, size=100)
    expected = split.images[views, pixels // WIDTH, pixels % WIDTH]
    drawn = sample_rays(split, 100, np.random.default_rng(3)).rgba
    np.testing.assert_array_equal((drawn * 255).round().numpy(), expected)


def test_a_file_of_shuffled_pixels_gives_what_counts_only(tmp_path):
    root = write(tmp_path / "pseudo", {}, count=2)
    pseudo = with_pseudo_views(_scene(masked(), tmp_path), root, for_rays=True).train
    rays, rgba = pseudo.rays(0, 200, 0)
    again, _ = pseudo.rays(0, 200, 0)
    assert torch.equal(rays.directions, again.directions)
    views = pseudo.file.read(0, 200, 0)[0]
    assert (views >= 2).sum() > 50
    reds = {tuple(color) for split in (masked(),) for _, _, _, color in _pixels(split) if color[0] == 255}
    assert not any(tuple(color) in reds for color in (rgba * 255).round().int().tolist())
    batch = Batches(pseudo, "rays", 64).batch(0)
    assert len(batch.rgba) == 64
    found = pseudo.seen(*(np.array(values) for values in _where(pseudo, batch)))
    assert found.all()


def _where(split, batch):
    """Views, rows and columns of rays, by their directions and origins."""
    whole = split.camera.rays()
    key = torch.cat([whole.origins, whole.directions], -1).flatten(0, 2)
    own = torch.cat([batch.rays.origins, batch.rays.directions], -1)
    index = (own[:, None] - key).abs().sum(-1).argmin(1)
    return np.unravel_index(index.numpy(), whole.origins.shape[:3])


def _scene(split, tmp_path):
    scene = read_scene(write(tmp_path / "real", {}))
    return replace(scene, train=split)


def test_batches_of_views_have_their_masks():
    split = masked()
    batch = Batches(split, "views", 3).batch(0)
    assert batch.mask.shape == (3, HEIGHT, WIDTH)
    assert torch.equal(batch.mask, batch.rgba[..., 0] != 255)
    assert Batches(replace(split, masks=None), "views", 3).batch(0).mask is None


@pytest.mark.parametrize("whole_views", [False, True])
def test_what_does_not_count_has_no_weight_in_a_student_s_loss(whole_views):
    """The loss and its gradient are those of the pixels that count, whatever color the others have."""
    split = masked(3, 22, 18, np.random.default_rng(2).random((18, 22)) < 0.6)
    torch.manual_seed(0)
    student = Student(GridR2L(width=8, depth=4, resolution=8, features=4, sr_factor=4), whole_views=whole_views)
    student.network.prepare(_geometry(split))
    student.has_alpha = False  # nothing random but the windows and the network's own jitter
    student.log, student._check_progress = lambda *_, **__: None, lambda *_: None
    batch = Batches(split, "views", 3).batch(0)
    results = []
    for red in (255, 0):
        rgba = batch.rgba.clone()
        rgba[..., 0][~batch.mask] = red
        torch.manual_seed(1)
        student.zero_grad()
        loss = student.training_step(batch._replace(rgba=rgba), 0)
        loss.backward()
        results.append((loss.detach(), [p.grad.clone() for p in student.parameters() if p.grad is not None]))
    assert results[0][0] > 0
    torch.testing.assert_close(results[0], results[1])
    torch.manual_seed(1)
    rays, rgba, mask = student._opened(student._windows(batch))
    drawn = student.network(rays)
    white = drawn[..., :3] + (1 - drawn[..., 3:]) if drawn.shape[-1] == 4 else drawn
    expected = (white - rgba[..., :3])[mask].square().mean()
    torch.testing.assert_close(results[0][0], expected.detach())


def _geometry(split):
    return Geometry(torch.tensor([-1.0, -1, -1, 1, 1, 1]), 2.0, 6.0, split.camera, torch.ones(3))


def test_a_window_that_does_not_count_at_all_is_no_loss():
    student = Student(GridR2L(width=8, depth=4, resolution=8, features=4, sr_factor=4))
    split = masked(3, 22, 18, np.ones((18, 22), bool))
    student.network.prepare(_geometry(split))
    student.log, student._check_progress = lambda *_, **__: None, lambda *_: None
    batch = Batches(replace(split, masks=None), "views", 3).batch(0)
    loss = student.training_step(batch._replace(mask=torch.zeros(3, 18, 22, dtype=torch.bool)), 0)
    assert loss == 0


def test_a_data_module_gives_masks_to_both_kinds():
    split = masked()
    data = SceneDataModule(_bare(split), batch="views", batch_size=2)
    assert next(iter(data.train_dataloader())).mask.shape == (2, HEIGHT, WIDTH)
    assert next(iter(data.val_dataloader())).mask is None
    assert (next(iter(data.drawing("rays", 64).train_dataloader())).rgba[:, 0] == 0).all()


def _bare(split):
    return Scene("s", None, split, split, split, torch.tensor([-1.0, -1, -1, 1, 1, 1]), 2.0, 6.0)


def test_silhouettes_carve_nothing_where_a_view_does_not_count():
    split = masked()
    split.images[..., 3] = 0
    silhouettes = split.silhouettes()
    assert not silhouettes.masks[0].any()
    np.testing.assert_array_equal(silhouettes.masks[1].numpy(), ~split.masks[1])


# ------------------------------------------------------------------------------------------- figures


class Gray:
    """Draws one color."""

    def render(self, camera):
        return Rendering(torch.full((camera.height, camera.width, 3), 0.25))


def test_figures_leave_out_what_does_not_count(monkeypatch):
    monkeypatch.setattr(metrics, "_lpips_network", lambda: None)
    mask = np.ones((16, 16), bool)
    mask[3:9, 2:12] = False
    images = np.full((2, 16, 16, 3), 128, np.uint8)
    images[:, 3:9, 2:12] = 255
    split = Split(Camera.from_fov(hemisphere(2, 4.0), 0.7, 16, 16), images, ["a", "b"], masks=[mask, None])
    views = evaluate(Gray(), split)["views"]
    error = (0.25 - 128 / 255) ** 2
    assert views[0]["psnr"] == pytest.approx(-10 * math.log10(error), abs=1e-5)
    whole = error * mask.mean() + 0.75**2 * (1 - mask.mean())
    assert views[1]["psnr"] == pytest.approx(-10 * math.log10(whole), abs=1e-5)
    filled = np.where(mask[..., None], np.full_like(images[0], 0), images[0]).astype(np.float32) / 255
    filled[mask] = 0.25
    pair = torch.from_numpy(filled), torch.from_numpy(images[0] / np.float32(255))
    assert views[0]["ssim"] == pytest.approx(
        float(metrics.ssim(*(each.permute(2, 0, 1)[None] for each in pair))), abs=1e-6
    )


def test_psnr_over_a_mask():
    rgb, target = torch.rand(2, 3, 5, 4), torch.rand(2, 3, 5, 4)
    mask = torch.rand(2, 5, 4) < 0.5
    for index in range(2):
        error = (rgb[index] - target[index]).double()[:, mask[index]].square().mean()
        assert metrics.psnr(rgb, target, mask)[index] == pytest.approx(-10 * math.log10(error))
    torch.testing.assert_close(metrics.psnr(rgb, target, mask | True), metrics.psnr(rgb, target))
