"""Words of captions: what Stanford's PTBTokenizer and the COCO caption evaluation make of the same."""

import pytest

from hfvlm.evaluation.words import words


@pytest.mark.parametrize(
    ("caption", "expected"),
    [  # recorded from the Java tokenizer
        (
            "A man's dog isn't here; he can't, won't cannot gonna go.",
            "a man 's dog is n't here he ca n't wo n't can not gon na go",
        ),
        ('the "big" dog (brown) - runs... fast!', "the big dog -lrb- brown -rrb- runs fast"),
        ("black-and-white dog & cat", "black-and-white dog & cat"),
        ("it costs $5.00 or 10,000 50%", "it costs $ 5.00 or 10,000 50 %"),
        ("at 10:30 a.m. Mr. Smith's U.S. flag", "at 10:30 a.m. mr. smith 's u.s. flag"),
        ("rock 'n' roll dogs' ball", "rock 'n' roll dogs ball"),
        ("t-shirt #5 and/or w/ hat", "t-shirt # 5 and/or w / hat"),
        ("they're I'm we'll you've he'd", "they 're i 'm we 'll you 've he 'd"),
        ("a cat/dog , the 1990's '90s", "a cat/dog the 1990 's '90s"),
        ("3/4 of 1/2 pizza", "3/4 of 1/2 pizza"),
        ("No. 5 bus to St. Mary", "no. 5 bus to st. mary"),
        ("dog.The cat", "dog.the cat"),
        ("a.b.c foo.bar x.", "a.b.c foo.bar x."),
        ("ice-cream--cold", "ice-cream cold"),
        ("what?! hey!!", "what ?! hey !!"),
        ("let's d'oh o'clock", "let 's d'oh o'clock"),
        ("@home a*b a_b ~x", "@home a * b a_b ~ x"),
        ("e-mail me@x.com http://a.com/b", "e-mail me@x.com http://a.com/b"),
        ("is being milked by machine..", "is being milked by machine"),
        ("Uma fileira de parquímetros.", "uma fileira de parquímetros"),
        (" . ", ""),
    ],
)
def test_words(caption, expected):
    assert words(caption) == expected
