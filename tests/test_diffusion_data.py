"""Preference data on images in every form, ties and bad rows, frames."""

import io
import json
import random
import re
import warnings

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from tiny_diffusion import pick_rows, picture, write_folder
from trueline.diffusion import load_image_examples
from trueline.diffusion.data.images import CorruptImageError, decode, frame, grid, png, to_image
from trueline.errors import UserError


def read(examples):
    return [(e.caption, *(source.read() for source in e.images)) for e in examples]


def test_pick_a_pics_columns_and_ties():
    rows = pick_rows(4)
    rows[1]["label_0"] = 0.5
    data = load_image_examples(rows)
    assert len(data.examples) == 3
    assert data.notes() == ["dropped 1 rows, a tie: data: row 2"]
    first = data.examples[0]
    assert first.paired
    assert read([first]) == [(rows[0]["caption"], rows[0]["jpg_1"], rows[0]["jpg_0"])]
    last = data.examples[2]  # label_0 is 1: the first is the better one
    assert read([last])[0][1:] == (rows[3]["jpg_0"], rows[3]["jpg_1"])


def test_every_container_gives_the_same_examples(tmp_path):
    rows = pick_rows(4)
    truth = read(load_image_examples(rows).examples)
    data = datasets.Dataset.from_list(rows)
    data.to_parquet(tmp_path / "pick" / "part-0.parquet")
    data.save_to_disk(tmp_path / "disk")
    datasets.DatasetDict({"validation": data}).save_to_disk(tmp_path / "splits")
    found = [
        load_image_examples(data),
        load_image_examples(tmp_path / "pick"),
        load_image_examples(tmp_path / "pick" / "part-0.parquet"),
        load_image_examples(tmp_path / "disk"),
        load_image_examples(tmp_path / "splits", split="validation"),
    ]
    for given in found:
        assert read(given.examples) == truth
    with pytest.raises(UserError, match="no split 'train'"):
        load_image_examples(tmp_path / "splits")


def test_a_folder_with_a_jsonl(tmp_path):
    folder = write_folder(tmp_path / "pairs", 3)
    for source in (folder, folder / "pairs.jsonl"):
        data = load_image_examples(source)
        assert read(data.examples)[1] == ("a red square", picture(2), picture(3))
    (folder / "other.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"several JSONL files \(other.jsonl, pairs.jsonl\)"):
        load_image_examples(folder)


def test_image_columns_stay_undecoded():
    features = datasets.Features(
        {
            "caption": datasets.Value("string"),
            "image": datasets.Image(),
            "label": datasets.Value("bool"),
        }
    )
    rows = [{"caption": "x", "image": {"bytes": picture(0), "path": None}, "label": False}]
    data = load_image_examples(datasets.Dataset.from_list(rows, features=features))
    assert read(data.examples) == [("x", picture(0))]
    assert data.examples[0].desirable == (False,)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"caption": "x", "jpg_0": b""}], "expected one of: caption, jpg_0"),
        ([{**pick_rows(1)[0], "label_0": 2}], r"row 1: label_0 is not 0, 0.5 or 1; skip_bad"),
        ([{**pick_rows(1)[0], "caption": None}], "caption is no text"),
        ([{"caption": "x", "image": b"", "label": "yes"}], "label is not true or false"),
        ([{**pick_rows(1)[0], "label_0": 0.5}], "leaves no example: dropped 1 rows, a tie"),
        ([], "holds no rows"),
        ("nowhere/to.zip", "not to be had|no local path"),
    ],
)
def test_what_cannot_be_used_is_named(rows, message):
    with pytest.raises(UserError, match=message):
        load_image_examples(rows)


def test_bad_rows_are_skipped_and_counted_on_request():
    rows = pick_rows(3)
    rows[1]["label_0"] = None
    data = load_image_examples(rows, skip_bad=True)
    assert len(data.examples) == 2
    assert data.notes() == ["dropped 1 rows, label_0 is not 0, 0.5 or 1: data: row 2"]
    assert len(load_image_examples(pick_rows(5), limit=2).examples) == 2


def test_i9_lines_of_a_table_that_are_no_rows_are_named_or_counted(tmp_path):
    good = {"caption": "a\u2028b", "image": "a.png", "label": True}
    text = [{"caption": "x"}, "{", good, [1], {**good, "caption": None}]
    lines = [t if t == "{" else json.dumps(t, ensure_ascii=False) for t in text]
    (tmp_path / "p.jsonl").write_text("\ufeff" + "\n\n".join(lines), "utf-8")
    data = load_image_examples(tmp_path, skip_bad=True)
    assert [example.caption for example in data.examples] == ["a\u2028b"]
    assert sum(data.dropped.values()) == 4
    (tmp_path / "p.jsonl").write_text("\n".join([lines[2], "{"]), "utf-8")
    with pytest.raises(UserError, match=r"row 2: not valid JSON: .*skip_bad: true"):
        load_image_examples(tmp_path)
    (tmp_path / "p.jsonl").rename(tmp_path / "p.parquet")
    with pytest.raises(UserError, match=r"p.parquet is no sound Parquet file"):
        load_image_examples(tmp_path)


def test_a_missing_file_is_a_corrupt_image(tmp_path):
    (tmp_path / "p.jsonl").write_text(
        json.dumps({"caption": "x", "chosen": "none.png", "rejected": "none.png"})
    )
    (example,) = load_image_examples(tmp_path).examples
    with pytest.raises(CorruptImageError, match="row 1, chosen cannot be read"):
        example.images[0].read()


def test_frames_are_squares_at_the_same_relative_place():
    array = torch.arange(24).view(1, 1, 24).expand(3, 12, 24) / 12 - 1  # brighter to the right
    data = png(to_image(array))
    for position, left in ((0.0, 0), (0.5, 6), (1.0, 12)):
        framed = frame(data, 12, (0.5, position), "x")
        assert framed.pixels.shape == (3, 12, 12)
        assert framed.corner == (0, left)
        assert framed.right == 12 - left
        torch.testing.assert_close(framed.pixels, array[:, :, left : left + 12], atol=0.01, rtol=0)
        mirrored = framed.flipped()
        assert mirrored.corner == (0, 12 - left)
        assert torch.equal(mirrored.pixels, framed.pixels.flip(-1))
        assert torch.equal(mirrored.flipped().pixels, framed.pixels)
    assert frame(data, 6, (0.5, 0.5), "x").original == (12, 24)
    assert frame(data, 6, (0.5, 0.5), "x").corner == (0, 3)


def test_transparency_lies_on_white_and_grey_becomes_rgb():
    for mode, color, expected in (("RGBA", (255, 0, 0, 0), 255), ("L", 7, 7)):
        buffer = io.BytesIO()
        Image.new(mode, (3, 3), color).save(buffer, "PNG")
        assert decode(buffer.getvalue(), "x").getpixel((1, 1)) == (expected,) * 3


def test_sixteen_bits_of_gray_are_not_cut_off():
    """Pillow's own conversion paints all but the darkest 1 in 256 white; of floats nobody knows."""
    levels = np.linspace(0, 65535, 16).reshape(4, 4)
    files = []
    for kind, name in (("uint16", "PNG"), ("float32", "TIFF")):
        buffer = io.BytesIO()
        Image.fromarray(levels.astype(kind)).save(buffer, name)
        files.append(buffer.getvalue())
    found = np.asarray(decode(files[0], "x"))
    assert (found == (levels / 257).round()[..., None]).all()
    with pytest.raises(CorruptImageError, match="mode F do not say what is white"):
        decode(files[1], "x")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA"])
def test_whatever_a_decoder_raises_names_the_place(kind):
    """Bytes changed at random are an image or a CorruptImageError in one line, with its cause."""
    rng, buffer = random.Random(kind), io.BytesIO()
    Image.open(io.BytesIO(picture(0))).save(buffer, kind)
    refused = []
    for _ in range(150):
        data = bytearray(buffer.getvalue())
        for _ in range(rng.randint(1, 6)):
            place = rng.randrange(min(len(data), rng.choice([30, 200, len(data)])))
            data[place] = rng.randrange(256)
        cut = bytes(data[: rng.randint(1, len(data))] if rng.random() < 0.3 else data)
        try:
            with warnings.catch_warnings(action="ignore"):
                assert decode(cut, "row 3, jpg_0").mode == "RGB"
        except CorruptImageError as error:
            refused.append(error)
    assert len(refused) > 5
    for error in refused:
        assert re.fullmatch(r"row 3, jpg_0 is no readable image: .*\w.*", str(error))
        assert "0x" not in str(error)
        assert error.__cause__ is not None


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_what_is_not_the_files_fault_goes_through(error, monkeypatch):
    def fail(file):
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(error):
        decode(picture(0), "x")


def test_grids_and_enlarged_pictures():
    image = Image.new("RGB", (8, 8), (255, 0, 0))
    page = grid([image] * 3, 2, gap=2)
    assert page.size == (18, 18)
    assert page.getpixel((17, 17)) == (255, 255, 255)
    assert Image.open(io.BytesIO(png(image, at_least=60))).size == (64, 64)
