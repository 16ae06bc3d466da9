//! Whether text looks random, made up for a document, or like words.
//!
//! Danger: logs are full of text that is long and means nothing to a person: digests, ids, paths,
//! names of objects, images. What is random by count of bytes alone is mostly that.
#![forbid(unsafe_code)]

use super::class::{is_alnum, is_any_base64, is_base64, is_hex, is_url_safe, shannon};

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

/// For each of the first three places in a word, and each byte of either case, the words that have it
/// there.
const WORDS_BY: [[u32; 256]; 3] = {
    let mut by = [[0; 256]; 3];
    let mut word = 0;
    while word < PLACEHOLDERS.len() {
        let mut place = 0;
        while place < 3 {
            let byte = PLACEHOLDERS[word][place];
            by[place][byte as usize] |= 1 << word;
            by[place][byte.to_ascii_uppercase() as usize] |= 1 << word;
            place += 1;
        }
        word += 1;
    }
    by
};

/// Text that stands where a secret would in documents and templates.
pub(super) fn is_placeholder(text: &[u8]) -> bool {
    let text = &text[..text.len().min(128)];
    let mut lower = [0_u8; 128];
    let lower = &mut lower[..text.len()];
    lower.copy_from_slice(text);
    lower.make_ascii_lowercase();
    let mut same = 1;
    let mut rising = 1;
    for pair in lower.windows(2) {
        same = if pair[1] == pair[0] { same + 1 } else { 1 };
        rising = if pair[1] == pair[0].wrapping_add(1) { rising + 1 } else { 1 };
        if same >= 7 || rising >= 8 {
            return true;
        }
    }
    // Random text has a word of four letters once in some ten thousand times.
    text.windows(3).enumerate().any(|(at, three)| {
        let by = |place: usize| WORDS_BY[place][usize::from(three[place])];
        let words = by(0) & by(1) & by(2);
        words != 0
            && PLACEHOLDERS
                .iter()
                .enumerate()
                .any(|(n, word)| words >> n & 1 == 1 && lower[at..].starts_with(word))
    })
}

/// Whether the body of a token varies as a random one does.
pub(super) fn is_varied(body: &[u8]) -> bool {
    let Kinds { upper, digit, .. } = kinds(body);
    (digit > 0 || upper > 0) && shannon(body) >= 2.5
}

/// What kinds of characters a text has, and how many.
#[derive(Clone, Copy)]
struct Kinds {
    lower: usize,
    upper: usize,
    digit: usize,
    /// That passwords have, and names do not.
    special: usize,
}

/// One in the field of a byte's kind, each of 16 bits.
const KIND: [u64; 256] = {
    let mut kind = [0; 256];
    let mut at = 0;
    while at < 256 {
        kind[at] = match at as u8 {
            b'a'..=b'z' => 1,
            b'A'..=b'Z' => 1 << 16,
            b'0'..=b'9' => 1 << 32,
            b'!' | b'#' | b'$' | b'%' | b'*' | b'+' | b'?' | b'@' | b'^' | b'~' => 1 << 48,
            _ => 0,
        };
        at += 1;
    }
    kind
};

fn kinds(text: &[u8]) -> Kinds {
    debug_assert!(text.len() < 1 << 16, "what is judged is short");
    let sum: u64 = text.iter().map(|b| KIND[usize::from(*b)]).sum();
    let field = |number: u32| usize::from((sum >> (16 * number)) as u16);
    Kinds { lower: field(0), upper: field(1), digit: field(2), special: field(3) }
}

/// Which share of neighbours is of different kinds.
fn changes(text: &[u8]) -> f32 {
    // What is neither a letter nor a digit is of one kind.
    let kind = |b: u8| KIND[usize::from(b)] & 0xffff_ffff_ffff;
    let changed: usize =
        text.windows(2).map(|pair| usize::from(kind(pair[0]) != kind(pair[1]))).sum();
    changed as f32 / (text.len().max(2) - 1) as f32
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
    let mut parts = text.split(|b| !is_alnum(*b)).filter(|part| !part.is_empty());
    let (words, all) = parts.by_ref().fold((0, 0), |(words, all), part| {
        (words + if is_word(part) { part.len() } else { 0 }, all + part.len())
    });
    // Half a name may be a suffix that is drawn, as those of pods and temporary files.
    if all == 0 || words * 2 >= all && text.iter().any(|b| !is_alnum(*b)) || words == all {
        return true;
    }
    // Words without anything between them, like `getUserTokenV2`.
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
    let Kinds { lower, upper, .. } = kinds(value);
    lower + upper > 0
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

/// Whether a value in running text after a word that tells is more than a name with a number in it.
pub(super) fn is_striking(value: &[u8]) -> bool {
    let Kinds { lower, upper, digit, special } = kinds(value);
    digit >= 2
        && (lower > 0 && upper > 0 || special > 0)
        && changes(value) >= CHANGES_MIN
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

/// The six bits of a character of base64, either alphabet, and those of what is none.
const SIX_BITS: [u8; 256] = {
    let mut bits = [NO_DIGIT; 256];
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_";
    let mut at = 0;
    while at < alphabet.len() {
        bits[alphabet[at] as usize] = if at < 64 { at as u8 } else { at as u8 - 2 };
        at += 1;
    }
    bits
};
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
    if run.iter().filter(|b| **b == b'/').count() < 3 {
        return false;
    }
    let parts = run.split(|b| *b == b'/').filter(|part| part.len() >= 2);
    let (words, all) =
        parts.fold((0, 0), |(words, all), part| (words + usize::from(is_wordy(part)), all + 1));
    words * 2 >= all
}

/// Whether base64 begins as something public does.
pub(super) fn is_public_head(block: &[u8]) -> bool {
    PUBLIC_HEADS.iter().any(|head| block.starts_with(head))
}

/// What looks random in a piece of base64: the range of it.
pub(super) fn find_random(block: &[u8]) -> Option<(usize, usize)> {
    // The hash of a content in IPFS.
    let is_content_id = block.len() == 46 && block.starts_with(b"Qm");
    if block.len() < ENTROPY_BYTES_MIN || is_content_id {
        return None;
    }
    let of_standard = block.iter().all(|b| is_base64(*b));
    let of_url_safe = block.iter().all(|b| is_url_safe(*b));
    if of_standard || of_url_safe {
        return is_random(block).then_some((0, block.len()));
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
    let fits = piece.len() >= ENTROPY_BYTES_MIN && !is_public_head(piece) && is_random(piece);
    fits.then_some(best)
}

fn is_random(piece: &[u8]) -> bool {
    let Kinds { lower, upper, digit, .. } = kinds(piece);
    debug_assert!(piece.iter().all(|b| is_any_base64(*b)), "a piece of base64");
    lower > 0
        && upper > 0
        && digit > 0
        && !is_hex_number(piece)
        && changes(piece) >= CHANGES_MIN
        && !is_of_text(piece)
        && shannon(piece) >= ENTROPY_BITS_MIN
        && !is_placeholder(piece)
        && !is_path(piece)
}
