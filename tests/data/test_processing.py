from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loongforge.components.llm.llama.config import LlamaConfig
from loongforge.components.vision.vit.config import ClipViTConfig
from loongforge.config.errors import UserError
from loongforge.data.build import build_processor
from loongforge.data.images import ImageProcessor
from loongforge.data.preview import preview
from loongforge.data.processing import SampleProcessor
from loongforge.data.sample import RawSample, SampleError
from loongforge.data.tokenizer import load_tokenizer
from tests.data.conftest import chat, config, png


def _sample(messages: list[dict[str, Any]], num_images: int = 1) -> RawSample:
    return RawSample(id="s", messages=messages, images=[png] * num_images)


def _learned(processor: SampleProcessor, sample: RawSample) -> list[str]:
    """The runs of learned tokens, decoded."""
    done = processor(sample)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], done.learned.astype(int), [0]])))
    return [processor.decode(done.ids[a:b].tolist()) for a, b in edges.reshape(-1, 2)]


@pytest.mark.parametrize("answer", ["7", "top left", "", " spaced", "1234 and more\nlines", "été"])
def test_learned_is_exactly_the_answer_and_its_end(processor: SampleProcessor, answer: str) -> None:
    assert _learned(processor, _sample(chat(answer=answer))) == [answer + "</s>"]


def test_learned_of_several_turns(processor: SampleProcessor) -> None:
    system = [{"role": "system", "content": "Be brief."}]
    turns = system + chat(answer="7") + chat("And where?", "top left")
    assert _learned(processor, _sample(turns)) == ["7</s>", "top left</s>"]
    text = processor.decode(processor(_sample(turns)).ids.tolist())
    image = "<image>" * 4
    assert text == (
        f"Be brief. USER: {image}\nWhich digit is shown? ASSISTANT: 7</s>USER: And where? ASSISTANT: top left</s>"
    )


def test_one_placeholder_becomes_the_tokens_of_one_image(processor: SampleProcessor) -> None:
    done = processor(_sample(chat("<image><image>\nSame?"), 2))
    assert (done.ids == processor.image_token_id).sum() == 8
    assert len(done.pixels) == 2
    assert not done.learned[done.ids == processor.image_token_id].any()


def test_prompt_is_the_start_of_the_sample(processor: SampleProcessor) -> None:
    done = processor(_sample(chat(answer="top left")))
    prompt = processor.render_prompt(chat()[:1], processor.images([(0, 0)]))
    assert done.ids[: len(prompt)].tolist() == prompt
    assert done.learned[len(prompt)]
    assert not done.learned[: len(prompt)].any()


def test_parts_and_strings_give_the_same(processor: SampleProcessor) -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "Which digit is shown?"}]
    as_parts, as_string = processor(_sample(chat(parts))), processor(_sample(chat()))  # type: ignore[arg-type]
    assert as_parts.ids.tolist() == as_string.ids.tolist()


STRINGS_ONLY = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}A: {% generation %}{{ m['content'] + eos_token }}"
    "{% endgeneration %}{% else %}U: {{ m['content'] }} {% endif %}{% endfor %}"
)
PARTS_ONLY = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}A: {% generation %}{% for c in m['content'] %}"
    "{{ c['text'] }}{% endfor %}{{ eos_token }}{% endgeneration %}{% else %}U: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ c['text'] }}{% endif %}{% endfor %} "
    "{% endif %}{% endfor %}"
)


def _with_template(processor: SampleProcessor, template: str | None, **changes: Any) -> SampleProcessor:
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.chat_template = template
    options = {"max_length": 64, "num_image_tokens": 4, "image_processor": processor.image_processor}
    return SampleProcessor(tokenizer, **{**options, **changes})


@pytest.mark.parametrize("template", [STRINGS_ONLY, PARTS_ONLY])
def test_messages_are_put_in_the_form_a_template_reads(processor: SampleProcessor, template: str) -> None:
    other = _with_template(processor, template)
    parts = [{"type": "image"}, {"type": "text", "text": "Which?"}]
    for content in ("<image>\nWhich?", parts):
        done = other(_sample(chat(content)))  # type: ignore[arg-type]
        assert other.decode(done.ids.tolist()) == f"U: {'<image>' * 4}\nWhich? A: 7</s>"
        assert done.learned.sum() == 2


def test_template_without_generation_block(processor: SampleProcessor) -> None:
    other = _with_template(processor, STRINGS_ONLY.replace("{% generation %}", "").replace("{% endgeneration %}", ""))
    with pytest.raises(UserError, match=r"no \{% generation %\} block.*data\.chat_template"):
        other(_sample(chat()))
    with pytest.raises(UserError, match=r"no chat template.*data\.chat_template"):
        _with_template(processor, None)(_sample(chat()))
    with pytest.raises(UserError, match=r"writes 0 tokens '<image>' for 1 images; set data\.image_token"):
        _with_template(processor, STRINGS_ONLY.replace("m['content'] }}", "m['content'] | replace('<image>', '') }}"))(
            _sample(chat())
        )
    with pytest.raises(SampleError, match="template refuses it: not today"):
        _with_template(processor, "{% generation %}{% endgeneration %}{{ raise_exception('not today') }}")(
            _sample(chat())
        )


def test_image_tokens_are_never_learned(processor: SampleProcessor) -> None:
    everything = "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}"
    done = _with_template(processor, everything)(_sample(chat()))
    assert (done.learned == (done.ids != processor.image_token_id)).all()


def _message(role: str, content: Any = "x") -> dict[str, Any]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("messages", "num_images", "message"),
    [
        (chat(), 0, "1 placeholders '<image>' but 0 images"),
        (chat("no image"), 1, "0 placeholders '<image>' but 1 images"),
        (chat("<image><image>"), 1, "2 placeholders '<image>' but 1 images"),
        ([_message("user")], 0, "last message must be of role 'assistant'"),
        ([_message("assistant")], 0, "message 0 has role 'assistant' where 'user' is expected"),
        ([_message("user"), _message("user")], 0, "message 1 has role 'user' where 'assistant' is expected"),
        ([_message("system"), _message("assistant")], 0, "message 1 has role 'assistant'"),
        ([_message("user"), _message("system")], 0, "message 1 has role 'system'"),
        ([_message("human"), _message("gpt")], 0, "message 0 has role 'human'"),
        ([], 0, "last message must be of role 'assistant'"),
        (chat(5), 0, "content of message 0 must be a string or a list of parts, not 5"),  # type: ignore[arg-type]
        (chat([{"type": "video"}]), 0, "has part .*allowed"),  # type: ignore[arg-type]
        (chat([{"type": "text", "text": "an <image>"}]), 0, "holds the characters '<image>'"),  # type: ignore[arg-type]
        (chat("hi", "<image>"), 1, "answer in message 1 holds '<image>'"),
        (chat("<image>" * 16), 16, r"tokens long \(64 of them for 16 images\), longer than 64"),
        (chat("hello " * 100), 0, r"longer than 64 \(data\.max_length"),
    ],
)
def test_bad_conversations(
    processor: SampleProcessor, messages: list[dict[str, Any]], num_images: int, message: str
) -> None:
    with pytest.raises(SampleError, match=message):
        processor(_sample(messages, num_images))


def test_no_label_tokens(processor: SampleProcessor) -> None:
    template = "{% for m in messages %}{{ m['content'] }}{% generation %}{% endgeneration %}{% endfor %}"
    with pytest.raises(SampleError, match="no label tokens"):
        _with_template(processor, template)(_sample(chat("hi"), 0))
    with pytest.raises(SampleError, match="no label tokens"):
        processor(RawSample(id="t", text=""))


def test_image_without_vision_encoder(processor: SampleProcessor) -> None:
    blind = _with_template(processor, processor.tokenizer.chat_template, image_processor=None, num_image_tokens=0)
    with pytest.raises(SampleError, match="no vision encoder"):
        blind(_sample(chat()))
    assert blind(_sample(chat("hi"), 0)).learned.sum() == 2


def test_undecodable_image(processor: SampleProcessor) -> None:
    with pytest.raises(SampleError, match="cannot be decoded"):
        processor(RawSample(id="s", messages=chat(), images=[lambda: b"GIF89a broken"]))


def test_raw_text_is_learned_whole(processor: SampleProcessor) -> None:
    done = processor(RawSample(id="t", text="hello world"))
    assert processor.decode(done.ids.tolist()) == "<s>hello world</s>"
    assert done.learned.all()
    with pytest.raises(SampleError, match="longer than 64"):
        processor(RawSample(id="t", text="hello " * 100))
    with pytest.raises(SampleError, match="stand for an image"):
        processor(RawSample(id="t", text="an <image>"))


def test_preview_accounts_for_every_token(processor: SampleProcessor) -> None:
    done = processor(_sample(chat("<image><image>\nSame?", "no"), 2))
    shown = preview(done, processor)
    assert [i for piece in shown.pieces for i in piece.ids] == done.ids.tolist()
    assert [end - start for start, end in shown.image_spans] == [4, 4]
    assert all((done.ids[start:end] == processor.image_token_id).all() for start, end in shown.image_spans)
    assert (shown.learned_text, shown.num_tokens) == ("no</s>", len(done.ids))
    assert "".join(piece.text for piece in shown.pieces if piece.learned) == "no</s>"


def _vision(**changes: Any) -> ClipViTConfig:
    sizes = {"image_size": 32, "patch_size": 16, "hidden_size": 32, "num_layers": 2, "num_heads": 2}
    fixed = {"type": "clip_vit", "mlp_hidden_size": 64, "image_mean": [0.3] * 3, "image_std": [0.38] * 3}
    return ClipViTConfig(**{**sizes, **fixed, **changes})


def _llm(**changes: Any) -> LlamaConfig:
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "mlp_hidden_size": 64, "vocab_size": 512}
    return LlamaConfig(**{"type": "llama", "num_kv_heads": 2, "max_seq_len": 128, **sizes, **changes})


def test_build_processor_takes_sizes_from_the_model(digits: Path) -> None:
    data = config("unused")
    data.tokenizer = str(digits / "tokenizer")
    made = build_processor(data, _vision(), _llm())
    assert (made.num_image_tokens, made.max_length) == (4, 128)
    assert made.image_processor is not None
    assert made.image_processor.resize == "crop"
    assert build_processor(data, None, _llm()).image_processor is None
    with pytest.raises(UserError, match=r"512 tokens, more than model\.llm\.vocab_size=500"):
        build_processor(data, _vision(), _llm(vocab_size=500))
    data.max_length = 200
    with pytest.raises(UserError, match=r"data\.max_length=200 exceeds the context, model\.llm\.max_seq_len=128"):
        build_processor(data, _vision(), _llm())


def test_image_token_must_be_a_token(digits: Path) -> None:
    tokenizer = load_tokenizer(digits / "tokenizer")
    images = ImageProcessor(32, [0.5] * 3, [0.5] * 3)
    with pytest.raises(UserError, match=r"data\.image_token='<picture>' is not one token"):
        SampleProcessor(tokenizer, max_length=64, image_token="<picture>", image_processor=images)
