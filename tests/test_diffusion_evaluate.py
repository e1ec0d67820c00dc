"""Paired pictures, win rates against hand counts, and the scorers on tiny random weights."""

import json
import math

import pytest
import torch
from PIL import Image
from scipy.stats import binomtest
from transformers import (
    BlipTextConfig,
    BlipVisionConfig,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
)

from tiny_diffusion import WORDS, tiny_sd, tiny_tokenizer
from trueline.diffusion import Generated, text_to_image
from trueline.diffusion.evaluation.evaluate import (
    Gallery,
    Sampling,
    compare,
    paint,
    read_prompts,
    score_gallery,
    win_finding,
)
from trueline.diffusion.evaluation.image_reward import MEAN, STD, ImageRewardModel, released_to_own
from trueline.diffusion.evaluation.scorers import (
    CLIP_MEAN,
    CLIP_STD,
    aesthetics_head,
    image_reward_scores,
    make_scorer,
    normalized,
)
from trueline.errors import UserError

PROMPTS = ["a red square", "a blue cross", "the dark cross"]
IMAGES = [Image.new("RGB", (20, 12), color) for color in ("red", "blue", "black")]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP folder with random weights and a tokenizer."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    text = CLIPTextConfig(
        vocab_size=len(WORDS) + 4, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=8, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        image_size=8, patch_size=4,
    )  # fmt: skip
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    CLIPModel(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def test_the_same_noise_for_every_model_and_batch_size(tmp_path):
    model = text_to_image(tiny_sd())
    galleries = [
        paint(model, "m", PROMPTS, Sampling(3, 2, 1.0, batch), folder=tmp_path / str(batch))
        for batch in (1, 3)
    ]
    for one, other in zip(galleries[0].pictures, galleries[1].pictures, strict=True):
        difference = torch.tensor(list(one.image.tobytes())).float() - torch.tensor(
            list(other.image.tobytes())
        )
        assert difference.abs().max() <= 1  # a rounding of the last bit
    assert len(list((tmp_path / "3").glob("*.png"))) == 3
    again = paint(model, "m", PROMPTS[1:], Sampling(4, 2, 1.0, 1))
    assert again.pictures[0].image.tobytes() == galleries[0].pictures[1].image.tobytes()


def test_win_rate_ties_and_sign_test_by_hand():
    base = [0.0, 0.0, 0.0, 1.0, 5.0, None, 2.0, 0.0]
    aligned = [1.0, 2.0, 1.0, 1.0, 4.0, 3.0, None, 1.0]
    finding = win_finding("s", ("base", base), ("mine", aligned))
    won = finding["win rate"]
    assert (won.value, won.n) == (4 / 5, 5)
    interval = binomtest(4, 5).proportion_ci(0.95, method="wilson")
    assert (won.low, won.high) == pytest.approx((interval.low, interval.high))
    assert finding["ties"].value == 1
    assert finding["unscored"].value == 2
    assert finding["difference"].value == pytest.approx((1 + 2 + 1 + 0 - 1 + 1) / 6)
    assert finding["sign test p"].value == pytest.approx(binomtest(4, 5, 0.5).pvalue)
    assert "4" not in finding.summary or "5 decided" in finding.summary
    tied = win_finding("s", ("base", [1.0, 1.0]), ("mine", [1.0, 1.0]))
    assert tied["win rate"].value is None
    assert tied["sign test p"].value is None


def test_blanked_pictures_stay_unscored():
    pictures = [Generated(IMAGES[0]), Generated(IMAGES[1], flagged=True), Generated(IMAGES[2])]
    seen = []

    def score(images, captions):
        seen.extend(captions)
        return [float(len(caption)) for caption in captions]

    found = score_gallery(Gallery("x", pictures), PROMPTS, score)
    assert found == [12.0, None, 14.0]
    assert seen == [PROMPTS[0], PROMPTS[2]]
    for wrong, message in (([1.0], "1 numbers for 2"), ([1.0, math.nan], "not finite")):
        with pytest.raises(UserError, match=message):
            score_gallery(Gallery("x", pictures), PROMPTS, lambda i, c, w=wrong: w)


def test_compare_puts_every_aligned_model_against_the_base():
    galleries = [Gallery(name, [Generated(image) for image in IMAGES]) for name in "abc"]
    numbers = iter([[1.0, 1.0, 1.0], [2.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    findings, scores = compare(
        galleries[0], galleries[1:], PROMPTS, {"s": lambda i, c: next(numbers)}
    )
    assert [f.name for f in findings] == ["b: s", "c: s"]
    assert [f["win rate"].value for f in findings] == [2 / 3, 0.0]
    assert scores["s"]["b"] == [2.0, 2.0, 0.0]


def test_prompts_from_text_and_jsonl(tmp_path):
    (tmp_path / "p.txt").write_text("a red square\n\na cross\n")
    assert read_prompts(tmp_path / "p.txt") == ["a red square", "a cross"]
    rows = [{"caption": "one"}, {"prompt": "two"}, {"caption": "three"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_prompts(tmp_path / "p.jsonl", limit=2) == ["one", "two"]
    (tmp_path / "bad.jsonl").write_text('{"other": 1}')
    with pytest.raises(UserError, match="line 1 is no JSON object"):
        read_prompts(tmp_path / "bad.jsonl")


# --- scorers ------------------------------------------------------------------------------------


def test_clip_scorers_are_cosines(clip):
    model = CLIPModel.from_pretrained(clip).eval()
    tokens = tiny_tokenizer()(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            pixel_values=normalized(IMAGES, 8),
        )
    logits = out.logits_per_image.diagonal()
    cosine = logits / model.logit_scale.exp()
    for text, truth in (
        (f"pickscore={clip},tokenizer={clip}", logits),
        (f"clip={clip}", 100 * cosine),
        (f"hpsv2={clip}", cosine),
    ):
        name, score = make_scorer(text)
        assert name == text.split("=")[0]
        assert score(IMAGES, PROMPTS) == pytest.approx(truth.tolist(), rel=1e-4, abs=1e-5)
        assert score([], []) == []


def test_pictures_are_standardized_as_clip_does():
    found = normalized([IMAGES[0]], 8)
    assert found.shape == (1, 3, 8, 8)
    by_hand = [(value - m) / s for value, m, s in zip((1, 0, 0), CLIP_MEAN, CLIP_STD, strict=True)]
    assert found[0, :, 4, 4].tolist() == pytest.approx(by_hand, abs=1e-5)


def test_aesthetics_reads_the_released_names(clip, tmp_path):
    head = aesthetics_head(12)
    released = {f"layers.{name}": value for name, value in head.state_dict().items()}
    assert [n for n in released if n.endswith("weight")] == [
        f"layers.{k}.weight" for k in (0, 2, 4, 6, 7)
    ]
    torch.save(released, tmp_path / "a.pth")
    _, score = make_scorer(f"aesthetics={tmp_path / 'a.pth'},clip={clip}")
    model = CLIPModel.from_pretrained(clip).eval()
    with torch.no_grad():
        seen = model.get_image_features(pixel_values=normalized(IMAGES, 8)).pooler_output
        truth = head.eval()(seen / seen.norm(dim=-1, keepdim=True))[:, 0]
    assert score(IMAGES, PROMPTS) == pytest.approx(truth.tolist(), rel=1e-4)
    torch.save({"other": torch.zeros(1)}, tmp_path / "b.pth")
    with pytest.raises(UserError, match="is no aesthetics predictor"):
        make_scorer(f"aesthetics={tmp_path / 'b.pth'},clip={clip}")


def blip_names(name):
    """This module's names as BLIP's original code, and ImageReward's checkpoint, write them."""
    name = name.replace("text.", "blip.text_encoder.", 1) if name.startswith("text.") else name
    if not name.startswith("vision."):
        return name.replace("head.", "mlp.layers.", 1)
    for own, released in (
        ("vision.embeddings.class_embedding", "blip.visual_encoder.cls_token"),
        ("vision.embeddings.position_embedding", "blip.visual_encoder.pos_embed"),
        ("vision.embeddings.patch_embedding", "blip.visual_encoder.patch_embed.proj"),
        ("vision.post_layernorm", "blip.visual_encoder.norm"),
        ("vision.encoder.layers", "blip.visual_encoder.blocks"),
        ("self_attn.qkv", "attn.qkv"), ("self_attn.projection", "attn.proj"),
        ("layer_norm1", "norm1"), ("layer_norm2", "norm2"),
    ):  # fmt: skip
        name = name.replace(own, released)
    return name


def test_image_reward_reads_the_released_names_and_both_inputs():
    torch.manual_seed(0)
    vision = BlipVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        image_size=8, patch_size=4,
    )  # fmt: skip
    text = BlipTextConfig(
        vocab_size=len(WORDS) + 4, hidden_size=12, encoder_hidden_size=8, intermediate_size=8,
        num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=40,
    )  # fmt: skip
    source, target = ImageRewardModel(vision, text), ImageRewardModel(vision, text)
    with torch.no_grad():  # BLIP's own initial values are so small that no picture would matter
        for p in source.parameters():
            p.normal_(std=0.3)
    released = {blip_names(name): value for name, value in source.state_dict().items()}
    assert "blip.visual_encoder.blocks.1.attn.proj.weight" in released
    assert {f"mlp.layers.{k}.bias" for k in (0, 2, 4, 6, 7)} <= set(released)
    assert all(released_to_own(name) in source.state_dict() for name in released)
    target.load_released(released)
    score = image_reward_scores(target.eval(), tiny_tokenizer(length=35))
    found = score(IMAGES, PROMPTS)
    assert len(set(found)) == 3
    assert score(IMAGES[:1], PROMPTS[1:2]) != pytest.approx(found[:1]), "the caption is read"
    assert score(IMAGES[1:2], PROMPTS[:1]) != pytest.approx(found[:1]), "the picture is read"
    with torch.no_grad():
        for p in target.head.parameters():
            p.zero_()
    assert score(IMAGES[:1], PROMPTS[:1]) == pytest.approx([-MEAN / STD])
    with pytest.raises(UserError, match="no ImageReward checkpoint"):
        target.load_released({"mlp.layers.0.weight": torch.zeros(1)})


def test_a_scorer_of_ones_own_and_wrong_ones(tmp_path, monkeypatch):
    (tmp_path / "my_scorers.py").write_text(
        "def length(images, captions):\n    return [float(len(c)) for c in captions]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    name, score = make_scorer("my_scorers:length")
    assert (name, score(IMAGES, PROMPTS)) == ("my_scorers:length", [12.0, 12.0, 14.0])
    for text, message in (
        ("my_scorers:width", "has no function 'width'"),
        ("nowhere:f", "cannot be imported"),
        ("pickscor", "did you mean 'pickscore'"),
        ("hpsv2", "needs its model"),
        ("imagereward=/nowhere.pt", "no weights file"),
        ("clip=/nowhere/at/all", "cannot load the CLIP model"),
    ):
        with pytest.raises(UserError, match=message):
            make_scorer(text)
