"""The tokenizer of our own small models: a byte-level BPE in which every word of the small training world is one token.

Special tokens and splitting are those of Qwen's tokenizer, so the released code path runs unchanged; any other text can
still be tokenized, byte by byte if need be. Two things differ: text is lowercased, because the training world has no
capitals; and fixed parts of the chat template are single tokens, because each token costs a row of the transformer's
text stream.
"""

import re

from vino_rt.models.vino.prompt import render

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
IMAGES, PAIRS = 3, 4
"""Number of images and frame pairs whose labels are single tokens; later labels are tokenized normally."""
WORDS = (
    "a above add again alive an and animate anything are as at away background beige below big bigger black blue "
    "bottom by center change circle circles clip color comes corner cross crosses cyan delete describe disc discs "
    "do does donut donuts dotted down downwards draw else empty everything fast four from get gets give go goes "
    "gray green grow grows happens has image images in into is it keep large leave left like little make middle "
    "motion move moves navy not of on one orange over paint picture pink place purple put quickly red remove "
    "replace reproduce rest right ring rings rotate rotates same select shape show shows shrink shrinks side "
    "slide slides slowly small smaller spin spins square squares star stars stay stays still striped take the "
    "there thing things this three to top triangle triangles turn two under up upwards use video what where which "
    "while white with yellow"
)
"""Every word of the world's prompts, captions and questions, and closely related forms."""
FIRST = (
    "a an add animate change delete describe draw give image in it leave make move on one paint put remove replace "
    "reproduce select show take the there this turn two three four use video what where which while with"
)
"""Words that also begin a prompt or an answer, where no space precedes them."""
UNUSED = "<|unused_{}|>"


def template_tokens() -> tuple[str, ...]:
    """Fixed parts of the chat template (beginning, end, labels of references), longest first."""
    mark = "\0"
    head, tail = render(mark).split(mark)
    body = render(mark, [1] * IMAGES, [1] * PAIRS).removeprefix(head).split(mark)[0]
    labels = [label for label in re.split(r"<\|\w+\|>", body) if label]
    return tuple(sorted({head, tail, *labels}, key=lambda run: (-len(run), run)))


def corpus() -> list[str]:
    """The training text: every word as inside a sentence, and some also as at its start."""
    return [*(f" {word}" for word in WORDS.split()), *FIRST.split()]


def train_tokenizer(vocab_size: int) -> dict[str, object]:
    """Train a tokenizer of exactly `vocab_size` tokens, special ones last; returns the files of a tokenizer by name.

    `tokenizer.json` is text, `tokenizer_config.json` an object. Imports tokenizers.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    template = template_tokens()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS) - len(template),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    # The words may need fewer merges than requested; fill up, so that the ids of special tokens do not depend on it.
    room = vocab_size - len(SPECIAL_TOKENS) - len(template) - tokenizer.get_vocab_size()
    tokenizer.add_tokens([AddedToken(run, normalized=False, special=False) for run in template])
    tokenizer.add_special_tokens([AddedToken(UNUSED.format(i), normalized=False, special=True) for i in range(room)])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    assert tokenizer.get_vocab_size() == vocab_size
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
