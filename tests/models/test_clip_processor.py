"""CLIP's processor: ids as the original's, what it cleans, pads and cuts, and what it refuses."""

import html
import random

import numpy as np
import pytest
import regex
import torch
from ftfy import fix_text
from PIL import Image
from tiny import tiny_clip_tokenizer, tiny_model, tiny_processor, tiny_tokenizer
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, CLIPImageProcessorPil, CLIPTokenizer

from hfvlm.conversion.clip_processor import byte_letters
from hfvlm.models.clip.processing_clip import ClipProcessor


START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = [("t", "h"), ("th", "e</w>"), ("d", "o"), ("do", "g</w>"), ("'", "s</w>"), ("!", "!</w>"), ("!", "!")]
MERGES += [("Ã", "©")]
LIMIT = 12


@pytest.fixture(scope="module")
def processor() -> ClipProcessor:
    """A vocabulary of all bytes, a few merges and both special tokens."""
    letters = byte_letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, MERGES), START, END]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=MERGES, model_max_length=LIMIT)
    return ClipProcessor(CLIPImageProcessorPil(), tokenizer)


def image(size: tuple[int, int] = (50, 40)) -> Image.Image:
    return Image.effect_mandelbrot(size, (-2, -1, 1, 1), 60).convert("RGB")


class Reference:
    """The paper's tokenizer, written down plainly: clean, lower, cut into pieces, merge each piece's bytes."""

    pieces = regex.compile(
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", regex.IGNORECASE
    )

    def __init__(self, tokenizer: CLIPTokenizer):
        self.numbers = tokenizer.get_vocab()
        printing = [byte for byte in range(256) if chr(byte).isprintable() and not chr(byte).isspace() and byte != 173]
        order = [*printing, *(byte for byte in range(256) if byte not in printing)]
        self.letters = dict(zip(order, byte_letters()))

    def merged(self, piece: str) -> list[str]:
        if piece in (START, END):
            return [piece]
        parts = [self.letters[byte] for byte in piece.encode()]
        parts[-1] += "</w>"
        for first, second in MERGES:  # earlier merges go first, everywhere in the piece
            i = 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == (first, second):
                    parts[i : i + 2] = [first + second]
                i += 1
        return parts

    def __call__(self, text: str) -> list[int]:
        text = html.unescape(html.unescape(fix_text(text))).strip()
        text = regex.sub(r"\s+", " ", text).strip().lower()
        words = [part for piece in self.pieces.findall(text) for part in self.merged(piece)]
        return [self.numbers[word] for word in (START, *words, END)]


ATOMS = [
    START,
    END,
    *"<|ENDofText|> <| |> 's 'S ' ! !! _ a the dog 1 ½ Ⅷ 中 ß İ Σ ſ K Z . , < > | 'll ’s don’t".split(),
]
ATOMS += ["é", "e\u0301", "J\u030c", "cafÃ©", "ﬁ", "THE”", "&amp;", "&#769;", "&lt;", "&amp;lt;", "\u200d"]
ATOMS += [" ", "  ", "\t", "\n", "\x85", "\xa0", "\u2003"]


def test_any_text_becomes_the_ids_of_the_plain_algorithm(processor):
    draw, reference = random.Random(0), Reference(processor.tokenizer)
    texts = ["".join(draw.choice(ATOMS) for _ in range(draw.randrange(1, 9))) for _ in range(1500)]
    texts = [text for text in texts if "'ſ" not in text and "’ſ" not in text]  # a contraction to the original, no word
    for text in texts:
        ids = reference(text)
        expected = ids if len(ids) <= LIMIT else [*ids[: LIMIT - 1], ids[-1]]
        assert processor(text=text)["input_ids"].tolist() == [expected], repr(text)


@pytest.mark.parametrize(
    "text, cleaned",
    [
        ("  A\tdog \n runs ", "a dog runs"),
        ("Tom &amp;amp; Jerry", "tom & jerry"),
        ("cafÃ© ﬁn", "café fin"),
        ("", ""),
    ],
)
def test_texts_are_cleaned(processor, text, cleaned):
    assert processor.clean(text) == cleaned


def test_padding_is_0_on_the_right_and_masked(processor):
    batch = processor(text=["the dog", "!", "the dog's"])
    numbers, end = processor.tokenizer.get_vocab(), processor.tokenizer.eos_token_id
    assert numbers["!"] == 0
    rows = [[numbers[START], numbers["the</w>"], numbers["dog</w>"], end, 0]]
    rows += [[numbers[START], numbers["!</w>"], end, 0, 0]]
    rows += [[numbers[START], numbers["the</w>"], numbers["dog</w>"], numbers["'s</w>"], end]]
    assert batch["input_ids"].tolist() == rows
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1] * 5]
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.long
    full = processor(text="the dog", padding="max_length")
    assert full["input_ids"].tolist() == [[*rows[0][:4], *[0] * 8]]
    assert full["attention_mask"].sum() == 4
    assert processor(text=["!"], padding="max_length", max_length=6)["input_ids"].shape == (1, 6)
    assert processor(text="the dog", padding=False)["input_ids"].tolist() == [rows[0][:4]]
    with pytest.raises(ValueError, match="padding=False takes texts of one length"):
        processor(text=["the dog", "!"], padding=False)


def test_long_texts_are_cut_and_keep_their_end(processor):
    text = " ".join(["the dog"] * 20)
    ids = processor(text=text)["input_ids"][0].tolist()
    assert len(ids) == LIMIT and ids[-1] == processor.tokenizer.eos_token_id
    assert ids[:-1] == processor(text=text, max_length=400)["input_ids"][0].tolist()[:-1]  # not beyond the model's
    assert len(processor(text=text, max_length=5)["input_ids"][0]) == 5
    with pytest.raises(ValueError, match="text 1 has 42 tokens .*, 12 are allowed: shorten 'the dog the"):
        processor(text=["a", text], truncation=False)
    with pytest.raises(ValueError, match="5 are allowed"):
        processor(text="the dog the dog", max_length=5, truncation=False)


def test_a_processor_that_pads_to_the_full_length(processor):
    full = ClipProcessor(processor.image_processor, processor.tokenizer, pad_to_max=True)
    assert full(text="the dog")["input_ids"].shape == (1, LIMIT)
    assert full(text="the dog", padding=True)["input_ids"].shape == (1, 4)


def test_a_tokenizer_of_another_kind_is_left_to_its_ways():
    """No cleaning, its own special tokens, its own padding."""
    processor = ClipProcessor(CLIPImageProcessorPil(), tiny_tokenizer())
    batch, words = processor(text=["a dog", "a red dog &amp;"]), processor.tokenizer.get_vocab()
    assert batch["input_ids"][0].tolist()[:4] == [words["[CLS]"], words["a"], words["dog"], words["[SEP]"]]
    assert batch["input_ids"][0][-1] == words["[PAD]"] and batch["attention_mask"][0].tolist()[4:] == [0, 0, 0, 0]
    assert processor.clean(" A  &amp; ") == " A  &amp; "


def test_what_a_clip_tokenizer_pads_with_changes_nothing(processor, tmp_path):
    """laion's largest and SDXL's second pad with "!", the stock one with the end of text."""
    processor.tokenizer.save_pretrained(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path, pad_token="!")
    other, texts = ClipProcessor(processor.image_processor, tokenizer), ["The  DOG &amp;amp; cafÃ©", "a"]
    expected, got = processor(text=texts), other(text=texts)
    assert tokenizer.pad_token == "!" and all(torch.equal(got[name], expected[name]) for name in expected)


def test_texts_of_open_clips_that_end_in_0(tmp_path):
    """CLIPA's: a BERT tokenizer's ids without its separators, of texts that were mended, not lowered."""
    processor = ClipProcessor(CLIPImageProcessorPil(), tiny_tokenizer(), mend_texts=True, strip_sep_token=True)
    processor.save_pretrained(tmp_path)
    processor, words = ClipProcessor.from_pretrained(tmp_path), processor.tokenizer.get_vocab()
    assert processor.clean(" A  &amp; cafÃ©") == "A & café"
    ids = processor(text=["a [SEP] dog", "dog"], padding="max_length", max_length=6)["input_ids"].tolist()
    assert ids == [[words["[CLS]"], words["a"], 0, words["dog"], 0, 0], [words["[CLS]"], words["dog"], 0, 0, 0, 0]]
    with pytest.raises(ValueError, match="needs a tokenizer with a sep_token"):
        ClipProcessor(CLIPImageProcessorPil(), tiny_clip_tokenizer(), strip_sep_token=True)


def test_images_and_texts_in_any_numbers():
    processor = tiny_processor("clip")
    batch = processor(images=[image(), image((9, 70)), image()], text=["a dog", "the red cat"])
    assert list(batch) == ["pixel_values", "input_ids", "attention_mask"]
    assert batch["pixel_values"].shape == (3, 3, 32, 32) and len(batch["input_ids"]) == 2
    assert list(processor(images=image())) == ["pixel_values"]
    assert list(processor(text="a dog")) == ["input_ids", "attention_mask"]
    arrays = processor(images=image(), text="a dog", return_tensors="np")
    assert all(isinstance(value, np.ndarray) for value in arrays.values())
    assert processor(images=image(), size={"shortest_edge": 16}, do_center_crop=False)["pixel_values"].shape[-2] == 16


@pytest.mark.parametrize(
    "call, error, named",
    [
        ({}, ValueError, "pass images, text, or both"),
        ({"text": []}, ValueError, "text is an empty list"),
        ({"images": []}, ValueError, "images is an empty list"),
        ({"text": 3}, TypeError, "text must be a string or a list of strings, got int"),
        ({"text": ["a", None]}, TypeError, "got NoneType"),
        ({"text": [["a"]]}, TypeError, "got list"),
        ({"text": "a", "padding": "longes"}, ValueError, "padding must be .*got 'longes'"),
        ({"text": "a", "truncation": "longest_first"}, ValueError, "truncation must be True or False"),
        ({"text": "a", "max_length": 1}, ValueError, "max_length must leave room"),
        ({"text": "a", "return_token_type_ids": True}, TypeError, "no return_token_type_ids"),
    ],
)
def test_bad_input_is_named(processor, call, error, named):
    with pytest.raises(error, match=named):
        processor(**call)


def test_a_folder_loads_whole_and_in_parts(processor, tmp_path):
    tiny_model("hfvlm_clip", "AutoModel").save_pretrained(tmp_path)
    processor = ClipProcessor(processor.image_processor, processor.tokenizer, pad_to_max=True)
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is ClipProcessor and loaded.pad_to_max
    inputs = {"images": image(), "text": [f"The dog&#39;s {END}!", "é"]}
    ours, theirs = processor(**inputs), loaded(**inputs)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert type(tokenizer) is CLIPTokenizer and tokenizer.model_max_length == LIMIT
    assert tokenizer("the dog")["input_ids"] == processor(text="the dog", padding=True)["input_ids"][0].tolist()
    pixels = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")(image(), return_tensors="pt")
    assert torch.equal(pixels["pixel_values"], ours["pixel_values"])


@pytest.mark.parametrize("size, mode", [((50, 37), "RGB"), ((300, 224), "RGB"), ((640, 427), "RGB"), ((31, 90), "L")])
def test_pixels_equal_the_original_transform(processor, size, mode):
    """PIL's bicubic resize of the shorter side, the middle square, a 255th, CLIP's mean and deviation.

    Where the middle is half a pixel off, transformers takes the one to the left or above, the original the even one.
    """
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    short = min(size)
    wide, high = (int(224 * side / short) for side in size)
    left, top = (wide - 224) // 2, (high - 224) // 2
    resized = photo.resize((wide, high), Image.Resampling.BICUBIC).convert("RGB")
    square = np.asarray(resized.crop((left, top, left + 224, top + 224)), dtype=np.float32) / np.float32(255)
    mean = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
    deviation = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)
    expected = torch.from_numpy(((square - mean) / deviation).transpose(2, 0, 1))
    got = processor(images=photo)["pixel_values"][0]
    assert torch.equal(got, expected), (got - expected).abs().max()


def test_texts_decode(processor):
    ids = processor(text=["the dog's !!", "the dog"])["input_ids"]
    assert processor.batch_decode(ids[:1], skip_special_tokens=True) == ["the dog 's !!"]
    assert tiny_clip_tokenizer().pad_token == END  # which is why padding is not left to the tokenizer
