"""The book that ships is clean and says much; a broken book is named by file, clause and mend."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from models.mail import guard
from models.mail.slots import ALWAYS, SLOTS, slots_in
from models.phrasebook import Book
from models.phrasebook.book import EXCLUSIVE, GOODS, SITUATIONS, TONES, Clause
from models.phrasebook.check import MAILS, problems, sizes
from models.phrasebook.choice import thoughts, unsaid
from models.phrasebook.sample import choose, context, drafts, sample
from schemas.errors import PhrasebookError

SMALL = """
trigger = "hello"
moves = ["subject", "reason", "offer", "cta"]
optional = ["offer"]
[template]
subject = "hello.subject.01"
reason = "hello.reason.01"
offer = "hello.offer.01"
cta = "hello.cta.01"
[[clause]]
id = "hello.subject.01"
move = "subject"
text = "A good day"
[[clause]]
id = "hello.subject.02"
move = "subject"
text = "Coffee, perhaps?"
goods = ["coffee_tea"]
tones = ["warm"]
[[clause]]
id = "hello.reason.01"
move = "reason"
text = "We write because it is a good day for a walk, and because you like to hear from us on such days."
[[clause]]
id = "hello.reason.02"
move = "reason"
text = "Bread is what we think of when we think of you, and we think of you on most days of the week."
goods = ["bakery"]
[[clause]]
id = "hello.offer.01"
move = "offer"
text = "Use {coupon_code} for it."
[[clause]]
id = "hello.cta.01"
move = "cta"
text = "Go: {cta_link}"
"""


@pytest.fixture(scope="module")
def book() -> Book:
    return Book.load()


def write(folder: Path, text: str, name: str = "hello.toml") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_nothing_is_wrong_with_the_book_that_ships(book: Book) -> None:
    assert [str(p) for p in problems(book)] == []


def test_the_book_covers_the_lifecycle_and_says_much(book: Book) -> None:
    assert {"welcome", "post_purchase", "replenishment", "win_back", "recommendation", "coupon"} <= set(book.triggers)
    assert {"cart_abandoned", "checkout_abandoned"} <= set(book.triggers)
    assert min(sizes(book).values()) >= MAILS


def test_every_sampled_mail_passes_the_guard(book: Book) -> None:
    for trigger in book.triggers:
        for text in drafts(book, trigger, "", 40, seed=7):
            refused = {rule: v for rule, v in guard.check(text, frozenset(SLOTS), trigger).items() if v != "ok"}
            assert not refused, text


def test_every_template_passes_with_the_least_facts(book: Book) -> None:
    for trigger in book.triggers:
        least = book.chapter(trigger).minimal
        assert guard.passes(guard.check(book.template(trigger, least), least, trigger))


def test_samples_are_filled_and_repeatable(book: Book) -> None:
    mails = sample(book, "coupon", "warm", 5, seed=3)
    assert mails == sample(book, "coupon", "warm", 5, seed=3)
    assert not any(slots_in(mail) for mail in mails)
    assert all(mail.startswith("Subject: ") for mail in mails)


def test_clauses_fit_tone_goods_slots_and_situation(book: Book) -> None:
    for trigger, tone in itertools.product(book.triggers, TONES):
        for move in book.moves(trigger):
            for clause in book.clauses(trigger, move, tone, ALWAYS, "bakery", {"regular"}):
                assert not clause.tones or tone in clause.tones
                assert not clause.goods or "bakery" in clause.goods
                assert set(clause.situation) <= {"regular"}
                assert clause.slots <= ALWAYS


def test_an_offer_is_only_made_where_there_is_one(book: Book) -> None:
    assert book.clauses("welcome", "offer", "warm", ALWAYS) == []
    assert book.clauses("welcome", "offer", "warm", ALWAYS | {"coupon_code"})


def test_compose_renders_by_clause_or_by_id(tmp_path: Path) -> None:
    small = Book.load(write(tmp_path, SMALL))
    ids = {"subject": "hello.subject.01", "reason": "hello.reason.01", "cta": "hello.cta.01"}
    text = small.compose(ids)
    assert text == small.compose({move: small.clause(i) for move, i in ids.items()})
    assert text.split("\n\n")[0] == "Subject: A good day"
    assert text.endswith("\n\nGo: {cta_link}")
    assert small.template("hello", {"coupon_code"}).count("{coupon_code}") == 1
    assert small.template("hello") == text
    with pytest.raises(PhrasebookError, match=r"hello\.cta\.01 is a cta"):
        small.compose({"subject": "hello.cta.01"})
    with pytest.raises(PhrasebookError, match="no clause"):
        small.compose({"subject": "hello.subject.99"})
    with pytest.raises(PhrasebookError, match="no file for trigger"):
        small.moves("nothing")


def test_mails_counts_only_what_one_customer_could_get(tmp_path: Path) -> None:
    # 2 subjects x 2 reasons x (offer or none), less coffee with bread
    assert Book.load(write(tmp_path, SMALL)).mails("hello") == 6


def test_mails_agrees_with_counting_by_hand(tmp_path: Path) -> None:
    extra = [
        f'[[clause]]\nid = "hello.subject.1{i}"\nmove = "subject"\ntext = "Say {word}"\ntones = ["{tone}"]\nsituation = ["{situation}"]\n'
        for i, (word, tone, situation) in enumerate(zip("abc", TONES, ("first_order", "regular", "big_basket"), strict=True))
    ]
    more = '[[clause]]\nid = "hello.reason.13"\nmove = "reason"\ntext = "Because."\nsituation = ["regular"]\ntones = ["warm", "crisp"]\n'
    small = Book.load(write(tmp_path, SMALL + "".join(extra) + more))
    seen = set()
    for tone, goods in itertools.product(TONES, GOODS):
        for n in range(4):
            for situation in itertools.combinations(SITUATIONS, n):
                if any(pair <= set(situation) for pair in EXCLUSIVE):
                    continue
                moves = [
                    [c.id for c in small.clauses("hello", move, tone, frozenset(SLOTS), goods, situation)]
                    + ([""] if move in small.optional("hello") else [])
                    for move in small.moves("hello")
                ]
                seen |= set(itertools.product(*moves))
    assert small.mails("hello") == len(seen)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ('text = "A good day"', 'text = "A good day', "can't be read as TOML"),
        ('text = "A good day"', 'words = "A good day"', "clause hello.subject.01"),
        ('trigger = "hello"', 'trigger = "bye"', "name the file bye.toml"),
        ('["subject", "reason", "offer", "cta"]', '["reason", "subject", "offer", "cta"]', "in this order"),
        ('id = "hello.subject.02"\nmove = "subject"', 'id = "hello.subject.02"\nmove = "greeting"', "hello.subject.02"),
        ('id = "hello.subject.02"', 'id = "hello.subject.01"', "stands twice"),
        ("Use {coupon_code} for it.", "A gift for you.", "hello.offer.01"),
        ('cta = "hello.cta.01"\n', "", "template lacks cta"),
        ('cta = "hello.cta.01"', 'cta = "hello.cta.09"', "name the id of a cta clause"),
    ],
)
def test_a_broken_file_is_refused_with_file_and_mend(tmp_path: Path, old: str, new: str, match: str) -> None:
    assert old in SMALL
    with pytest.raises(PhrasebookError, match=match) as error:
        Book.load(write(tmp_path, SMALL.replace(old, new, 1)))
    assert "hello.toml" in str(error.value)
    assert "\n" not in str(error.value) or "TOML" in str(error.value)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PhrasebookError, match="no phrase book there"):
        Book.load(tmp_path)


@pytest.mark.parametrize(
    ("clause", "what"),
    [
        ('move = "subject"\ntext = "A better day"\ntones = ["angry"]', "unknown tone 'angry'"),
        ('move = "subject"\ntext = "A better day"\ngoods = ["ships"]', "unknown goods 'ships'"),
        ('move = "subject"\ntext = "Now {nonsense}"', "unknown slot {nonsense}"),
        ('move = "subject"\ntext = "Hi {first_name}"', "{first_name} in a subject"),
        ('move = "subject"\ntext = "A good day"', "the same words as hello.subject.01"),
        ('move = "subject"\ntext = "A free day"', "the guard refuses it (claims: free)"),
        ('move = "subject"\ntext = "Get the {product_1}"', "'the {product_1}'"),
        ('move = "subject"\ntext = "It is a good day for a walk"', "the same phrase"),
        ('move = "reason"\ntext = "Use {coupon_code} and smile."', "{coupon_code} in a reason"),
        ('move = "reason"\ntext = "Use it well and smile."\nsituation = ["regular", "first_order"]', "never meet"),
        ('move = "cta"\ntext = "{cta_link}"', "not a label and the link"),
        ('move = "reason"\ntext = "It never ends"', "no full stop at its end"),
    ],
)
def test_each_kind_of_problem_is_found_with_its_line(tmp_path: Path, clause: str, what: str) -> None:
    text = SMALL + f'[[clause]]\nid = "hello.x.01"\n{clause}\n'
    found = [p for p in problems(Book.load(write(tmp_path, text))) if what in p.what]
    assert found, what
    assert found[0].clause in {"hello.x.01", "hello.reason.01"}
    assert text.splitlines()[found[0].line - 1] == f'id = "{found[0].clause}"'


def test_thin_coverage_is_found(tmp_path: Path) -> None:
    whats = [p.what for p in problems(Book.load(write(tmp_path, SMALL)))]
    assert "subject, warm: 1 clauses that always fit" in whats
    assert any(what.startswith("only 6 different mails") for what in whats)


def test_a_mail_says_each_thought_once(book: Book) -> None:
    """Neighbouring moves don't repeat each other's words, whatever is drawn: the same rule for samples and for the writer."""
    rng = random.Random(5)
    for trigger, tone in itertools.product(book.triggers, TONES):
        for _ in range(8):
            goods, situation = context(rng)
            slots = ALWAYS | set(book.chapter(trigger).facts) | {"product_1"}
            heard: set[str] = set()
            for clause in choose(book, trigger, tone, slots, goods, situation, rng).values():
                assert not heard & clause.thoughts, (clause.id, heard & clause.thoughts)
                heard |= clause.thoughts


def test_words_of_one_thought_are_told_by_stem_and_by_the_lexicon() -> None:
    assert thoughts("A gentle reminder") & thoughts("We'd like to remind you") == {"reminder"}
    assert thoughts("Be patient") & thoughts("Thank you for your patience") == {"patie"}
    assert thoughts("A short note") & thoughts("We'll be brief") == {"brevity"}
    assert not thoughts("More coffee, perhaps") & thoughts("Coffee is here")  # what the mail is about may be said again


def test_where_every_clause_repeats_one_is_still_said() -> None:
    said = Clause("a", "subject", "A gentle nudge", thoughts=thoughts("A gentle nudge"))
    again = Clause("b", "reason", "A nudge", thoughts=thoughts("A nudge"))
    other = Clause("c", "reason", "Good day", thoughts=thoughts("Good day"))
    assert unsaid([again, other], [said]) == [other]
    assert unsaid([again], [said]) == [again]
    assert unsaid([], [said]) == []


def test_a_care_mail_says_sorry_and_is_signed(book: Book, tmp_path: Path) -> None:
    for trigger, tone in itertools.product(("complaint_care", "refund_care"), TONES):
        for text in drafts(book, trigger, tone, 20, seed=11):
            assert any(word in text.lower() for word in ("sorr", "apolog", "regret", "least we owe")), text
            assert ", {agent_name}." in text
    lacking = Book.load(write(tmp_path, SMALL.replace('optional = ["offer"]', 'optional = ["offer"]\nmust = { reason = ["sorry"] }')))
    assert [p.clause for p in problems(lacking) if "none of sorry" in p.what] == ["hello.reason.01", "hello.reason.02"]
