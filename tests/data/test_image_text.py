"""Folders and shards as streams: each example once an epoch, however it is read."""

import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numbered_pictures import numbers, picture, stream, take, write_folder, write_shards
from PIL import Image

from optdiff.data.image_text import decode

COUNT = 31  # shares no factor with a batch
KINDS = ("folder", "shards")
FIRST = {"epoch": 0, "part": 0, "taken": 0}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    return {
        "folder": write_folder(root / "folder", COUNT),
        "shards": write_shards(root / "shards", 10, 13, 8),
    }


@pytest.mark.parametrize("mixed", [1, 2, 3, 9])
@pytest.mark.parametrize("kind", KINDS)
def test_each_epoch_has_every_example_once_in_an_order_of_its_own(kind, mixed, paths):
    source = stream(kind, paths[kind], **({"mixed": mixed} if kind == "shards" else {}))
    seen, position = take(source, source.start, COUNT)  # of 4: four epochs
    epochs = [tuple(seen[i : i + COUNT]) for i in range(0, 4 * COUNT, COUNT)]
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert len(set(epochs)) == 4 and tuple(range(COUNT)) not in epochs
    assert position == {"epoch": 4, "part": 0, "taken": 0}


@pytest.mark.parametrize("kind", KINDS)
def test_order_depends_on_the_seed_alone(kind, paths):
    def order(seed, **options):
        source = stream(kind, paths[kind], seed=seed, **options)
        return take(source, source.start, 40 // options.get("batch", 4))[0]

    assert order(1) == order(1) == order(1, batch=8, threads=1) != order(2)


@pytest.mark.parametrize("kind", KINDS)
def test_hosts_divide_each_batch_and_agree_on_the_position(kind, paths):
    alone = stream(kind, paths[kind])
    pair = [stream(kind, paths[kind], host=host, hosts=2) for host in range(2)]
    position, together = alone.start, []
    for _ in range(2 * COUNT // 4):
        whole, after = take(alone, position, 1)
        halves = [take(source, position, 1) for source in pair]
        assert halves[0][0] + halves[1][0] == whole
        assert halves[0][1] == halves[1][1] == after
        position, together = after, together + whole
    assert sorted(together[:COUNT]) == list(range(COUNT))


@pytest.mark.parametrize("kind", KINDS)
def test_reading_is_a_function_of_the_position(kind, paths):
    source = stream(kind, paths[kind])
    positions, seen = [source.start], []
    for _ in range(20):
        fresh, position = take(source, positions[-1], 1)
        positions.append(json.loads(json.dumps(position)))
        seen.append(fresh)
    for i in (7, 0, 19, 3):  # backwards and forwards, here and in another stream
        for again in (source, stream(kind, paths[kind])):
            assert take(again, positions[i], 1) == (seen[i], positions[i + 1])


@pytest.mark.parametrize("kind", [pytest.param("folder", marks=pytest.mark.slow), "shards"])
def test_killed_in_the_middle_nothing_is_lost_or_seen_twice(kind, paths):
    """Five batches of four end within a shard (10, 13 and 8 examples) and within an epoch."""
    script = Path(__file__).with_name("numbered_pictures.py")
    command = [sys.executable, str(script), kind, str(paths[kind]), "5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
        lines = [reader.stdout.readline() for _ in range(6)]
        reader.send_signal(signal.SIGKILL)
    assert reader.returncode == -signal.SIGKILL
    assert lines[5].startswith("read one more")
    written = [json.loads(line) for line in lines[:5]]
    seen = [number for line in written for number in line["seen"]]
    position = written[-1]["position"]
    assert position["taken"] > 0 and position["epoch"] == 0
    rest, _ = take(stream(kind, paths[kind]), position, 3)
    assert sorted((seen + rest)[:COUNT]) == list(range(COUNT))


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_may_be_larger_than_the_data(kind, paths):
    source = stream(kind, paths[kind], batch=2 * COUNT + 2)
    seen, position = take(source, source.start, 1)
    assert sorted(seen[:COUNT]) == sorted(seen[COUNT:-2]) == list(range(COUNT))
    assert position["epoch"] == 2 and position["taken"] == 2


def test_without_a_tokenizer_there_are_images_only(paths):
    source = stream("folder", paths["folder"], tokenize=None)
    batch, _ = source.read(source.start)
    assert set(batch) == {"images"} and batch["images"].dtype == np.float32
    assert batch["images"].shape == (4, 4, 4, 3)


def test_what_does_not_fit_is_refused(paths):
    with pytest.raises(ValueError, match="batch of 4 does not divide among 3 hosts"):
        stream("folder", paths["folder"], hosts=3)
    for wrong in ({"epoch": 0, "part": 7, "taken": 0}, {"epoch": 0, "part": 0, "taken": 32}):
        with pytest.raises(ValueError, match="not of this data"):
            stream("folder", paths["folder"]).read(wrong)


@pytest.mark.parametrize("damage", [lambda png: png[:-30], lambda png: b"GIF8", lambda png: b""])
def test_a_broken_image_is_told_and_another_takes_its_place(damage, tmp_path):
    folder = write_folder(tmp_path / "folder", 6)
    folder.joinpath("3.png").write_bytes(damage(picture(3)))
    told = []
    source = stream("folder", folder, batch=3, broken=told.append)
    seen, _ = take(source, source.start, 2)
    assert len(told) == 1 and told[0].startswith(f"{folder}/3.png: ") and "its place" in told[0]
    assert len(seen) == 6 and set(seen) == {0, 1, 2, 4, 5}
    with pytest.warns(UserWarning, match=r"3\.png"):
        take(stream("folder", folder, batch=6), source.start, 1)


def test_who_wants_to_can_refuse_broken_images(tmp_path):
    folder = write_folder(tmp_path / "folder", 4)
    folder.joinpath("2.png").write_bytes(b"nothing")

    def refuse(message):
        raise OSError(message)

    with pytest.raises(OSError, match=r"2\.png: cannot identify image"):
        take(stream("folder", folder, broken=refuse), FIRST, 1)
    for i in range(4):
        folder.joinpath(f"{i}.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"none of 4 images .* first: .*png: cannot"):
        take(stream("folder", folder), FIRST, 1)


def test_an_image_file_beyond_bounds_is_left_out_unread(tmp_path):
    folder = write_folder(tmp_path / "folder", 2)
    with folder.joinpath("1.png").open("r+b") as file:
        file.truncate(2**30)  # sparse: nothing is written
    told = []
    seen, _ = take(stream("folder", folder, batch=2, broken=told.append), FIRST, 1)
    assert seen == [0, 0] and "1.png: larger than 268435456 bytes" in told[0]


def encoded(image: Image.Image, kind: str = "png", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_an_image_of_the_right_size_is_untouched_and_others_lose_their_sides():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(pixels)), 6), pixels)
    wide = np.pad(pixels, ((0, 0), (4, 4), (0, 0)), constant_values=9)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(wide)), 6), pixels)
    tall = np.pad(pixels, ((4, 4), (0, 0), (0, 0)), constant_values=9)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(tall)), 6), pixels)


def test_an_image_is_scaled_without_aliases():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    grey = decode(encoded(Image.fromarray(stripes)), 8)
    assert np.abs(grey.astype(int) - 100).max() <= 12  # nearest pixels would give 200


def test_a_large_jpeg_is_what_its_pixels_are():
    """It is decoded at a smaller size; a picture of its own pixels is not."""
    colours = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    large = Image.fromarray(colours).resize((384, 256), Image.Resampling.BICUBIC)
    jpeg = encoded(large, "jpeg", quality=95)
    small, exact = (decode(data, 32).astype(int) for data in (jpeg, encoded(large)))
    assert np.abs(small - exact).mean() < 2 and np.abs(small - exact).max() < 16


@pytest.mark.parametrize(
    "image, colour",
    [
        (Image.new("L", (4, 4), 60), (60, 60, 60)),
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (9, 9, 9, 0)), (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (9, 8, 7, 255)), (9, 8, 7)),
        (Image.new("LA", (4, 4), (0, 0)), (255, 255, 255)),
        (Image.new("RGB", (4, 4), (1, 2, 3)).quantize(2), (1, 2, 3)),
        (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.new("I;16", (4, 4), 60 << 8), (60, 60, 60)),
        (Image.new("I;16B", (4, 4), 60 << 8), (60, 60, 60)),
        (Image.new("I", (4, 4), 60 << 8), (60, 60, 60)),
    ],
)
def test_every_kind_of_image_becomes_colours_on_white(image, colour):
    kind = "png" if image.mode not in ("CMYK", "I;16B", "I") else "tiff"
    data = encoded(image, kind)
    assert Image.open(io.BytesIO(data)).mode == image.mode
    np.testing.assert_array_equal(decode(data, 4), np.full((4, 4, 3), colour))


def test_grey_of_16_bits_is_that_of_8():
    """All shades, in a PNG and in a PGM, which Pillow reads as 32 bits; one shade may be clear."""
    fine = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    coarse = np.broadcast_to((fine >> 8).astype(np.uint8)[..., None], (256, 256, 3))
    for kind in ("png", "ppm"):
        np.testing.assert_array_equal(decode(encoded(Image.fromarray(fine), kind), 256), coarse)
    clear = decode(encoded(Image.fromarray(fine), transparency=7), 256)
    np.testing.assert_array_equal(clear, np.where(fine[..., None] == 7, 255, coarse))


@pytest.mark.parametrize(
    "image",
    [
        Image.new("F", (4, 4), 0.5),
        Image.new("I", (4, 4), 1 << 16),
        Image.new("I", (4, 4), -1),
    ],
)
def test_grey_without_a_known_white_is_broken(image, tmp_path):
    folder = write_folder(tmp_path / "folder", 3)
    folder.joinpath("1.png").write_bytes(encoded(image, "tiff"))  # Pillow goes by the content
    told = []
    take(stream("folder", folder, batch=3, broken=told.append), FIRST, 1)
    assert len(told) == 1 and "1.png: " in told[0] and "save it with 8 or 16 bits" in told[0]


def test_an_image_stands_as_its_camera_was_held():
    image = Image.new("RGB", (8, 8), "white")
    image.paste("black", (0, 0, 8, 4))  # black above
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    shown = decode(encoded(image, exif=exif), 8)
    np.testing.assert_array_equal(shown[:, 4:], 0)
    np.testing.assert_array_equal(shown[:, :4], 255)


def test_captions_reach_the_tokenizer_with_their_images(paths):
    asked = []
    source = stream("shards", paths["shards"], tokenize=lambda t: asked.extend(t) or numbers(t))
    seen, _ = take(source, source.start, 3)
    assert asked == [f"picture {number}" for number in seen]
