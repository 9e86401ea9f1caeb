"""The tokenizer of our own small models: a byte-level BPE trained on captions that this file makes up.

The captions are about shapes, colours, places, motions and edits, which is all that such a model can be taught. Special
tokens, normalisation and splitting are those of Qwen's tokenizer, so the released code path runs unchanged.
"""

import random
from collections.abc import Iterator

CAPTIONS = 3000
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
CHAT = (
    "system\nYou are a helpful assistant aimed at generating an output video caption.",
    "user\nImage 1: Image 2: Image 3: Video 1: ",
    "assistant\n",
    "<0.0 seconds><0.1 seconds><0.2 seconds><0.3 seconds>",
)
WORDS = {
    "colour": "red green blue yellow orange purple pink brown black white grey cyan magenta golden silver turquoise",
    "shape": "circle square triangle star cross ring heart diamond hexagon bar arrow crescent dot stripe line oval",
    "thing": "ball box cup car boat train plane house tower bridge tree flower leaf cloud sun moon fish bird cat dog "
    "horse butterfly kite balloon bottle book lamp clock wheel ladder",
    "stuff": "metal glass stone plastic rubber cloth ice chocolate marble water fire smoke concrete velvet",
    "person": "child woman man dancer painter runner robot astronaut musician farmer",
    "size": "tiny small medium large huge thin thick wide narrow tall",
    "look": "solid outlined striped dotted checkered glowing shiny faded rough smooth bright dark",
    "place": "left right top bottom centre middle corner edge",
    "ground": "white black grey sky sand grass snow night paper wooden brick ocean",
    "move": "moves slides rolls bounces spins rotates grows shrinks falls rises drifts jumps swings fades blinks "
    "appears disappears orbits zooms stretches",
    "way": "slowly quickly smoothly suddenly twice upwards downwards sideways diagonally forwards backwards left right",
    "camera": "still panning zooming tilting shaking turning",
    "time": "morning noon evening night summer winter autumn spring",
    "style": "photograph drawing painting sketch cartoon watercolour mosaic poster",
    "number": "one two three four five six seven eight nine ten",
}
TEMPLATES = (
    "A {size} {colour} {shape} on a {ground} background.",
    "A {look} {colour} {shape} in the {place} of the picture, {style} style.",
    "The {colour} {shape} {move} {way} from the {place} to the {place}.",
    "{number} {colour} {shape}s and a {size} {shape} beside them, {ground} floor, {time} light.",
    "a {style} of a {colour} {shape} above a {colour} {shape}",
    "A video of a {look} {shape} that {move} {way} while the camera is {camera}.",
    "Change the colour of the {shape} from {colour} to {colour}.",
    "Replace the {colour} {shape} with a {size} {look} {shape}, and keep everything else the same.",
    "Remove the {shape} at the {place} and add {number} {shape}s in front of the {ground} background.",
    "Turn the image into a {style} at {time}.",
    "Put the {shape} of Image 1 next to the {shape} of Image 2.",
    "Make the object in Image 1 move like the one in Video 1: it {move} {way}.",
    "A {colour} {thing} and a {look} {thing} on the {ground}, the {thing} {move} {way}.",
    "Add a {size} {thing} to the {place} of the picture, replace the {thing} by a {colour} {thing}.",
    "The {person} holds a {thing} made of {stuff}, {camera} camera, view through a window.",
    "Let the {person} walk {way} along the street with an umbrella; the {thing} becomes {stuff}.",
    "Animate this picture: the {shape} {move} {way}, then it stops behind the {colour} {shape}.",
    "Copy the motion of the video and the camera, {camera}, for the {colour} {shape}.",
    "low quality, blurry, noisy, flickering, cropped, duplicate frames, watermark, text, {colour} tint",
)


def corpus() -> Iterator[str]:
    """The training text, the same every time."""
    chooser = random.Random(0)
    choices = {kind: words.split() for kind, words in WORDS.items()}
    for number in range(CAPTIONS):
        yield from CHAT
        template = TEMPLATES[number % len(TEMPLATES)]
        # Each gap draws anew, so that two shapes of one caption differ.
        while "{" in template:
            before, _, rest = template.partition("{")
            kind, _, after = rest.partition("}")
            template = f"{before}{chooser.choice(choices[kind])}{after}"
        yield template[:1].upper() + template[1:] if number % 2 else template


def train_tokenizer(vocab_size: int) -> dict[str, object]:
    """Train a tokenizer of exactly `vocab_size` tokens, special ones last; returns the files of a tokenizer by name.

    `tokenizer.json` is text, `tokenizer_config.json` an object. Imports tokenizers.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    assert tokenizer.get_vocab_size() == vocab_size, "the captions have too few words for a vocabulary of this size"
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "model_max_length": 32768,
    }
    return {"tokenizer.json": tokenizer.to_str(pretty=True), "tokenizer_config.json": config}


def token_ids(vocab_size: int) -> dict[str, int]:
    """The ids that a VLM's config must name, by their field."""
    first = vocab_size - len(SPECIAL_TOKENS)
    fields = {
        "image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>",
        "bos_token_id": "<|endoftext|>", "eos_token_id": "<|im_end|>",
    }  # fmt: skip
    return {field: first + SPECIAL_TOKENS.index(token) for field, token in fields.items()}
