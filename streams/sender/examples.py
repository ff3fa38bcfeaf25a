"""What was sent becomes what the trainer learns from: the prompt and the words with their slots, never filled."""

from __future__ import annotations

from schemas.mail import Draft, Example


def example_of(draft: Draft, sent: str) -> Example:
    """The example of a draft whose mail was sent at ``sent`` (RFC 3339)."""
    intent = draft.intent
    return Example(
        intent_id=intent.intent_id,
        cluster=intent.cluster,
        trigger=intent.trigger,
        prompt=draft.prompt,
        text=draft.text,
        choices=draft.choices,
        release=draft.release,
        origin=draft.origin,
        tone=intent.tone,
        sent=sent,
        customer=intent.customer,
    )
