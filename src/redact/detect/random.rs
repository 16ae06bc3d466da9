//! Whether text looks random, made up for a document, or like words.
//!
//! Danger: logs are full of text that is long and means nothing to a person: digests, ids, paths,
//! names of objects, images. What is random by count of bytes alone is mostly that.
#![forbid(unsafe_code)]

use memchr::{memchr_iter, memchr2};

use crate::sys::base64::six_bits;

use super::class::{
    self, Kinds, Marks, OF_DIGIT, is_alnum, is_any_base64, is_base64, is_hex, is_url_safe, shannon,
};

/// Shorter text is not random enough by itself.
pub(super) const ENTROPY_BYTES_MIN: usize = 40;
/// Random base64 of 40 bytes has 4.9 bits a byte on average, prose and names below 4.4.
const ENTROPY_BITS_MIN: f32 = 4.5;
/// Of neighbours in random base64, 64 % differ in their kind (lower, upper, digit); in names that are
/// made of words less than a third.
const CHANGES_MIN: f32 = 0.42;
/// After a word that tells.
const KEYWORD_BITS_MIN: f32 = 3.3;
pub(super) const KEYWORD_BYTES_MIN: usize = 16;

/// Words of text that stands for a secret.
const PLACEHOLDERS: &[&[u8]] = &[
    b"example",
    b"xxxx",
    b"****",
    b"....",
    b"____",
    b"----",
    b"your",
    b"placeholder",
    b"redacted",
    b"changeme",
    b"change-me",
    b"change_me",
    b"dummy",
    b"00000000",
    b"1234567",
    b"abcdefg",
    b"insert",
    b"replace",
    b"process.env",
    b"os.environ",
    b"todo",
    b"fake",
];

/// For each of the first four places in a word, and each byte of either case, the words that have it
/// there.
const WORDS_BY: [[u32; 256]; 4] = {
    let mut by = [[0; 256]; 4];
    let mut word = 0;
    while word < PLACEHOLDERS.len() {
        let mut place = 0;
        while place < 4 {
            let byte = PLACEHOLDERS[word][place];
            by[place][byte as usize] |= 1 << word;
            by[place][byte.to_ascii_uppercase() as usize] |= 1 << word;
            place += 1;
        }
        word += 1;
    }
    by
};

/// Which two bytes stand next to each other in the first four of a word: for each, those that follow.
const NEXT_IN_WORDS: [class::Pairs; 256] = {
    let mut next = [class::Pairs::none(); 256];
    let mut word = 0;
    while word < PLACEHOLDERS.len() {
        let mut place = 0;
        while place < 3 {
            let (first, second) = (PLACEHOLDERS[word][place], PLACEHOLDERS[word][place + 1]);
            let firsts = [first, first.to_ascii_uppercase()];
            let mut case = 0;
            while case < 2 {
                let first = firsts[case] as usize;
                next[first] = next[first].with(second).with(second.to_ascii_uppercase());
                case += 1;
            }
            place += 1;
        }
        word += 1;
    }
    next
};

/// So many equal bytes, or one more that each follow the one before, are no drawn text.
const SAME_BYTES_MAX: usize = 6;

/// Text that stands where a secret would in documents and templates.
pub(super) fn is_placeholder(text: &[u8]) -> bool {
    let text = &text[..text.len().min(128)];
    let step = |at: usize| {
        let [first, second] = [at, at + 1].map(|at| text[at].to_ascii_lowercase());
        second.wrapping_sub(first)
    };
    // Of as many steps in a row, one is looked at.
    for at in (0..text.len().saturating_sub(1)).step_by(SAME_BYTES_MAX) {
        let first = step(at);
        if first <= 1 {
            let before = (0..at).rev().take_while(|at| step(*at) == first).count();
            let after = (at..text.len() - 1).take_while(|at| step(*at) == first).count();
            if before + after >= SAME_BYTES_MAX + usize::from(first) {
                return true;
            }
        }
    }
    let is_word = |at: usize| {
        let Some(four) = text.get(at..at + 4) else { return false };
        let by = |place: usize| WORDS_BY[place][usize::from(four[place])];
        let words = by(0) & by(1) & by(2) & by(3);
        let stands = |word: &[u8]| {
            text.get(at..at + word.len()).is_some_and(|there| there.eq_ignore_ascii_case(word))
        };
        words != 0
            && PLACEHOLDERS.iter().enumerate().any(|(n, word)| words >> n & 1 == 1 && stands(word))
    };
    // Of the three pairs in the first four bytes of a word, one is looked at.
    (0..text.len().saturating_sub(1)).step_by(3).any(|at| {
        NEXT_IN_WORDS[usize::from(text[at])].has(text[at + 1])
            && (at.saturating_sub(2)..=at).any(is_word)
    })
}

/// Whether the body of a token varies as a random one does.
pub(super) fn is_varied(body: &[u8]) -> bool {
    body.iter().any(|b| b.is_ascii_digit() || b.is_ascii_uppercase()) && shannon(body) >= 2.5
}

/// `8-4-4-4-12` hexadecimal digits (RFC 9562, 4).
pub(super) fn is_uuid(text: &[u8]) -> bool {
    text.len() == 36
        && text.iter().enumerate().all(|(at, b)| match at {
            8 | 13 | 18 | 23 => *b == b'-',
            _ => is_hex(*b),
        })
}

/// The most frequent pairs of letters in English text and names of programs.
const PAIRS: &[u8] = b"th he in er an re on at en nd ti es or te of ed is it al ar st to nt ng se ha as ou io \
le ve co me de hi ri ro ic ne ea ra ce li ch ll be ma si om ur ca el ta la ns di fo ho pe ec pr no ct us ac \
ot il tr ly nc et ut ss so rs un lo wa ge ie wh ee wi em ad ol rt po we na ul ni ts mo ow pa im mi ai sh ir su \
id os iv ia am fi ci vi pl ig tu ev ld ry mp fe bl ab gh ty op wo sa ay ex ke ui fu au pp ag ck gr cl cr um up \
ap ob av ep gi ga qu ue lu ub od oc da eg do bu bo oo rd ks ys ey ug tl ff if ft ef sc sp sk sl br dr fl fr gl \
ps ds ls ms uc ud ua va vo ki kn ka ip ib af ru rn rm rk rc rv tt mm nn my by xt sy ew eo oi ov og ok ht hu";

const PAIR_SET: [u32; 26] = {
    let mut set = [0; 26];
    let mut at = 0;
    while at + 1 < PAIRS.len() {
        set[(PAIRS[at] - b'a') as usize] |= 1 << (PAIRS[at + 1] - b'a');
        at += 3;
    }
    set
};

/// Whether letters follow each other as in words; too few tell nothing.
fn reads(letters: &[u8]) -> bool {
    let index = |b: u8| usize::from(b.to_ascii_lowercase() - b'a');
    let common = |pair: &&[u8]| PAIR_SET[index(pair[0])] >> index(pair[1]) & 1 == 1;
    letters.len() < 4 || letters.windows(2).filter(common).count() * 5 >= (letters.len() - 1) * 3
}

/// A part that is a word, a number, a version or a date.
fn is_word(part: &[u8]) -> bool {
    let letters = part.iter().take_while(|b| b.is_ascii_alphabetic()).count();
    let digits = part[letters..].iter().take_while(|b| b.is_ascii_digit()).count();
    let cased = |word: &[u8]| {
        word.get(1..).is_none_or(|rest| {
            rest.iter().all(u8::is_ascii_lowercase) || word.iter().all(u8::is_ascii_uppercase)
        })
    };
    letters + digits == part.len()
        && cased(&part[..letters])
        && reads(&part[..letters])
        && (letters == 0 || digits <= 4)
        && letters < 24
        && digits <= 14
}

/// Names, paths, identifiers: made of words rather than drawn.
pub(super) fn is_wordy(text: &[u8]) -> bool {
    // Most of what is asked for is in one piece.
    let is_whole = text.iter().filter(|b| b.is_ascii_alphanumeric()).count() == text.len();
    if is_whole {
        return text.is_empty() || is_word(text) || is_joined(text);
    }
    let mut parts = text.split(|b| !is_alnum(*b)).filter(|part| !part.is_empty());
    let (words, all) = parts.by_ref().fold((0, 0), |(words, all), part| {
        (words + if is_word(part) { part.len() } else { 0 }, all + part.len())
    });
    // Half a name may be a suffix that is drawn, as those of pods and temporary files.
    if all == 0 || words * 2 >= all && text.iter().any(|b| !is_alnum(*b)) || words == all {
        return true;
    }
    is_joined(text)
}

/// Words without anything between them, like `getUserTokenV2`.
fn is_joined(text: &[u8]) -> bool {
    // At best a third of what is small counts twice.
    let lower = text.iter().filter(|b| b.is_ascii_lowercase()).count();
    if (lower + lower / 3) * 10 < text.len() * 7 {
        return false;
    }
    let runs = text.split(|b| !b.is_ascii_lowercase()).filter(|run| run.len() >= 3 && reads(run));
    runs.map(|run| run.len() + 1).sum::<usize>() * 10 >= text.len() * 7
}

/// Hexadecimal digits alone, perhaps after `0x`.
pub(super) fn is_hex_number(text: &[u8]) -> bool {
    let digits = text.strip_prefix(b"0x").or(text.strip_prefix(b"0X")).unwrap_or(text);
    digits.iter().all(|b| is_hex(*b))
}

/// Whether a value that stands after a word that tells may be the secret.
pub(super) fn is_secret_value(value: &[u8]) -> bool {
    if value.len() < KEYWORD_BYTES_MIN || !value.iter().any(u8::is_ascii_digit) {
        return false;
    }
    value.iter().any(u8::is_ascii_alphabetic)
        && shannon(value) >= KEYWORD_BITS_MIN
        && !is_reference(value)
        && !is_uuid(value)
        && !is_placeholder(value)
        && !is_wordy(value)
}

/// A place where a value is, rather than the value.
fn is_reference(value: &[u8]) -> bool {
    const HEADS: &[&[u8]] = &[
        b"$",
        b"%",
        b"/",
        b"./",
        b"../",
        b"~/",
        b"arn:",
        b"vault:",
        b"ref+",
        b"file:",
        b"env:",
        b"op://",
        b"sha256:",
        b"sha512-",
        b"sha256-",
        b"sha1-",
        b"SHA256:",
        b"MD5:",
        b"urn:",
        b"@",
        b"#",
        b"data:",
        b"projects/",
        b"0x",
        b"secrets.",
        b"env.",
        b"self.",
        b"this.",
        b"config.",
        b"AAAAB3NzaC1",
        b"AAAAC3NzaC1",
    ];
    let has = |word: &[u8]| value.windows(word.len()).any(|w| w == word);
    HEADS.iter().any(|head| value.starts_with(head)) || has(b"://") || has(b"::") || has(b"...")
}

/// Whether `from..to` of a text, a value in running text after a word that tells, is more than a name
/// with a number in it.
pub(super) fn is_striking(text: &[u8], marks: &Marks, from: usize, to: usize) -> bool {
    let Kinds { lower, upper, special, .. } = class::kinds(marks, from, to);
    let value = &text[from..to];
    (lower && upper || special)
        && class::count(marks, OF_DIGIT, from, to) >= 2
        && class::changes(marks, from, to) >= CHANGES_MIN
        && !is_hex_number(value)
}

/// Base64 that starts like this is something public: images, archives, fonts, public keys,
/// certificates' key information, tables of source maps.
const PUBLIC_HEADS: &[&[u8]] = &[
    b"iVBORw0KGgo",
    b"/9j/",
    b"R0lGOD",
    b"UklGR",
    b"JVBERi0",
    b"UEsDB",
    b"H4sI",
    b"AGFzbQ",
    b"d09G",
    b"PHN2Zy",
    b"PD94bWw",
    b"Qk0",
    b"AAABAA",
    b"T2dnU",
    b"SUQz",
    b"AAAAB3NzaC1",
    b"AAAAC3NzaC1",
    b"AAAAE2VjZHNh",
    b"MIIBIjANBgkq",
    b"MIICIjANBgkq",
    b"MIGfMA0GCSqG",
    b"MFkwEwYHKoZI",
    b"MHYwEAYHKoZI",
    b"MCowBQYDK2Vw",
    b"sha1-",
    b"sha256-",
    b"sha384-",
    b"sha512-",
    b"/p/",
    b"SHA256-",
];

/// Words in front of what is random and no secret.
const PUBLIC_LABELS: &[&[u8]] = &[
    b"integrity",
    b"checksum",
    b"digest",
    b"fingerprint",
    b"etag",
    b"x-amz-id-2",
    b"hostid",
    b"md5",
    b"sha1",
    b"sha256",
    b"sha512",
    b"publickey",
    b"public_key",
    b"public-key",
    b"pubkey",
    b"x5c",
    b"x5t",
    b"certificate",
    b"cert",
    b"thumbprint",
    b"nonce",
    b"mappings",
    b"known_hosts",
    b"hash",
    b"crc",
    b"narhash",
    b"contenthash",
];

/// Whether what stands before a run says that it is random and no secret. `back` ends where it begins.
pub(super) fn is_declared_public(back: &[u8]) -> bool {
    let line = back.rsplit(|b| *b == b'\n').next().unwrap_or(back);
    let ends = |tail: &[u8]| line.ends_with(tail);
    if ends(b"sha256:")
        || ends(b"sha512:")
        || ends(b"sha1:")
        || ends(b"h1:")
        || ends(b"SHA256:")
        || ends(b"base64,")
        || ends(b"go:")
        || ends(b"W/\"")
        || ends(b"md5:")
        || ends(b"sha384:")
    {
        return true;
    }
    let keys: [&[u8]; 3] = [b"ssh-rsa ", b"ssh-ed25519 ", b"ecdsa-sha2-nistp256 "];
    if keys.iter().any(|key| ends(key)) {
        return true;
    }
    // `"integrity": "`, `etag=`, `x-amz-id-2: `
    let mark = |b: &u8| matches!(b, b'"' | b'\'' | b'\\' | b' ' | b'\t' | b':' | b'=' | b'`');
    let end = line.len() - line.iter().rev().take_while(|b| mark(b)).count();
    if end == line.len() {
        return false;
    }
    let start = line[..end]
        .iter()
        .rposition(|b| !(is_alnum(*b) || matches!(b, b'_' | b'-')))
        .map_or(0, |at| at + 1);
    let label = &line[start..end];
    // The public parts of a JSON web key (RFC 7518, 6).
    if matches!(label, b"n" | b"x" | b"y") && line[..start].ends_with(b"\"") {
        return true;
    }
    let cut = |label: &[u8], word: &[u8]| {
        label.len() >= word.len() && label[label.len() - word.len()..].eq_ignore_ascii_case(word)
    };
    PUBLIC_LABELS.iter().any(|word| cut(label, word))
}

const SIX_BITS: [u8; 256] = six_bits(NO_DIGIT);
/// A byte that is no character of base64.
const NO_DIGIT: u8 = 0x80;

/// Whether base64 (either alphabet) is of text that a person could read.
fn is_of_text(run: &[u8]) -> bool {
    let (groups, _) = run.as_chunks::<4>();
    let (mut odd, all) = (0, 3 * groups.len());
    for four in groups {
        let [a, b, c, d] = four.map(|byte| SIX_BITS[usize::from(byte)]);
        let bytes = [a << 2 | b >> 4, b << 4 | c >> 2, c << 6 | d];
        odd += bytes
            .iter()
            .filter(|byte| !matches!(byte, b' '..=b'~' | b'\n' | b'\r' | b'\t'))
            .count();
        if odd * 20 > all || (a | b | c | d) & NO_DIGIT != 0 {
            return false;
        }
    }
    true
}

/// A path: slashes between words.
fn is_path(run: &[u8]) -> bool {
    if memchr_iter(b'/', run).nth(2).is_none() {
        return false;
    }
    let parts = || {
        let mut start = 0;
        let ends = memchr_iter(b'/', run).chain([run.len()]);
        let all = ends.map(move |end| &run[std::mem::replace(&mut start, end + 1)..end]);
        all.filter(|part| part.len() >= 2)
    };
    // More of them that are none decide as well.
    let all = parts().count();
    let (mut words, mut others) = (0, 0);
    parts().all(|part| {
        if is_wordy(part) {
            words += 1;
        } else {
            others += 1;
        }
        words < all.div_ceil(2) && others <= all / 2
    });
    words >= all.div_ceil(2)
}

/// Whether base64 begins as something public does.
pub(super) fn is_public_head(block: &[u8]) -> bool {
    PUBLIC_HEADS.iter().any(|head| block.starts_with(head)) || is_mangled(block)
}

/// Whether a symbol of C++ or Rust begins here: a letter or some for what it is, and a first name
/// behind its length (Itanium C++ ABI, 5.1; Rust RFC 2603).
fn is_mangled(block: &[u8]) -> bool {
    // Of Rust's own, the crate's number tells: `Cs`, up to eleven digits of base 62, `_`, a length.
    if let Some(rest) = block.strip_prefix(b"_R") {
        let crates = rest[..rest.len().min(40)].windows(2).position(|two| two == b"Cs");
        return crates.is_some_and(|at| {
            let number = &rest[at + 2..];
            let digits = number.iter().take_while(|b| b.is_ascii_alphanumeric()).count();
            digits <= 11 && matches!(number[digits..], [b'_', len, ..] if len.is_ascii_digit())
        });
    }
    let heads: [&[u8]; 2] = [b"_Z", b"__Z"];
    let Some(rest) = heads.iter().find_map(|head| block.strip_prefix(*head)) else { return false };
    // Of a thunk the way to its object comes first: `Tv0_n24_`, `Thn16_`.
    let thunk = rest.strip_prefix(b"Tv0_n").or_else(|| rest.strip_prefix(b"Thn"));
    let rest = thunk.map_or(rest, |way| {
        let digits = way.iter().take_while(|b| b.is_ascii_digit()).count();
        way[digits..].strip_prefix(b"_").unwrap_or(way)
    });
    let kinds = rest.iter().take_while(|b| b.is_ascii_alphabetic()).count();
    let rest = &rest[kinds..];
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    let Some(len) = std::str::from_utf8(&rest[..digits]).ok().and_then(|n| n.parse().ok()) else {
        return false;
    };
    let Some(name) = rest[digits..].get(..len) else { return false };
    (2..=64).contains(&len)
        && kinds <= 12
        && !name[0].is_ascii_digit()
        && name.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_')
        && (name[0] == b'_' || is_wordy(name) || !name.iter().any(u8::is_ascii_digit))
}

/// What looks random in `from..to`, a piece of base64 in a text: the range of it in the piece.
pub(super) fn find_random(
    text: &[u8],
    marks: &Marks,
    from: usize,
    to: usize,
) -> Option<(usize, usize)> {
    let block = &text[from..to];
    // The hash of a content in IPFS.
    let is_content_id = block.len() == 46 && block.starts_with(b"Qm");
    if block.len() < ENTROPY_BYTES_MIN || is_content_id {
        return None;
    }
    let is_mixed = |from: usize, to: usize| {
        let Kinds { lower, upper, digit, .. } = class::kinds(marks, from, to);
        lower && upper && digit
    };
    let varies = |from, to| is_mixed(from, to) && class::changes(marks, from, to) >= CHANGES_MIN;
    if !is_mixed(from, to) {
        return None;
    }
    let of_standard = memchr2(b'-', b'_', block).is_none();
    let of_url_safe = memchr2(b'+', b'/', block).is_none();
    if of_standard || of_url_safe {
        return (varies(from, to) && is_random(block)).then_some((0, block.len()));
    }
    if is_path(block) {
        return None;
    }
    // Both alphabets: the longest part that is of one.
    let part = |is: fn(u8) -> bool| {
        let mut best = (0, 0);
        let mut start = 0;
        for at in 0..=block.len() {
            if block.get(at).is_none_or(|b| !is(*b)) {
                if at - start > best.1 - best.0 {
                    best = (start, at);
                }
                start = at + 1;
            }
        }
        best
    };
    let (one, two) = (part(is_base64), part(is_url_safe));
    let best = if one.1 - one.0 >= two.1 - two.0 { one } else { two };
    let piece = &block[best.0..best.1];
    let fits = piece.len() >= ENTROPY_BYTES_MIN
        && !is_public_head(piece)
        && varies(from + best.0, from + best.1)
        && is_random(piece);
    fits.then_some(best)
}

/// Whether a piece, of which the kinds of bytes are those of random text, is random.
fn is_random(piece: &[u8]) -> bool {
    debug_assert!(piece.iter().all(|b| is_any_base64(*b)), "a piece of base64");
    !is_hex_number(piece)
        && !is_of_text(piece)
        && shannon(piece) >= ENTROPY_BITS_MIN
        && !is_placeholder(piece)
        && !is_path(piece)
}
