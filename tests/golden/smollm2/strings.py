"""The strings whose token ids `make.py` records: about 200, each there for a reason named by its group."""

WORDS = [
    "", " ", "a", "Hello", "Hello, world!", " leading space", "trailing space ", "two  spaces", "three   spaces   inside",
    "CamelCaseWord", "snake_case_word", "kebab-case-word", "SCREAMING_SNAKE", "antidisestablishmentarianism",
    "The quick brown fox jumps over the lazy dog.", "It's he'll we've I'm you'd they're can't O'Neill's", "IT'S HE'LL WE'VE",
    "“Curly quotes” and ‘single ones’", "em—dash, en–dash, hyphen-minus", "ellipsis… and dots...", "(parentheses) [brackets] {braces}",
    "Mr. Smith vs. Dr. Jones, e.g. i.e. etc.", "a.b.c.d", "https://example.org/a/b?c=d&e=f#g", "user@example.org", "#hashtag @mention",
    "50% off!!! $9.99 (was $19.99)", "???", "!?!?", "--", "---", "****", "====", "~~~", "``", "```", "\\", "\\\\n", "/", "|", "||",
]  # fmt: skip

NUMBERS = [
    "0", "7", "42", "123", "1234", "12345678901234567890", "1,234,567.89", "-17", "+5", "3.14159", "1e-5", "6.02e23", "0x1F", "0b1010",
    "2026-11-21", "19:42:33", "1/2", "50%", "v1.2.3-rc4", "a1b2c3", "1a", "x12", "x 12", "x  12", "x   12", " 5", "  5", "   5", "5 ",
    "5  6", "1 2 3", "1\n2\n3", "1\t2", "(1)", "[12]", "No. 5", "№ 5", "½ ¼ ¾", "x² + y³", "H₂O", "Ⅳ Ⅻ", "١٢٣", "१२३", "１２３", "①②③",
]  # fmt: skip

WHITESPACE = [
    "\n", "\n\n", "\n\n\n", "\t", "\t\t", " \n", "\n ", " \n ", "a\nb", "a\n\nb", "a \n b", "a\n  b", "a\n    b", "\ta\tb", "a\t b",
    "    indented four", "        indented eight", "     five", "line\r\nline", "\r\n\r\n", "a\u00a0b", "a\u2003b", "a\u3000b", "a\u200bb",
    "   ", "      ", "a   ", "a \t \n ", "\u2028", "end\n",
]  # fmt: skip

UNICODE = [
    "café", "cafe\u0301", "naïve façade", "Zürich Straße", "ÆØÅ æøå", "Łódź żółć", "Привет, мир!", "Γειά σου Κόσμε", "مرحبا بالعالم", "שלום עולם",
    "नमस्ते दुनिया", "สวัสดีชาวโลก", "你好，世界！", "こんにちは世界", "カタカナ ひらがな 漢字", "안녕하세요 세계", "Xin chào thế giới", "İstanbul ığüşöç",
    "😀", "😀😃😄", "👍🏽", "👩‍👩‍👧‍👦", "🇩🇪🇫🇷", "a😀b", "❤️", "☃ ☂ ☀", "→ ← ↑ ↓ ⇒", "∀x∈ℝ: ∃y", "∑_{i=0}^{n} i²", "αβγδ", "ﬁ ﬂ ligatures", "ｆｕｌｌ ｗｉｄｔｈ",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "𝒜", "\ufeffBOM", "Z͑ͫ̓a͜l͏g̈o", "ﷺ", "ß ẞ", "№ ™ © ® °", "€ £ ¥ ₿", "한글 jamo ㅎㅏㄴ", "ꙮ", "ʻokina", "o’clock", "l’été",
]  # fmt: skip

CODE = [
    "def f(x):\n    return x + 1\n", "for (int i = 0; i < n; ++i) {\n\tsum += a[i];\n}", "fn main() { println!(\"{}\", 1u32 << 5); }",
    "SELECT * FROM t WHERE a >= 10 AND b <> 'x';", "<div class=\"a\">text &amp; more</div>", "{\"key\": [1, 2.5, null, true]}", "a = b if c else d",
    "x->y->z", "a::b::<C>()", "let x = &mut *y;", "#include <stdio.h>", "// comment\n/* block */", "if [ \"$a\" = '' ]; then echo; fi",
    "\\begin{equation} e^{i\\pi} + 1 = 0 \\end{equation}", "git commit -m \"msg\" && git push", "C:\\Users\\name\\file.txt", "/usr/local/bin",
    "$HOME ${HOME} `cmd` $(cmd)", "import numpy as np\n\n\nclass A:\n\n    pass", "a+=1;b-=2;c*=3", "0xDEADBEEF", "!=", "==>", "<=>", "&&", "...args",
    "async () => { await x?.y ?? z; }", "| a | b |\n|---|---|\n| 1 | 2 |", "- item\n  - nested\n    - deeper", "# Title\n\n## Sub\n\n**bold** _it_",
]  # fmt: skip

SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_start|>user\nHi<|im_end|>\n", "a<|im_end|>b", " <|im_end|> ", "<|im_end|><|im_end|>",
    "<|im_start|>system\nYou are.<|im_end|>\n<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n", "<repo_name>x<file_sep>y", "<jupyter_code>",
    "<|im_start", "<|im_start |>", "|im_end|>", "<|IM_END|>", "<|unknown|>", "<gh_stars>100", "<s>", "</s>", "[INST] x [/INST]", "<|begin_of_text|>",
    "<|endoftext|><|endoftext|>text", "\n<|im_start|>\n",
]  # fmt: skip

STRINGS = WORDS + NUMBERS + WHITESPACE + UNICODE + CODE + SPECIAL
