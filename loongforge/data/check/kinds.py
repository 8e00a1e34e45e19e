"""The kinds of problems that a check counts."""

from __future__ import annotations

ERRORS = {
    "unreadable_source": "a file that cannot be read, or ends too early",
    "invalid_json": "not a JSON object",
    "not_utf8": "not UTF-8",
    "lone_surrogate": "half of a surrogate pair",
    "no_messages": "neither 'messages' nor 'conversations' nor 'text'",
    "wrong_type": "a value of the wrong type",
    "shard_members": "members of a shard that make no sample",
    "unknown_role": "a role other than system, user, assistant",
    "role_order": "roles out of order",
    "no_answer": "it does not end with an answer",
    "empty_question": "a question without text or image",
    "empty_answer": "an answer without text",
    "truncated_answer": "an answer that is only a mark of omission",
    "empty_text": "a text of nothing but blanks",
    "no_label_tokens": "nothing to learn",
    "too_long": "longer than the model's context or data.max_length",
    "image_count": "placeholders and images differ in number",
    "image_token_in_text": "the image token in plain text",
    "special_token_in_text": "a special token of the tokenizer in plain text",
    "text_with_images": "a raw text with images",
    "no_vision_encoder": "images, but the model has no vision encoder",
    "missing_image": "an image file that cannot be read",
    "image_path": "an image path that leads out of its folder",
    "too_many_bytes": "more bytes than a sample may have",
    "undecodable_image": "an image that cannot be decoded, or is cut off",
    "image_too_large": "an image beyond the limit of pixels",
    "image_too_long": "an image whose aspect ratio the encoder does not take",
    "template_refuses": "the chat template refuses it",
    "template_drops_text": "the chat template leaves out what a user says",
    "answer_not_learned": "the last answer is not learned whole",
    "question_learned": "a question is learned as if it were an answer",
    "recipe": "the recipe does not fit the data",
    "duplicate_id": "the id of another sample of the same set",
    "invalid_sample": "another problem",
    "crash": "an error that nobody expected: please report it",
}
"""Such samples stop a run or spoil it."""

WARNINGS = {
    "dropped_too_long": "too long, left out by data.too_long=drop",
    "cut_text": "too long, its text cut by data.too_long=truncate_text",
    "leaked_id": "held-out sample with the id of a training sample",
    "leaked_content": "held-out sample with text and images of a training sample",
    "earlier_answer_not_learned": "an answer before the last is not learned whole",
    "template_drops_system": "the chat template leaves out the system message",
    "foreign_placeholder": "what looks like a placeholder, but is none in this recipe",
    "replacement_character": "U+FFFD in its text: it was once decoded wrongly",
    "control_character": "control characters in its text",
    "aspect_ratio": "an image much longer than wide, or wider than long",
    "tiny_image": "an image of hardly a pixel",
    "clipped_depth": "an image of more than 8 bits a channel, which are clipped",
    "several_frames": "an animation, of which only the first frame is seen",
}
"""Such samples can be trained on; somebody should look at them."""
