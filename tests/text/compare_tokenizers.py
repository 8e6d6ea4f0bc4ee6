#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""moe8's tokenizers beside the `tokenizers` library: the same ids and the same texts, or exit status 1.

  compare_tokenizers.py PROGRAM WHEELS [--megabytes N] [--only NAME]
  compare_tokenizers.py --record FOLDER       small cases for tokenizer_test.cpp

PROGRAM is test_tokenizer_check. WHEELS is a folder with the unpacked wheels of litellm and dashscope,
which hold vocabularies of published models (./dev test --tokenizers downloads them). Run by a Python
that has `tokenizers`. The text is made of what a Debian system has: translations in every language, the
sources and documents of Python, and of random code points, emoji, and bytes that are no UTF-8.
"""
import argparse
import base64
import glob
import gzip
import itertools
import json
import os
import pathlib
import random
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
import unicodedata

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SEED = 20
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN_WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
              r"|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3_WORDS = QWEN_WORDS.replace(r"\p{N}|", r"\p{N}{1,3}|")
O200K_WORDS = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
               r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
               r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


# ---- text -------------------------------------------------------------------
def paths(draw, *patterns):
    found = sorted(path for pattern in patterns for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    draw.shuffle(found)
    return found


def translations(draw):
    """The texts of .mo files, in some hundred languages."""
    for path in paths(draw, "/usr/share/locale/*/LC_MESSAGES/*.mo"):
        data = pathlib.Path(path).read_bytes()
        if len(data) < 28 or struct.unpack_from("<I", data)[0] != 0x950412DE:
            continue
        count, _, table = struct.unpack_from("<III", data, 8)
        entries = [struct.unpack_from("<II", data, table + 8 * i) for i in range(count)]
        yield b"\n".join(data[at:at + size].replace(b"\0", b"\n") for size, at in entries)


def files(found):
    for path in found:
        data = pathlib.Path(path).read_bytes()
        yield gzip.decompress(data) if path.endswith(".gz") else data


def random_text(draw):
    """Code points of every kind, in runs as scripts have them, with spaces, line ends and marks."""
    known = [c for c in map(chr, range(0x30000)) if unicodedata.category(c) not in ("Cn", "Cs", "Co")]
    while True:
        words = []
        for _ in range(draw.randrange(1, 300)):
            start = draw.randrange(len(known) - 64)
            near = known[start:start + 64]
            word = "".join(draw.choices(near, k=draw.randrange(1, 9)))
            if draw.random() < 0.2:
                word += "".join(draw.choices("\u0300\u0301\u0327\u0345\u1161\u11a8\u3099", k=draw.randrange(1, 4)))
            words.append(word)
            words.append(draw.choice([" ", " ", " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u180e", "", ", "]))
        yield "".join(words).encode()


def emoji(draw):
    # Up to Unicode 14, which PCRE2 10.42 knows.
    faces = [chr(c) for c in [*range(0x1F300, 0x1F650), *range(0x1F680, 0x1F6D8), *range(0x2600, 0x27C0)]]
    while True:
        text = []
        for _ in range(draw.randrange(1, 200)):
            face = draw.choice(faces)
            if draw.random() < 0.3:
                face += chr(draw.randrange(0x1F3FB, 0x1F400))
            if draw.random() < 0.2:
                face += "\ufe0f"
            if draw.random() < 0.3:
                face += "\u200d" + draw.choice(faces)
            if draw.random() < 0.1:
                face = "".join(chr(0x1F1E6 + draw.randrange(26)) for _ in range(2))
            text.append(face + draw.choice(["", " ", "!", "\n", "x"]))
        yield "".join(text).encode()


def broken(draw, whole):
    """Texts with bytes changed, left out and cut at any byte."""
    while True:
        text = bytearray(draw.choice(whole)[:2000])
        for _ in range(draw.randrange(1, 40)):
            at = draw.randrange(len(text) + 1)
            if draw.random() < 0.5:
                text[at:at] = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 5)))
            else:
                del text[at:at + draw.randrange(1, 4)]
        yield bytes(text)


def special_text(draw, tokens):
    """The tokenizer's own added tokens, whole and damaged, in all kinds of company."""
    around = ["", " ", "  ", "\n", "a", "Z9", "_", "é", "\u3000", ".", " a", "b "]
    while True:
        text = []
        for _ in range(draw.randrange(1, 60)):
            token = draw.choice(tokens)
            if draw.random() < 0.1 and len(token) > 1:
                token = token[:-1]
            text += [draw.choice(around), token, draw.choice(around)]
        yield "".join(text).encode()


def edge_documents():
    yield from (b"", b" ", b"  ", b"\n", b"\r\n\r\n", b"a", b"\0", b"\xff", b"'", b"'S 'LL \xc5\xbf'\xc5\xbf",
                b" a  b   c    ", b"\t\t\tx", b"x\n\n\n  y", b"aaaaaaaaaaaaaaaaaaaaaaaa" * 40, b" " * 3000,
                ("é" * 700).encode(), b"1234567890" * 30, b"a\xe1\xa0\x8eb \xe1\xa0\x8e c")


def pieces(documents, draw, megabytes):
    """Up to so many bytes, in documents of at most 8,000 bytes, most cut between characters."""
    left = int(megabytes * 1e6)
    for text in documents:
        at = 0
        while at < len(text) and left > 0:
            end = min(at + draw.randrange(200, 8000), len(text))
            while end < len(text) and text[end] & 0xC0 == 0x80:
                end += 1
            yield text[at:end]
            left -= end - at
            at = end
        if left <= 0:
            return


def corpus(megabytes):
    """List of (kind, documents)."""
    draw = random.Random(SEED)
    code = paths(draw, sysconfig.get_path("stdlib") + "/**/*.py", "/usr/share/perl/*/**/*.p[lm]", "/usr/include/*.h")
    prose = [str(ROOT / "data/kjv.txt.gz"), *paths(draw, "/usr/share/doc/**/*.html", "/usr/share/doc/**/*.gz")]
    whole = [*itertools.islice(translations(draw), 200), *files(code[:100])]
    shares = {"languages": (translations(draw), 0.4), "code": (files(code), 0.25), "prose": (files(prose), 0.15),
              "random": (random_text(draw), 0.08), "emoji": (emoji(draw), 0.04),
              "broken": (broken(draw, whole), 0.08)}
    texts = [("edges", list(edge_documents()))]
    for kind, (documents, share) in shares.items():
        texts.append((kind, list(pieces(documents, draw, share * megabytes))))
    return texts


# ---- tokenizers -------------------------------------------------------------
def merges_of(ranks):
    """The merges behind a list of byte strings that are sorted by rank."""
    merges = []
    for token, rank in ranks.items():
        if len(token) == 1:
            continue
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            joined = [ranks.get(parts[i] + parts[i + 1], rank) for i in range(len(parts) - 1)]
            best = min(range(len(joined)), key=joined.__getitem__)
            if joined[best] >= rank:
                break
            parts[best:best + 2] = [parts[best] + parts[best + 1]]
        if len(parts) == 2:
            merges.append(tuple(parts))
    return merges


def letters():
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + i) for i, byte in enumerate(others)}}


def from_ranks(path, words, special, normalizer=None, ignore_merges=False):
    """A byte-level tokenizer from a list of tokens in base64 and their ranks."""
    ranks = {}
    for line in pathlib.Path(path).read_text().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    spelled = letters()

    def spell(token):
        return "".join(spelled[byte] for byte in token)

    tokenizer = Tokenizer(models.BPE({spell(t): r for t, r in ranks.items()},
                                     [(spell(a), spell(b)) for a, b in merges_of(ranks)],
                                     ignore_merges=ignore_merges))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(pattern=Regex(words), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in special])
    return tokenizer


def trained(model, text, pre=None, normalizer=None, decoder=None, tokens=(), alphabet=(), size=4000):
    tokenizer = Tokenizer(model)
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre:
        tokenizer.pre_tokenizer = pre
    if decoder:
        tokenizer.decoder = decoder
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, special_tokens=list(tokens),
                                  initial_alphabet=list(alphabet), limit_alphabet=600)
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


def like_llama(text, size=4000):
    """Byte fallback, the space as a letter, no words: whole texts are merged."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    base = trained(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True), text,
                   pre=pre_tokenizers.Metaspace(prepend_scheme="always"), tokens=tokens, size=size)
    data = json.loads(base.to_str())
    data["pre_tokenizer"] = None
    data["added_tokens"] = [t for t in data["added_tokens"] if t["id"] < 3]
    data["normalizer"] = {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}
    data["decoder"] = {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
        {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return tokenizer


def added_tokens():
    return [AddedToken("<mask>", lstrip=True, special=True, normalized=False), AddedToken("<r>", rstrip=True),
            AddedToken("<both>", lstrip=True, rstrip=True, normalized=False), AddedToken("word", single_word=True),
            AddedToken("Éa", normalized=True), AddedToken("[X]", normalized=False), AddedToken("[X][X]", normalized=False),
            AddedToken("ﬁx", normalized=True), AddedToken("  ", normalized=False)]


def with_tokens(tokenizer):
    tokenizer.add_tokens([t for t in added_tokens() if not t.special])
    tokenizer.add_special_tokens([t for t in added_tokens() if t.special])
    return tokenizer


def own(text, size=4000):
    """Small ones in which every part that moe8 knows occurs."""
    P, N, D = pre_tokenizers, normalizers, decoders
    level = P.ByteLevel.alphabet()
    unknown = ["<unk>"]
    no_regex = P.ByteLevel(add_prefix_space=False, use_regex=False)

    def made(model, pre, normalizer=None, decoder=None, tokens=(), alphabet=()):
        return with_tokens(trained(model, text, pre, normalizer, decoder, tokens, alphabet, size))

    yield "metaspace_first", made(models.BPE(unk_token="<unk>"), P.Metaspace(prepend_scheme="first"),
                                  decoder=D.Metaspace(), tokens=unknown)
    yield "metaspace_always", made(models.BPE(unk_token="<unk>", fuse_unk=True),
                                   P.Sequence([P.Metaspace(split=False), P.Digits(True)]),
                                   N.NFKC(), D.Metaspace(prepend_scheme="always"), unknown)
    yield "word_ends", made(models.BPE(unk_token="<unk>", continuing_subword_prefix="##", end_of_word_suffix="</w>"),
                            P.BertPreTokenizer(), N.Sequence([N.NFD(), N.StripAccents(), N.Lowercase()]),
                            D.BPEDecoder(), unknown)
    yield "whitespace", made(models.BPE(), P.Whitespace(), N.Sequence([N.Nmt(), N.NFKD()]))
    yield "punctuation", made(models.BPE(unk_token="<unk>"),
                              P.Sequence([P.WhitespaceSplit(), P.Punctuation("contiguous"), P.Digits(False),
                                          P.CharDelimiterSplit("e"), P.FixedLength(7)]),
                              N.Sequence([N.Strip(), N.Replace(Regex(r"[aeiou]{2,}+"), "o"), N.Replace("x", "")]),
                              tokens=unknown)
    odd = Regex(r"\w{3}+|[[:upper:]]|\p{Han}|\h\h|(?=\d)|^- |,$")
    for behavior in ("removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"):
        for invert in (False, True):
            yield f"split_{behavior}_{invert}", made(models.BPE(), P.Sequence([P.Split(odd, behavior, invert), no_regex]),
                                                     N.NFC(), D.ByteLevel(), alphabet=level)
    yield "byte_level_prefix", made(models.BPE(ignore_merges=True), P.ByteLevel(), N.NFC(), D.ByteLevel(), alphabet=level)
    yield "byte_level_then_split", made(
        models.BPE(), P.Sequence([P.ByteLevel(add_prefix_space=True), P.Split("Ġ", "merged_with_previous")]),
        None, D.Sequence([D.Replace(Regex("q+"), "k"), D.ByteLevel()]), alphabet=level)
    yield "byte_level_normalizer", made(models.BPE(), P.Split(Regex("Ġ?[a-z]+"), "isolated"),
                                        N.Sequence([N.NFC(), N.ByteLevel()]), D.ByteLevel(), alphabet=level)
    roberta = made(models.BPE(), P.ByteLevel(), None, D.ByteLevel(), ["<s>", "</s>"], level)
    roberta.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    yield "roberta", roberta


def all_tokenizers(wheels, text):
    lit = wheels / "litellm/litellm_core_utils/tokenizers"
    end = ["<|endoftext|>"]
    chat = [*end, "<|im_start|>", "<|im_end|>"]
    yield "gpt2", from_ranks(lit / "ec7223a39ce59f226a68acc30dc1af2788490e15", GPT2_WORDS, end)
    yield "qwen", from_ranks(wheels / "dashscope/resources/qwen.tiktoken", QWEN_WORDS, chat, normalizers.NFC())
    yield "cl100k", from_ranks(lit / "9b5ad71b2ce5302211f9c61530b329a4922fc6a4", LLAMA3_WORDS, chat, ignore_merges=True)
    yield "o200k", from_ranks(lit / "fb374d419588a4632f3f557e76b4b70aebbca790", O200K_WORDS, end)
    yield "deepseek", Tokenizer.from_file(str(lit / "deepseek_tokenizer.json"))
    yield "anthropic", Tokenizer.from_file(str(lit / "anthropic_tokenizer.json"))
    yield "llama", with_tokens(like_llama(text))
    yield from own(text)


# ---- comparing --------------------------------------------------------------
def write_items(path, items):
    with open(path, "wb") as out:
        for item in items:
            out.write(struct.pack("<Q", len(item)) + item)


def read_items(path, width):
    data = pathlib.Path(path).read_bytes()
    at = 0
    while at < len(data):
        count = struct.unpack_from("<Q", data, at)[0]
        yield data[at + 8:at + 8 + width * count]
        at += 8 + width * count


def in_old_unicode(text):
    """The library's normalizers have tables of old versions of Unicode: later characters stay as they are there."""
    return "".join(c for c in text.decode() if unicodedata.ucd_3_2_0.category(c) != "Cn").encode()


def compare(name, tokenizer, texts, program, folder):
    if tokenizer.normalizer:
        texts = [(kind, [in_old_unicode(d) for d in part] if kind == "random" else part) for kind, part in texts]
    path = folder / f"{name}.json"
    tokenizer.save(str(path))
    added = [t.content for t in tokenizer.get_added_tokens_decoder().values()]
    own_texts = list(pieces(special_text(random.Random(SEED), added), random.Random(SEED), 0.2)) if added else []
    documents = [d for _, part in texts for d in part] + own_texts
    kinds = [kind for kind, part in texts for _ in part] + ["added tokens"] * len(own_texts)
    write_items(folder / "documents", documents)
    run = subprocess.run([program, path, folder / "documents", folder / "ids", folder / "texts"],
                         check=False, capture_output=True, text=True)
    if run.returncode:
        print(f"{name}: {run.stderr.strip()}")
        return False
    decoded = [d.decode("utf-8", errors="replace") for d in documents]
    begin = time.process_time()
    theirs = [tokenizer.encode(d).ids for d in decoded]
    seconds = time.process_time() - begin
    differences = {}
    for i, (ids, text) in enumerate(zip(read_items(folder / "ids", 4), read_items(folder / "texts", 1), strict=True)):
        ours = list(struct.unpack(f"<{len(ids) // 4}I", ids))
        if ours != theirs[i]:
            first = next((n for n, (a, b) in enumerate(zip(ours, theirs[i])) if a != b), min(len(ours), len(theirs[i])))
            context = tokenizer.decode(theirs[i][max(0, first - 3):first + 3])
            differences.setdefault(kinds[i] + ", encode", []).append((documents[i][:60], context, ours[first:first + 5], theirs[i][first:first + 5]))
        elif text.decode() != tokenizer.decode(theirs[i], skip_special_tokens=True):
            differences.setdefault(kinds[i] + ", decode", []).append((text[:80], tokenizer.decode(theirs[i])[:80]))
    size = sum(map(len, documents)) / 1e6
    mine = float(run.stdout) / 1e6
    print(f"{name:28} {len(documents):6} documents {size:6.2f} MB {sum(map(len, theirs)):9} tokens   moe8 {mine:6.1f} MB/s, "
          f"tokenizers {size / seconds:5.1f} MB/s   {'equal' if not differences else 'DIFFERENT'}", flush=True)
    for kind, found in differences.items():
        print(f"  {kind}: {len(found)} documents, the first: {found[0]!r}")
    return not differences


def record(folder):
    """Tokenizers of a few hundred tokens, and what the library makes of texts that are hard."""
    draw = random.Random(SEED)
    training = [d.decode("utf-8", errors="replace") for _, part in corpus(0.2) for d in part]
    recorded = ("metaspace_first", "metaspace_always", "word_ends", "punctuation", "split_merged_with_next_False",
                "split_contiguous_True", "byte_level_prefix", "byte_level_then_split", "roberta")
    tokenizers = dict(own(training, size=360))
    tokenizers = {"llama": with_tokens(like_llama(training, size=500)), **{name: tokenizers[name] for name in recorded}}
    texts = [*edge_documents(), *(d[:300] for _, part in corpus(0.2) for d in part[::12])]
    for name, tokenizer in tokenizers.items():
        added = [t.content for t in tokenizer.get_added_tokens_decoder().values()]
        cases = []
        for text in texts + list(itertools.islice((t[:200] for t in special_text(draw, added)), 6)):
            if tokenizer.normalizer:
                text = in_old_unicode(text.decode("utf-8", errors="replace").encode())
            ids = tokenizer.encode(text.decode("utf-8", errors="replace")).ids
            cases.append({"base64": base64.b64encode(text).decode(), "ids": ids,
                          "text": tokenizer.decode(ids, skip_special_tokens=True)})
        data = {"tokenizer": json.loads(tokenizer.to_str()), "cases": cases}
        (folder / f"{name}.json").write_text(json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program", nargs="?")
    parser.add_argument("wheels", type=pathlib.Path, nargs="?")
    parser.add_argument("--record", type=pathlib.Path)
    parser.add_argument("--megabytes", type=float, default=20)
    parser.add_argument("--small", type=float, default=1, help="for the tokenizers that are trained here")
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if options.record:
        return record(options.record)
    whole, small = corpus(options.megabytes), corpus(options.small)
    print(", ".join(f"{kind} {sum(map(len, part)) / 1e6:.1f} MB" for kind, part in whole))
    training = [d.decode("utf-8", errors="replace") for _, part in corpus(1) for d in part]
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        for tokenizer_name, tokenizer in all_tokenizers(options.wheels, training):
            if options.only not in tokenizer_name:
                continue
            published = tokenizer_name in ("gpt2", "qwen", "cl100k", "o200k", "deepseek", "anthropic")
            failed += not compare(tokenizer_name, tokenizer, whole if published else small,
                                  options.program, pathlib.Path(name))
    print("all equal" if not failed else f"{failed} tokenizers differ")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
